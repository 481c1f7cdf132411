"""The one layer that both networks are made of: a 3x3 convolution with reflection padding, perhaps upsampling first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleapp import kernels
from styleapp.kernels import Border, bordered, folded, suits
from styleapp.models import own

__all__ = [
    "LEAST_TO_CORRECT",
    "UPSAMPLINGS",
    "ReflectConv2d",
    "Ringed",
    "add_conv2d",
    "convolves",
    "corrected_conv2d",
    "extended",
    "max_pool2x2",
    "padded",
    "pooled",
    "reflect_conv2d",
    "relu_ringed",
    "subpixel_kernels",
    "takes_ring",
    "upsampled_conv2d",
]

UPSAMPLINGS: dict[str, list[list[list[float]]]] = {
    "nearest": [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]],
    "bilinear": [
        [[0.75, 0.25, 0], [0.25, 0.75, 0.75], [0, 0, 0.25]],
        [[0.25, 0, 0], [0.75, 0.75, 0.25], [0, 0.25, 0.75]],
    ],
}
"""To twice the size: how much of each of 2 or 3 pixels beside one another the three taps of a kernel see, for even and
for odd places."""

LEAST_TO_CORRECT = 128**2
"""Positions from which on a border that is corrected takes a CPU less time than a padded copy."""


def reflect_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """Convolve with a 3x3 kernel after reflecting one pixel at each border.

    Equals ``F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)`` up to rounding, in the way that suits:
    that itself where gradients are wanted, :func:`corrected_conv2d` for large ones on a CPU, :func:`padded` elsewhere.

    Args:
        x: (N, C, H, W) with H, W >= 2.
        weight: (O, C, 3, 3).
        bias: (O,) or None.
        relu: whether one follows.

    Returns:
        (N, O, H, W).

    Raises:
        ValueError: if H or W is below 2 (there is nothing to reflect).
    """
    if torch.compiler.is_exporting():
        return _defined(x, weight, bias, relu, "reflect")
    _check_reflects(*x.shape[-2:])
    if _wants_gradient(x, weight, bias):
        ours = x.is_cuda or x.dtype == torch.bfloat16  # of which torch's pad on a CPU makes further copies
        y = _conv2d(padded(x, "reflect") if ours else F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)
        return F.relu_(y) if relu else y
    if x.is_cuda or x.shape[-2] * x.shape[-1] < LEAST_TO_CORRECT:
        return _convolved(padded(x, "reflect"), weight, bias, relu)
    return corrected_conv2d(x, weight, bias, relu)


def _check_reflects(height: int, width: int) -> None:
    if min(height, width) < 2:
        raise ValueError(f"reflection padding needs at least 2x2 pixels, got {height}x{width}")


def _defined(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, border: Border) -> Tensor:
    """As it is defined, for other runtimes, which have ways of their own to make it fast."""
    y = F.conv2d(F.pad(x, (1, 1, 1, 1), mode=border), weight, bias)
    return F.relu(y) if relu else y


def corrected_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """As :func:`reflect_conv2d`, without a padded copy of ``x``.

    The convolution pads with zeros; the one-pixel border of its result is then replaced by that of the first and last
    rows and columns with what is reflected around them.
    """
    y = _convolved(x, weight, bias, relu, padding=1)
    for dim in (2, 3):
        first, last = _convolved(_ends(x, dim), weight, bias, relu).chunk(2)
        y.narrow(dim, 0, 1).copy_(first)
        y.narrow(dim, x.shape[dim] - 1, 1).copy_(last)
    return y


def _ends(x: Tensor, dim: int) -> Tensor:
    """The first rows or columns and, below them in the batch, the last: each between two of its neighbour, padded."""
    shape = [2 * x.shape[0], *x.shape[1:]]
    shape[dim], shape[5 - dim] = 3, x.shape[5 - dim] + 2
    whole = _empty(*shape, like=x)
    count = x.shape[dim]
    ends = whole.narrow(5 - dim, 1, x.shape[5 - dim]).chunk(2)
    for end, at, neighbour in zip(ends, (0, count - 1), (1, count - 2), strict=True):
        end.narrow(dim, 1, 1).copy_(x.narrow(dim, at, 1))
        for side in (0, 2):
            end.narrow(dim, side, 1).copy_(x.narrow(dim, neighbour, 1))
    last = whole.shape[5 - dim] - 1
    for ring, inner in ((0, 2), (last, last - 2)):
        whole.narrow(5 - dim, ring, 1).copy_(whole.narrow(5 - dim, inner, 1))
    return whole


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, padding: int = 0) -> Tensor:
    """Padded with zeros. A ReLU costs nothing if cuDNN, in half precision, or oneDNN is told of it at once."""
    if relu and x.dtype == weight.dtype and not torch.compiler.is_compiling():
        ones, around = (1, 1), (padding, padding)
        try:
            if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and torch.backends.cudnn.enabled:
                y: Tensor = torch.cudnn_convolution_relu(x, weight, bias, ones, around, ones, 1)
                return y
            if x.device.type == "cpu" and torch.backends.mkldnn.enabled and onednn_works(x.dtype):
                y = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, around, ones, ones, 1, "relu", [], "")
                return y
        except RuntimeError:  # no kernel of it for this GPU, or no cuDNN
            pass
    y = F.conv2d(x, weight, bias, padding=padding)
    return F.relu_(y) if relu else y


@functools.cache
def onednn_works(dtype: torch.dtype) -> bool:
    """Whether its convolution with a ReLU, which is not of PyTorch's documented interface, is there and right."""
    x = torch.linspace(-1, 1, 32, dtype=dtype).view(1, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.linspace(1, -1, 54).to(dtype).view(3, 2, 3, 3), torch.linspace(-1, 1, 3).to(dtype)
    ones = (1, 1)
    try:
        y = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, ones, ones, ones, 1, "relu", [], "")
        wanted = F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
        return torch.allclose(y.double(), wanted, atol=8 * torch.finfo(dtype).eps)
    except (AttributeError, RuntimeError):
        return False


