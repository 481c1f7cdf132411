"""Stylize in tiles of bounded memory, with the result of stylizing in one piece.

A norm needs the photo only through moments over the whole of it. The first pass encodes tile by tile and
merges their moments; the second normalises and decodes tile by tile with the moments of the whole. Tiles
lie on multiples of 8 pixels, the encoder's pooling, and carry a halo as wide as the networks see, so that
a tile holds the very numbers that the whole would. One tile that covers the photo is the plain case.

A network with norms inside its decoder takes one pass more for each of them, which runs through the decoder as far
as that norm; passes to the early ones are short. So its tiles are as exact. In one piece there is nothing to repeat.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.controls import Layer, Mask, Matching, Window, weights_of
from styleapp.errors import OptionError
from styleapp.images import Picture, quantized, unit
from styleapp.memory import available, is_out_of_memory, release_freed_memory, resident
from styleapp.models import StyleCode, Stylizer, code_from_moments
from styleapp.norms import Moments, efdm, merge, moments, normalize, pool_moments, wct_matrix

__all__ = ["Content", "Plan", "make_plan", "measure_content", "one_piece", "render"]

Note = Callable[[str], None]
LEAST_TILE = 64


@dataclass(frozen=True)
class Plan:
    """How a photo is cut.

    Attributes:
        tile: sides of a tile in pixels, without the halo; a multiple of 8.
        keep: keep the features of the first pass, so that the second need not encode again.
        tidy_above: bytes of this process above which freed memory is handed back before the next tile; None for
            never. What tiles of several shapes leave behind does not fit the next one, and adds up.
    """

    tile: tuple[int, int]
    keep: bool = True
    tidy_above: int | None = None


def make_plan(
    stylizer: Stylizer,
    size: tuple[int, int],
    device: torch.device,
    *,
    tile: int | None = None,
    budget: int | None = None,
    result_bytes: int = 0,
) -> Plan:
    """The largest tiles that fit.

    Args:
        size: (height, width) of the photo.
        tile: longest side of a tile; None for as large as memory allows.
        budget: bytes that this process may occupy in all; None for half of what is free.
        result_bytes: size of the result, which is still to be made.

    Raises:
        OptionError: if the budget is too small for the smallest tile, or the tile that is asked for does not
            fit into memory at all; the message says what is needed.
    """
    height, width = size
    dtype_size = next(stylizer.parameters()).element_size()
    features = stylizer.encoder.num_channels * dtype_size * math.ceil(height / 8) * math.ceil(width / 8)
    pixel = bytes_per_pixel(stylizer)
    halo = 8 * (halo_of(stylizer.encoder.radius) + halo_of(stylizer.decoder.radius))
    taken = 0
    if device.type == "cpu":
        if budget is not None:
            release_freed_memory()  # what reading the photo took
            taken = resident()
        taken += result_bytes
    total = available(device) // 2 if budget is None else budget
    free = total - taken
    if tile is not None:
        sides = even(size, tile)
        needed = min(height, sides[0] + 2 * halo) * min(width, sides[1] + 2 * halo) * pixel // 2  # half is margin
        if needed > available(device):  # a system that is asked for more than it has ends the process
            raise OptionError(
                f"tiles of {sides[1]}x{sides[0]} pixels take at least {_megabytes(needed)}, "
                f"{_megabytes(available(device))} are free; take smaller ones, or --tile auto"
            )
        return Plan(sides, features <= free / 2)
    if height * width * pixel <= free:
        return one_piece(size)
    keep = features <= free / 2
    side = math.isqrt(max(0, int((free - keep * features) / pixel))) - 2 * halo
    if side < LEAST_TILE:
        needed = taken + (LEAST_TILE + 2 * halo) ** 2 * pixel
        raise OptionError(
            f"too little memory for a photo of {width}x{height}: {_megabytes(needed)} are needed, "
            f"{'--max-memory allows' if budget is not None else 'half of what is free is'} {_megabytes(total)}"
        )
    sides = even(size, side)
    largest = (sides[0] + 2 * halo) * (sides[1] + 2 * halo) * pixel
    tidy_above = max(0, total - largest) if device.type == "cpu" and budget is not None else None
    return Plan(sides, keep, tidy_above)


def one_piece(size: tuple[int, int]) -> Plan:
    """The photo as a single tile."""
    return Plan((8 * math.ceil(size[0] / 8), 8 * math.ceil(size[1] / 8)))


def _megabytes(count: float) -> str:
    return f"{math.ceil(count / 1e6)} MB"


def bytes_per_pixel(stylizer: Stylizer) -> int:
    """Peak memory of the networks for each pixel of a tile, with a margin.

    The widest place is the first block: input and output of a convolution with as many channels as conv1_1,
    and the convolution's own scratch space. Measured on the CPU: 370 to 620 bytes in bfloat16, with 64 channels.
    """
    first = next(stylizer.encoder.parameters())
    network = 6 * max(first.shape[0], 8) * first.element_size()
    finest = list(stylizer.norms.values())[-1]
    return network + (8 * finest if stylizer.conditional else 0)  # a norm works on two float32 copies


def halo_of(radius: int) -> int:
    """Features to add at each side so that ``radius`` pixels more are seen."""
    return math.ceil(radius / 8)


def even(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Sides of a tile, multiples of 8, at most ``side`` (at least 8), that divide ``size`` about evenly."""
    side = max(8, side // 8 * 8)
    height, width = (8 * math.ceil(math.ceil(s / math.ceil(s / side)) / 8) for s in size)
    return height, width


@dataclass
class Content:
    """What the first pass has found out about a photo.

    Attributes:
        moments: of each channel over all positions.
        covariance: of the channels, where it was asked for.
        features: all of them, where they are kept.
    """

    moments: Moments
    covariance: Tensor | None = None
    features: Tensor | None = field(default=None, repr=False)


@torch.inference_mode()
def measure_content(
    stylizer: Stylizer,
    picture: Picture,
    plan: Plan,
    matching: Matching = Matching(),  # noqa: B008 - frozen
    note: Note = lambda text: None,
) -> Content:
    """The first pass: moments of the whole photo, tile by tile."""
    device = next(stylizer.parameters()).device
    dtype = next(stylizer.parameters()).dtype
    cells = _cells(picture.size)
    channels = stylizer.encoder.num_channels
    parts: list[Moments] = []
    second = torch.zeros(channels, channels, dtype=torch.float64) if matching.kind == "wct" else None
    whole: Tensor | None = None

    def store() -> Tensor:
        shape = (1, channels, *cells)
        return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)

    if plan.keep and (plan.tile[0] < 8 * cells[0] or plan.tile[1] < 8 * cells[1]):
        whole = store()  # before the first tile: a hole that a tile leaves would be too small for it

    def work(w: Window) -> None:
        features = _encode(stylizer, picture, w)
        found = moments(features)
        if second is not None:
            flat = features[0].flatten(1).double()
            second.add_((flat @ flat.T).cpu())
        nonlocal whole
        if plan.keep and w.size == cells:
            whole = features
        elif plan.keep:
            if whole is None:  # a tile of everything did not fit
                whole = store()
            whole[w.index] = features
        parts.append(Moments(found.count, found.mean.double(), found.var.double()))

    _each(_windows(cells, plan.tile), work, note, plan.tidy_above)
    total = merge(*parts)
    covariance = None
    if second is not None:
        mean = total.mean.flatten().cpu()
        covariance = (second / total.count - torch.outer(mean, mean))[None].to(device)
    m = Moments(total.count, total.mean.float(), total.var.float())
    return Content(m, covariance, whole)


