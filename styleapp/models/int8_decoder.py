"""A decoder with norms inside, in integers of 8 bits: for photos, on CPUs that have these and no bfloat16."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.models.decoder import Decoder, Skips
from styleapp.models.int8 import int8_conv2d, packed
from styleapp.models.layers import padded, subpixel_kernels
from styleapp.norms import Moments

__all__ = ["Int8Decoder"]

HIGHEST = 6.0
"""How many standard deviations above its mean a channel may be inside; what is higher is cut. From 5 to 7 pictures are
about as near to float as they get, over photos and styles."""

LOWEST, FIRST_UNIT = 32, 18 / 255
"""The same of the features of the encoder, which are sparse: -2.3 to 15.7, in units that are all alike."""

SHARED = 0.3
"""What of its unit a channel has in common with the largest of its layer, in the exponent. Units go into the weights,
and what is small there is rounded coarsely: so something between a unit for each and one for all is best (Xiao et al.
2023, SmoothQuant, eq. 4); 1 to 3 dB more than with 0."""

FILLED = {192: 208}
"""Output channels that oneDNN takes two to three times as long for as for some more of them."""


@dataclass(frozen=True)
class _Kernel:
    """What :func:`int8_conv2d` takes for a convolution.

    Attributes:
        channels: how many come out; what comes behind them only fills up.
        upsampled: whether they are those of even and odd rows and columns, four for each channel of twice the size.
    """

    kernel: Tensor
    step: Tensor
    bias: Tensor | None
    channels: int
    upsampled: bool


@dataclass(frozen=True)
class Int8Decoder:
    """What a decoder with norms inside makes of photos for one code, with weights and inputs of 8 bits.

    Behind a norm a channel is γ·z + β, with z of mean 0 and variance 1, whatever the photo: so from the code alone
    follows how large it becomes and which unit u its whole numbers have, 0 to 255, and tiles have those of the whole.
    Units go into the weights of the next convolution, which are rounded to -127 to 127, in steps of their own for each
    output. Sums are exact, and the next norm takes away what is wrong with the scale or the mean of a channel.

    Attributes:
        decoder: upsampling bilinearly.
        eps: of the norms.
        norms: (γ / u, β / u) of each norm, (1, C, 1, 1), by its name. That of the features leaves γ to the weights.
        kernels: of each convolution, by its name.
    """

    decoder: Decoder
    eps: float
    norms: Mapping[str, tuple[Tensor, Tensor]]
    kernels: Mapping[str, _Kernel]

    @classmethod
    @torch.no_grad()
    def of(cls, decoder: Decoder, codes: Mapping[str, tuple[Tensor, Tensor]], eps: float) -> Int8Decoder:
        """The one for a code: (γ, β) of each norm, (1, C, 1, 1), that of the features first.

        Raises:
            ValueError: for a decoder that upsamples otherwise.
        """
        if decoder.upsampling != "bilinear":
            raise ValueError(f"integers are for decoders that upsample bilinearly, not {decoder.upsampling!r}")
        norms, kernels, upsampled = {}, {}, False
        before = iter(codes.items())
        for name in decoder.names:
            if name == "up":
                upsampled = True
                continue
            norm, (gamma, beta) = next(before)
            if norm in decoder.hidden:
                unit = _units(gamma, beta)
                norms[norm] = gamma / unit, beta / unit
                kernels[name] = _kernel(decoder, name, unit, upsampled)
            else:
                norms[norm] = torch.full_like(gamma, 1 / FIRST_UNIT), torch.full_like(gamma, LOWEST)
                kernels[name] = _kernel(decoder, name, gamma * FIRST_UNIT, upsampled, LOWEST)
            upsampled = False
        return cls(decoder, eps, norms, kernels)

    def seen_by(self, decoder: Decoder) -> Int8Decoder:
        """The same for a decoder that differs in how it sees the photo: see :meth:`Decoder.with_detail`."""
        return replace(self, decoder=decoder)

    def normed(self, norm: str, x: Tensor, m: Moments) -> Tensor:
        """relu(γ (x - μ) / sqrt(σ² + ε) + β) in units, rounded, at most 255; uint8, channels_last.

        Of the features (x - μ) / sqrt(σ² + ε), and no relu.
        """
        gamma, beta = self.norms[norm]
        scale = gamma * (m.var + self.eps).rsqrt()
        shift = beta - m.mean * scale + 0.5  # what is behind the point is then left out
        channels, width = x.shape[1], x.shape[3]
        out = torch.empty(x.shape, dtype=torch.uint8, memory_format=torch.channels_last)
        rows = max(1, 2**18 // (channels * width))  # that stay in the cache
        for k in range(len(x)):
            s, b = (t[k % len(t)].flatten() for t in (scale, shift))
            for part, place in zip(x[k].permute(1, 2, 0).split(rows), out[k].permute(1, 2, 0).split(rows), strict=True):
                place.copy_(torch.addcmul(b, part, s).clamp_(0, 255))
        return out

    def __call__(
        self,
        x: Tensor,
        norms: Callable[[str, Tensor], Tensor],
        until: str | None = None,
        after: str | None = None,
        skips: Skips | None = None,
    ) -> Tensor:
        """As :meth:`Decoder.forward`; features are, and ``norms`` gives, what :meth:`normed` does."""
        names = [*self.kernels]
        if after is not None:
            names = names[names.index(after) + 1 :]
            x = norms(after, x)
        for name in names:
            x = self._convolved(x, self.kernels[name])
            if name in self.decoder.skips:
                x = self.decoder.with_skip(x, self.decoder.skips[name], skips or {})
            if name in (until, names[-1]):
                break
            x = norms(name, x)
        return x if until is not None else x[:, :3] + x[:, 3:]

    def _convolved(self, x: Tensor, k: _Kernel) -> Tensor:
        whole = padded(x, "replicate" if k.upsampled else "reflect")
        y = int8_conv2d(whole, k.kernel, k.step, k.bias, torch.float32, "none")
        return F.pixel_shuffle(y, 2) if k.upsampled else y[:, : k.channels]


def _units(gamma: Tensor, beta: Tensor) -> Tensor:
    """What 1 is worth in each channel behind a norm and a ReLU."""
    most = beta + HIGHEST * gamma.abs()
    largest = most.max()
    if largest <= 0:  # a layer that is dead
        return torch.ones_like(most)
    return (most / largest).clamp_min(1e-3) ** (1 - SHARED) * largest / 255


def _kernel(decoder: Decoder, name: str, unit: Tensor, upsampled: bool, lowest: int = 0) -> _Kernel:
    """Of a convolution of whole numbers in these units, (1, C, 1, 1), where ``lowest`` stands for 0."""
    weight = decoder.get_parameter(f"{name}.weight").float() * unit
    bias = decoder.get_parameter(f"{name}.bias").float() if name == decoder.names[-1] else None  # a norm takes it away
    step = weight.abs().amax((1, 2, 3), keepdim=True)
    if upsampled:  # one step for the four kernels of a channel
        weight = subpixel_kernels(weight, decoder.upsampling).unflatten(0, (4, -1)).transpose(0, 1)
        step = weight.abs().amax((1, 2, 3, 4), keepdim=True).expand(-1, 4, -1, -1, -1).flatten(0, 1)
        weight = weight.flatten(0, 1)
    step = step.clamp_min(torch.finfo(weight.dtype).tiny) / 127
    whole = _rounded(weight / step)
    channels = len(weight)
    if bias is not None:  # of the picture nothing is taken away: it gets what rounding lost of its weights besides
        rest = ((weight / step - whole) * 127).round()
        whole, step, bias = torch.cat([whole, rest]), torch.cat([step, step / 127]), torch.cat([bias, 0 * bias])
        channels *= 2
    elif not upsampled and (more := FILLED.get(channels, 0) - channels) > 0:
        whole, step = torch.cat([whole, 0 * whole[:more]]), torch.cat([step, step[:more]])
    step = step.flatten()
    if lowest:
        bias = -lowest * step * whole.sum((1, 2, 3))
    return _Kernel(packed(whole.to(torch.int8), step), step, bias, channels, upsampled)


def _rounded(weight: Tensor) -> Tensor:
    """To whole numbers, each less than 1 away, whose sum over the taps of a kernel, (O, C, 3, 3), is the nearest.

    Those with the largest remainders are rounded up. So what is the same everywhere stays so: the four kernels behind
    upsampling have the same sums, and rounded each for itself they draw a weave where a picture is calm.
    """
    taps = weight.flatten(2).movedim(2, 0).contiguous()
    down = taps.floor()
    rest = taps - down
    up = taps.sum(0).round() - down.sum(0)
    larger = torch.zeros(taps.shape, dtype=torch.uint8)
    """How many of the others are rounded up before."""
    for i, j in itertools.combinations(range(len(taps)), 2):
        first = rest[i] >= rest[j]
        larger[j] += first
        larger[i] += first.logical_not_()
    return (down + (larger < up.round())).movedim(0, 2).reshape(weight.shape)