def add_conv2d(y: Tensor, x: Tensor, weight: Tensor, relu: bool = False) -> Tensor:
    """``y`` + a 1x1 convolution of ``x``; relu of it where one follows. On a CPU in one pass; ``y`` may be changed.

    Args:
        y: (N, O, H, W).
        x: (N, C, H, W).
        weight: (O, C, 1, 1).
    """
    fits = x.dtype == weight.dtype == y.dtype and y.is_contiguous(memory_format=torch.channels_last)
    eager = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if fits and eager and y.device.type == "cpu" and torch.backends.mkldnn.enabled and onednn_adds(x.dtype):
        return _added_by_onednn(y, x, weight, relu)
    more = F.conv2d(x, weight)
    y = y + more if torch.is_grad_enabled() else y.add_(more)  # autograd would copy what is changed, where it is a view
    return F.relu_(y) if relu else y


def _added_by_onednn(y: Tensor, x: Tensor, weight: Tensor, relu: bool) -> Tensor:
    around = (0, 0), (1, 1), (1, 1), 1
    then = "relu" if relu else None
    found: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
        y, x, weight, None, *around, "add", 1.0, then, [], ""
    )
    return found


@functools.cache
def onednn_adds(dtype: torch.dtype) -> bool:
    """As :func:`onednn_works`, of :func:`add_conv2d`."""
    x = torch.linspace(-1, 1, 32, dtype=dtype).view(1, 2, 4, 4).contiguous(memory_format=torch.channels_last)
    weight, y = torch.linspace(1, -1, 6).to(dtype).view(3, 2, 1, 1), torch.linspace(-1, 1, 48).view(1, 4, 4, 3)
    y = y.to(dtype).permute(0, 3, 1, 2)
    wanted = (y.double() + F.conv2d(x.double(), weight.double())).relu()
    try:
        return torch.allclose(_added_by_onednn(y, x, weight, True).double(), wanted, atol=8 * torch.finfo(dtype).eps)
    except (AttributeError, RuntimeError):
        return False