@torch.inference_mode()
def render(
    stylizer: Stylizer,
    picture: Picture,
    layers: Sequence[Layer],
    plan: Plan,
    *,
    matching: Matching = Matching(),  # noqa: B008 - frozen
    strength: Mask | None = None,
    luma: bool = False,
    content: Content | None = None,
    note: Note = lambda text: None,
) -> Picture:
    """The stylized photo, in the depth of the photo, with its transparency.

    With f = E(photo), T_k(f) the features with the style of layer k and w_k its share at each place:

        y = D(f + Σ w_k (T_k(f) - f)) + (1 - Σ w_k) · (photo - D(f))

    For one code and w = α that is section 7.3 of Huang and Belongie (2017); the second term gives back what
    the decoder loses of the photo where no style is, so that a strength of 0 is the photo itself.

    Args:
        picture: each side at least ``stylizer.min_size``.
        layers: at most one without a mask.
        plan: from :func:`make_plan`.
        matching: what of a style is matched.
        strength: a map that scales every layer's strength.
        luma: take over the brightness alone; the colours (chroma) stay the photo's.
        content: what :func:`measure_content` found, if it is to be shared (frames of a film).
        note: told what a user should know, such as tiles that had to be made smaller.

    Raises:
        OptionError: if EFDM is asked for and the features of the photo do not fit into memory.
    """
    out = torch.empty_like(picture.pixels, memory_format=torch.channels_last)
    if matching.kind == "efdm" and not plan.keep:
        raise OptionError("efdm needs all features of the photo at once: raise --max-memory, or take another --norm")
    if content is None:
        content = measure_content(stylizer, picture, plan, matching, note)
    cells = _cells(picture.size)
    halo = halo_of(stylizer.decoder.radius)
    whole = (8 * cells[0], 8 * cells[1])
    codes = [
        layer.style.split(stylizer.norms) if stylizer.conditional and isinstance(layer.style, StyleCode) else None
        for layer in layers
    ]
    bottleneck, *inner_norms = stylizer.norms
    known: dict[str, list[Transform]] = {
        bottleneck: [
            _transform(layer.style if code is None else code[bottleneck], content, matching, stylizer.eps)
            for layer, code in zip(layers, codes, strict=True)
        ]
    }

    def learn(name: str, found: Moments) -> None:
        """The norm of that name is settled: these are the moments of its input."""
        styles = [code[name] for code in codes if code is not None]
        known[name] = [_transform(style, Content(found), Matching(), stylizer.eps) for style in styles]

    def features_of(w: Window) -> Tensor:
        return _encode(stylizer, picture, w) if content.features is None else content.features[w.index]

    def decoded(x: Tensor, w: Window, around: Sequence[float | Tensor], until: str | None = None) -> Tensor:
        """The features of a window through all norms that are settled, and the decoder."""

        def norm(name: str, y: Tensor) -> Tensor:
            if name not in known:
                assert w.size == cells  # otherwise the passes below have settled it
                learn(name, moments(y))
            return _blended(y, w.scaled(8 // strides[name], whole), known[name], around, strides[name])

        target = _blended(x, w, known[bottleneck], around, 8)
        result: Tensor = stylizer.decoder(target, norm if inner_norms else None, until)
        return result

    strides = stylizer.decoder.strides

    def settle(tile: tuple[int, int]) -> None:
        """One pass over the photo for each norm in the decoder, for the moments of its input."""
        for name in inner_norms:
            if name in known:
                continue
            parts: list[Moments] = []

            def measure(w: Window, name: str = name, parts: list[Moments] = parts) -> None:
                outer = w.grown(halo, cells)
                around = weights_of(layers, strength, outer.scaled(8, picture.size))
                y = decoded(features_of(outer), outer, around, name)
                scale = 8 // strides[name]
                found = moments(y[w.within(outer).scaled(scale, (scale * outer.size[0], scale * outer.size[1])).index])
                parts.append(Moments(found.count, found.mean.double(), found.var.double()))

            _each(_windows(cells, tile), measure, note, plan.tidy_above)
            total = merge(*parts)
            learn(name, Moments(total.count, total.mean.float(), total.var.float()))

    def work(w: Window) -> None:
        if w.size != cells and len(known) <= len(inner_norms):
            settle((min(plan.tile[0], 8 * w.size[0]), min(plan.tile[1], 8 * w.size[1])))
        pixels = w.scaled(8, picture.size)
        shares = weights_of(layers, strength, pixels)
        covered = sum(shares[1:], shares[0])
        image = unit(picture.pixels[pixels.index])
        if _everywhere(covered, 0):
            result = image
        else:
            outer = w.grown(halo, cells)
            features = features_of(outer)
            around = weights_of(layers, strength, outer.scaled(8, picture.size))
            inner = w.within(outer).scaled(8, (8 * outer.size[0], 8 * outer.size[1]))

            def shown(x: Tensor) -> Tensor:
                x = x[inner.index]
                return x[..., : image.shape[-2], : image.shape[-1]].float().cpu()

            result = shown(decoded(features, outer, around))
            if not _everywhere(covered, 1):
                result += (1 - covered) * (image - shown(stylizer.decoder(features)))
        if luma:
            result = image + (_brightness(result.clamp(0, 1)) - _brightness(image))
        out[pixels.index] = quantized(result, out.dtype)

    _each(_windows(cells, plan.tile), work, note, plan.tidy_above)
    return replace(picture, pixels=out)


Transform = Callable[[Tensor, Window], Tensor]


def _transform(style: StyleCode | Tensor, content: Content, matching: Matching, eps: float) -> Transform:
    """The features of a window with a style."""
    if matching.kind == "moments":
        if not isinstance(style, StyleCode):
            style = code_from_moments(moments(style), eps)
        own = pool_moments(content.moments, matching.over, matching.num_groups)
        as_moments = Moments(1, style.beta, style.gamma.square())  # the variance of a code has its eps inside
        pooled = pool_moments(as_moments, matching.over, matching.num_groups)
        gamma, beta = (t.to(own.mean.device) for t in (pooled.var.sqrt(), pooled.mean))
        return lambda x, w: normalize(x, own, gamma, beta, eps)
    if not isinstance(style, Tensor):
        raise OptionError(f"{matching.kind} needs a painting, not only its code: give an image file as the style")
    style = style.to(content.moments.mean.device)
    if matching.kind == "efdm":
        assert content.features is not None
        matched = torch.empty_like(content.features)
        for c in range(0, matched.shape[1], 64):
            part = slice(c, c + 64)
            matched[:, part] = efdm(content.features[:, part].float(), style[:, part].float()).to(matched.dtype)
        return lambda x, w: matched[w.index]
    assert content.covariance is not None
    flat = style.flatten(2).double()
    target = flat.mean(-1, keepdim=True)
    centred = flat - target
    covariance = centred @ centred.mT / flat.shape[-1]
    matrix = wct_matrix(content.covariance, covariance).float()
    mean, target = content.moments.mean.flatten(2), target.float()
    return lambda x, w: (matrix @ (x.float().flatten(2) - mean) + target).view(x.shape).to(x.dtype)


def _blended(
    x: Tensor, w: Window, transforms: Sequence[Transform], shares: Sequence[float | Tensor], stride: int
) -> Tensor:
    """f + Σ w_k (T_k(f) - f), in float32 where more than one style takes part.

    Args:
        w: where ``x`` lies, in its own units, ``stride`` pixels apart.
        shares: w_k over the pixels of the window.
    """
    if len(transforms) == 1 and _everywhere(shares[0], 1):
        return transforms[0](x, w)
    total = x.float()
    for transform, share in zip(transforms, shares, strict=True):
        if isinstance(share, Tensor):
            share = _pooled(share, stride, x.shape[-2:]).to(x.device)  # noqa: PLW2901
        if not _everywhere(share, 0):
            total = total + share * (transform(x, w).float() - x.float())
    return total.to(x.dtype)


def _pooled(share: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Means of ``stride`` x ``stride`` pixels; the layers of a photo reach over its edge to a multiple of 8."""
    if stride > 1:
        share = F.avg_pool2d(share, stride, ceil_mode=True, count_include_pad=False)
    beyond = (0, size[1] - share.shape[-1], 0, size[0] - share.shape[-2])
    return F.pad(share, beyond, mode="replicate") if any(beyond) else share


def _everywhere(share: float | Tensor, value: float) -> bool:
    return bool((share == value).all()) if isinstance(share, Tensor) else share == value


def _brightness(rgb: Tensor) -> Tensor:
    """Luma of Rec. 601, (N, 1, H, W)."""
    r, g, b = rgb.unbind(1)
    return (0.299 * r + 0.587 * g + 0.114 * b).unsqueeze(1)


def _encode(stylizer: Stylizer, picture: Picture, w: Window) -> Tensor:
    """The features of a window, as they are in those of the whole photo."""
    cells = _cells(picture.size)
    outer = w.grown(halo_of(stylizer.encoder.radius), cells)
    device = next(stylizer.parameters()).device
    crop = unit(picture.pixels[outer.scaled(8, picture.size).index])
    features = stylizer.encoder(crop.to(device).contiguous(memory_format=torch.channels_last))
    return features[w.within(outer).index]


def _cells(size: tuple[int, int]) -> tuple[int, int]:
    return math.ceil(size[0] / 8), math.ceil(size[1] / 8)


def _windows(cells: tuple[int, int], tile: tuple[int, int]) -> Iterable[Window]:
    """Tiles of ``tile`` pixels in units of features, row by row."""
    rows, columns = tile[0] // 8, tile[1] // 8
    for top in range(0, cells[0], rows):
        for left in range(0, cells[1], columns):
            yield Window(top, left, min(top + rows, cells[0]), min(left + columns, cells[1]))


def _each(windows: Iterable[Window], work: Callable[[Window], None], note: Note, tidy_above: int | None = None) -> None:
    """Do the work for each window. Where memory runs out, with windows cut in four from there on."""
    waiting = deque(windows)
    while waiting:
        if tidy_above is not None and resident() > tidy_above:
            release_freed_memory()
        try:
            work(waiting[0])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or min(waiting[0].size) <= 1:
                raise
            smaller = deque(part for w in waiting for part in _quarters(w))
            height, width = smaller[0].size
            note(f"out of memory: going on with tiles of {8 * width}x{8 * height} pixels")
            waiting = smaller
            continue
        waiting.popleft()


def _quarters(w: Window) -> list[Window]:
    rows = [w.top, (w.top + w.bottom) // 2, w.bottom]
    columns = [w.left, (w.left + w.right) // 2, w.right]
    return [
        Window(top, left, bottom, right)
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(columns)
        if bottom > top and right > left
    ]