def upsampled_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mode: str = "nearest",
    kernels: Callable[[Tensor, str], Tensor] | None = None,
    relu: bool = False,
) -> Tensor:
    """Convolve with a 3x3 kernel after upsampling to twice the size and repeating the border pixels.

    Equals ``F.conv2d(F.pad(F.interpolate(x, scale_factor=2, mode=mode), (1, 1, 1, 1), mode="replicate"), weight,
    bias)`` up to rounding; to repeat and to reflect the border is the same after nearest upsampling. Of an upsampled
    picture a 3x3 kernel sees but 2x2 different pixels, or combinations of 3x3 where it is bilinear; which ones depends
    on whether row and column are even or odd. So four kernels, sums of the one, are applied to ``x`` itself: no
    upsampled copy, and by nearest 16 products in place of 36. (With gradients only on a GPU, and bilinearly.)

    Args:
        x: (N, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,) or None.
        mode: one of :data:`UPSAMPLINGS`.
        kernels: :func:`subpixel_kernels`, or what has kept them.
        relu: whether one follows: here it costs nothing.

    Returns:
        (N, O, 2H, 2W).
    """
    if torch.compiler.is_exporting():
        return _defined(F.interpolate(x, scale_factor=2.0, mode=mode), weight, bias, relu, "replicate")
    wants_gradient = _wants_gradient(x, weight, bias)
    if wants_gradient and mode == "nearest":
        return reflect_conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, relu)
    if wants_gradient and not x.is_cuda and weight.requires_grad:
        y = F.conv2d(_bilinear_with_border(x), weight, bias)
        return F.relu_(y) if relu else y
    parts = (kernels or subpixel_kernels)(weight, mode)
    if wants_gradient:
        n, _, height, width = x.shape
        out_channels = weight.shape[0]
        biases = None if bias is None else bias.repeat(4)
        y = _conv2d(padded(x, "replicate"), parts, biases).permute(0, 2, 3, 1)
        y = y.reshape(n, height, width, 2, 2, out_channels).transpose(2, 3)
        y = y.reshape(n, 2 * height, 2 * width, out_channels).permute(0, 3, 1, 2)
        return F.relu(y) if relu else y
    beyond = 0 if x.is_cuda else _beyond(x.shape[-1], mode)
    return _subpixels(Ringed(padded(x, "replicate", beyond), *x.shape[-2:]), parts, bias, relu)


def _subpixels(x: Ringed, parts: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """The four kernels of :func:`upsampled_conv2d`, and what they give put in place."""
    n, out_channels = len(x.whole), len(parts) // 4
    biases = None if bias is None else bias.repeat(4)
    out = _empty(n, out_channels, 2 * x.height, 2 * x.width, like=x.whole)
    places = out.permute(0, 2, 3, 1).view(n, x.height, 2, x.width, 2, out_channels)
    each = [places[:, :, i // 2, :, i % 2] for i in range(4)]
    if parts.shape[-1] == 3:  # even and odd places see the same pixels
        # On a CPU a part is still in the cache when it is put in place; and 1024 channels take twice as long at times.
        where = [places.transpose(2, 3)] if out.is_cuda else each if out_channels >= 256 else places.unbind(2)
        for some, place in zip(parts.chunk(len(where)), where, strict=True):
            y = _convolved(x.whole, some, None if biases is None else biases[: len(some)], relu)
            place.copy_(y[..., : x.width].permute(0, 2, 3, 1).view(place.shape))
        return out
    y = _convolved(x.whole, parts, biases, relu)
    for i, (part, place) in enumerate(zip(y.split(out_channels, 1), each, strict=True)):
        row, column = divmod(i, 2)  # of two pixels, odd places see the later ones
        place.copy_(part[:, :, row : row + x.height, column : column + x.width].permute(0, 2, 3, 1))
    return out


def _beyond(width: int, mode: str) -> int:
    """Columns of zeros, for results of a multiple of 16: oneDNN takes half as long again for odd widths."""
    return -(width + 3 - len(UPSAMPLINGS[mode][0])) % 16


def subpixel_kernels(weight: Tensor, mode: str) -> Tensor:
    """The kernels for even and odd rows and columns behind upsampling, one after another: (4·O, C, k, k), k 2 or 3."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    kept = _taps.__wrapped__ if torch.compiler.is_compiling() else _taps
    taps = kept(mode, wide.dtype, wide.device)
    with torch.autocast(wide.device.type, enabled=False):
        return torch.einsum("pkr,qls,ocrs->pqockl", taps, taps, wide).flatten(0, 2).to(weight.dtype)


@functools.cache
def _taps(mode: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of :data:`UPSAMPLINGS`, kept: nothing can be brought to a GPU while a graph of its kernels is recorded."""
    with torch.inference_mode(False):
        return torch.tensor(UPSAMPLINGS[mode], dtype=dtype, device=device)


def _bilinear_with_border(x: Tensor) -> Tensor:
    """(N, C, H, W) bilinearly to (N, C, 2H + 2, 2W + 2), border repeated. Its gradient is the same in each run."""
    for dim in (2, 3):
        count = x.shape[dim]
        x = torch.cat([x.narrow(dim, 0, 1), x, x.narrow(dim, count - 1, 1)], dim)
        before, behind = x.narrow(dim, 0, count + 1), x.narrow(dim, 1, count + 1)
        x = torch.stack([before.lerp(behind, 0.25), before.lerp(behind, 0.75)], dim + 1).flatten(dim, dim + 1)
    return x


def max_pool2x2(x: Tensor) -> Tensor:
    """The largest of each 2x2 positions; at an odd edge of those that there are ("ceil mode").

    On a CPU torch's own also writes down where each of them was, as 64-bit numbers, which takes longer than the rest.
    """
    elsewhere = x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling()
    if elsewhere or x.shape[-2] % 2 or x.shape[-1] % 2:
        return F.max_pool2d(x, 2, ceil_mode=True)
    rows = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


def extended(x: Tensor, rows: int, columns: int) -> Tensor:
    """``x`` with its last row and column so many times more; itself where these are 0.

    (To join a picture and its last column takes a CPU ten times as long, and PyTorch pads no integers.)
    """
    if not rows and not columns:
        return x
    n, channels, height, width = x.shape
    out = _empty(n, channels, height + rows, width + columns, like=x)
    out[:, :, :height, :width] = x
    out[:, :, :height, width:] = x[..., width - 1 :]
    out[:, :, height:] = out[:, :, height - 1 : height]
    return out


def padded(x: Tensor, mode: Border, beyond: int = 0) -> Tensor:
    """``F.pad(x, (1, 1, 1, 1), mode)`` in the memory format of ``x``; then columns of zeros, without a gradient.

    PyTorch's own gives up channels_last on a GPU, and the convolution after it makes another copy to have it back; and
    the gradient of its reflection is not the same in each run there.
    """
    if not beyond and torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _Padded.apply(x, mode)
        return out
    return _padded(x, mode, beyond)


def _padded(x: Tensor, mode: Border, beyond: int = 0) -> Tensor:
    if not beyond and suits(x):
        return bordered(x, mode)
    whole, inner = _room_around(x, beyond)
    inner.copy_(x)
    return _with_border(whole, inner, mode)


def _room_around(x: Tensor, beyond: int) -> tuple[Tensor, Tensor]:
    """Room for ``x`` with a border and columns beyond it, and in it that for ``x``."""
    n, c, height, width = x.shape
    whole = _empty(n, c, height + 2, width + 2 + beyond, like=x)
    return whole, whole[:, :, 1:-1, 1 : 1 + width]


def _with_border(whole: Tensor, inner: Tensor, mode: Border) -> Tensor:
    """``whole`` filled with what is around ``inner``, a part of it."""
    height, width = inner.shape[-2:]
    y, rest = whole.split([width + 2, whole.shape[-1] - width - 2], 3)
    first = 1 if mode == "reflect" else 0
    y[:, :, :: height + 1, 1:-1] = _both(inner, 2, first)
    y[..., :: width + 1] = _both(y, 3, 1 + first)
    rest.zero_()
    return whole


@dataclass(frozen=True)
class Ringed:
    """A picture with the border that the next layer needs around it, written there by what made the picture.

    Attributes:
        whole: (N, C, height + 2, width + 2) or some columns more.
        height, width: of the picture.
    """

    whole: Tensor
    height: int
    width: int

    @property
    def inner(self) -> Tensor:
        """The picture without its border."""
        if self.whole.requires_grad and torch.is_grad_enabled():
            return own.inner(self.whole)
        return self.whole[:, :, 1 : 1 + self.height, 1 : 1 + self.width]


def takes_ring(x: Tensor) -> bool:
    """Whether borders can be written around what there is: on a CPU, without a gradient or a compiler."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def relu_ringed(x: Tensor, upsampling: str | None) -> Ringed:
    """The ReLU of ``x`` with the border that a layer needs which upsamples first, or does not; in one pass."""
    border: Border = "reflect" if upsampling is None else "replicate"
    if suits(x):
        return Ringed(own.relu_bordered(x, border), *x.shape[-2:])
    whole, inner = _room_around(x, 0 if upsampling is None else _beyond(x.shape[-1], upsampling))
    torch.clamp_min(x, 0, out=inner)
    return Ringed(_with_border(whole, inner, border), *x.shape[-2:])


def convolves(layers: Iterable[nn.Module], x: Tensor) -> bool:
    """Whether ``x`` goes through these layers by our own convolutions, which write borders: on a GPU, in 16 bits."""
    if not x.is_cuda or torch.compiler.is_compiling():
        return False
    for layer in layers:
        if isinstance(layer, ReflectConv2d) and layer.in_channels % 8:
            trained = torch.is_grad_enabled() and layer.weight.requires_grad
            if trained or layer.in_channels != 3:
                return False
    return kernels.convolve(x.device, _computed_in(x))


def _computed_in(x: Tensor) -> torch.dtype:
    """The dtype of a convolution of ``x``."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def pooled(x: Tensor) -> Ringed:
    """:func:`max_pool2x2` with a reflected border around it, where :func:`convolves` says so."""
    height, width = -(-x.shape[-2] // 2), -(-x.shape[-1] // 2)
    _check_reflects(height, width)
    return Ringed(own.pooled(x), height, width)


def _both(x: Tensor, dim: int, index: int) -> Tensor:
    """What lies at ``index`` from the one end of a dimension and from the other; a view where it can be one."""
    last = x.shape[dim] - 1 - index
    if last > index:
        return x[(slice(None),) * dim + (slice(index, last + 1, last - index),)]
    return torch.cat([x.narrow(dim, index, 1), x.narrow(dim, last, 1)], dim)


class _Padded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mode: Border) -> Tensor:  # type: ignore[override]
        ctx.mode = mode
        return _padded(x, mode)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """What the ring got goes to the pixels that it repeats. Autograd's own would walk through ten copies."""
        if suits(grad):
            return folded(grad, ctx.mode), None
        inner = _empty(*grad.shape[:2], grad.shape[2] - 2, grad.shape[3] - 2, like=grad).copy_(grad[..., 1:-1, 1:-1])
        repeated = 1 if ctx.mode == "reflect" else 0
        for ring, row in ((0, repeated), (-1, -1 - repeated)):
            inner[..., row, :] += grad[..., ring, 1:-1]
            inner[..., row] += grad[..., 1:-1, ring]
            for corner, column in ((0, repeated), (-1, -1 - repeated)):
                inner[..., row, column] += grad[..., ring, corner]
        return inner, None


def _empty(*shape: int, like: Tensor) -> Tensor:
    layout = torch.channels_last if like.stride(1) == 1 else torch.contiguous_format  # of a part of a picture too
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.conv2d``. On a CPU PyTorch finds the gradient of a bias together with that of the weights, wanted or not."""
    if bias is None or weight.requires_grad or not bias.requires_grad:
        return F.conv2d(x, weight, bias)
    y: Tensor = _Biased.apply(F.conv2d(x, weight, bias.detach()), bias)
    return y


class _Biased(torch.autograd.Function):
    """What has a bias already, for the gradient of the bias alone."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        ctx.dtype = bias.dtype
        ctx.mark_dirty(y)  # what follows changes it in place, which a view would not allow
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return grad, grad.sum((0, 2, 3), dtype=ctx.dtype)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class ReflectConv2d(nn.Conv2d):
    """3x3 convolution with reflection padding, as :func:`reflect_conv2d`; state dicts of ``nn.Conv2d`` fit."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3)
        self._kept: tuple[object, Tensor, Tensor] | None = None

    def forward(  # type: ignore[override]
        self,
        x: Tensor | Ringed,
        *,
        upsampling: str | None = None,
        relu: bool = False,
        ring: Border | None = None,
        shift: Tensor | None = None,
    ) -> Tensor | Ringed:
        """(N, C, H, W) to (N, O, H, W), or (N, O, 2H, 2W) where upsampling comes first; then a ReLU if asked for.

        With a ``ring``, that is a border for the next layer, only where :func:`convolves` says so. A ``shift``, (O,),
        is added to the bias.
        """
        bias = self.bias
        if shift is not None:
            assert bias is not None
            bias = (bias.float() + shift.float()).to(bias.dtype)
        if ring is not None or (isinstance(x, Ringed) and convolves([self], x.whole)):
            return self._own(x, bias, upsampling, relu, ring)
        if isinstance(x, Ringed):
            if upsampling is None:
                return _convolved(x.whole, self.weight, bias, relu)
            return _subpixels(x, self._kernels(self.weight, upsampling), bias, relu)
        if upsampling is not None:
            return upsampled_conv2d(x, self.weight, bias, upsampling, self._kernels, relu)
        return reflect_conv2d(x, self.weight, bias, relu)

    def _own(
        self, x: Tensor | Ringed, bias: Tensor | None, upsampling: str | None, relu: bool, ring: Border | None
    ) -> Tensor | Ringed:
        """By our own kernels."""
        assert bias is not None
        dtype = _computed_in(x if isinstance(x, Tensor) else x.whole)
        weight, scale = (self.weight, 1) if upsampling is None else (self._kernels(self.weight, upsampling), 2)
        weight, bias = weight.to(dtype, memory_format=torch.channels_last), bias.to(dtype)
        if isinstance(x, Tensor):
            _check_reflects(*x.shape[-2:])
            x = x.to(dtype)
            if self.in_channels == 3:
                return Ringed(own.convolved_first(x, weight, bias, relu), *x.shape[-2:])
            x = x.contiguous(memory_format=torch.channels_last)
            x = Ringed(padded(x, "reflect" if upsampling is None else "replicate"), *x.shape[-2:])
        y = own.convolved(x.whole.to(dtype), weight, bias, relu, scale, ring)
        return y if ring is None else Ringed(y, scale * x.height, scale * x.width)

    def _kernels(self, weight: Tensor, mode: str) -> Tensor:
        """Those of :func:`subpixel_kernels`, made once for a weight that is not trained: a GPU would wait for them."""
        if torch.compiler.is_compiling() or weight.is_inference() or weight.requires_grad:
            return subpixel_kernels(weight, mode)
        which = mode, weight.data_ptr(), weight._version
        kept = self._kept
        if kept is None or kept[0] != which:
            with torch.inference_mode(False), torch.no_grad():  # a gradient may pass through them later
                parts = subpixel_kernels(weight.detach(), mode)
                if weight.is_cuda:
                    parts = parts.contiguous(memory_format=torch.channels_last)
            # The weight is kept too, so that no other one can have its place in memory.
            kept = self._kept = which, parts, weight.detach()
        return kept[1]
