"""Stylize in tiles of bounded memory, with the result of stylizing in one piece.

A norm needs the photo only through moments over the whole of it. The first pass encodes tile by tile and
merges their moments; the second normalises and decodes tile by tile with the moments of the whole. Tiles
lie on multiples of 8 pixels, the encoder's pooling, and carry a halo as wide as the networks see, so that
a tile holds the very numbers that the whole would. One tile that covers the photo is the plain case. Norms
inside the decoder take a pass each, see :mod:`styleapp.passes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from styleapp.controls import Layer, Mask, Matching, Window, weights_of
from styleapp.errors import OptionError
from styleapp.images import Picture, quantized, unit
from styleapp.models import StyleCode, Stylizer, unshifted
from styleapp.passes import (
    Content,
    Norms,
    Passes,
    Seen,
    Steady,
    Transform,
    in_units,
    measure_content,
    pooled,
    transform,
)
from styleapp.tiles import Note, Plan, cells_of, each, windows

__all__ = ["Content", "Progress", "brightness", "measure_content", "render"]

Progress = Callable[[float], None]
"""Told the share of the work that is done, from 0 to 1."""


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
    steady: Sequence[Steady] = (),
    note: Note = lambda text: None,
    progress: Progress = lambda share: None,
) -> Picture:
    """The stylized photo, in the depth of the photo, with its transparency.

    With f = E(photo), T_k(f) the features with the style of layer k and w_k its share at each place:

        y = D(f + Σ w_k (T_k(f) - f)) + (1 - Σ w_k) · (photo - D(f))

    and so for every layer of the encoder that the decoder sees, each with a T_k of its own. For one code and w = α that
    is section 7.3 of Huang and Belongie (2017); the second term gives back what the decoder loses of the photo where no
    style is, so that a strength of 0 is the photo itself. What a code tells the decoder's convolutions is shared out
    alike: Σ w_k β_k is added to what they give.

    A network with norms inside its decoder paints one picture S_k for each layer, which is laid over the photo:

        y = photo + Σ w_k (S_k - photo),  S_k clamped to [0,1]

    rounded to the depth of the photo after each layer. Its codes are no way from the photo to a style: halfway lie
    inputs that no layer was trained for, and glaring colours that are neither the photo's nor the painting's.

    Args:
        picture: each side at least ``stylizer.min_size``.
        layers: at most one without a mask.
        plan: from :func:`make_plan`.
        matching: what of a style is matched.
        strength: a map that scales every layer's strength.
        luma: take over the brightness alone; the colours (chroma) stay the photo's.
        content: what :func:`measure_content` found, if it is to be shared (frames of a film).
        steady: for each layer, what is shared of the moments at the norms inside the decoder.
        note: told what a user should know, such as tiles that had to be made smaller.
        progress: called after each tile of each pass with the share of the work that is done, up to 1. What it raises
            ends the work.

    Raises:
        OptionError: if EFDM is asked for and the features of the photo do not fit into memory.
    """
    out, device = picture.empty(), next(stylizer.parameters()).device
    if matching.kind == "efdm" and (plan.keep_on_disk or not plan.keep):
        raise OptionError("efdm needs all features of the photo at once: raise --max-memory, or take another --norm")
    cells = cells_of(picture.size)
    pictures = sum(layer.alpha > 0 for layer in layers) if stylizer.conditional else 1
    in_tiles = not plan.covers(picture.size)
    count = (content is None) + pictures * (len(stylizer.norms) if in_tiles else 1)  # passes over the photo
    forget = [picture.forget]
    done = _after_tile(forget, progress, count * cells[0] * cells[1])
    if content is None:
        content = measure_content(stylizer, picture, plan, matching, note, done)
    forget.append(content.forget)
    seen = Seen(stylizer, picture, content)

    def shares_of(w: Window) -> list[float | Tensor]:
        return weights_of(layers, strength, w.scaled(8, picture.size))

    if not stylizer.conditional:
        last = stylizer.encoder.last
        parts = [
            s.to(device).split(stylizer.parts) if isinstance(s := layer.style, StyleCode) else s for layer in layers
        ]

        def norm(layer: str, found: Content, matching: Matching) -> Transform:
            transforms = [transform(stylizer, layer, of_style[layer], found, matching) for of_style in parts]
            stride = stylizer.encoder.stride_of(layer)

            def styled(x: Tensor, w: Window) -> Tensor:
                shares = shares_of(w)
                if len(shares) == 1 and _everywhere(shares[0], 1):
                    return transforms[0](x, w)
                return _blended(stylizer.as_floats(layer, x), transforms, shares, w, stride)

            return styled

        told = [stylizer.told(of_style) for of_style in parts]
        norms = Norms(
            stylizer,
            picture,
            norm(last, content, matching),
            {},
            besides={
                name: norm(name, Content(content.besides[name]), matching.above(channels))
                for name, channels in stylizer.besides.items()
            },
            shifts=lambda w: _shifts(told, shares_of(w), stylizer.decoder.strides, w),
        )
        passes = Passes(stylizer, norms, plan, seen)
        _paint(passes, shares_of, slice(None), luma, picture.pixels, out, note, done)
    for k, layer in enumerate(layers if stylizer.conditional else []):
        if not isinstance(layer.style, StyleCode):
            raise OptionError("a conditional network takes codes, not the features of a painting")
        (_, bottleneck), *inside = layer.style.split(stylizer.norms).items()
        first = transform(stylizer, stylizer.encoder.last, unshifted(bottleneck), content, matching)
        int8 = stylizer.int8_decoder(layer.style) if picture.pixels.dtype == torch.uint8 else None
        if int8 is not None:
            first = in_units(int8, stylizer.encoder.last, content.moments)
        norms = Norms(stylizer, picture, first, dict(inside), *steady[k : k + 1], int8=int8)
        passes = Passes(stylizer, norms, plan, seen)
        _paint(passes, shares_of, slice(k, k + 1), luma, out if k else picture.pixels, out, note, done)
    return replace(picture, pixels=out)


def _paint(
    passes: Passes,
    shares_of: Callable[[Window], list[float | Tensor]],
    which: slice,
    luma: bool,
    below: Tensor,
    out: Tensor,
    note: Note,
    done: Callable[[Window], None],
) -> None:
    """One decoding of the photo for some of the layers, which shows over what is ``below`` as far as they do."""
    stylizer, picture = passes.stylizer, passes.seen.picture
    device = next(stylizer.parameters()).device

    def work(w: Window) -> None:
        pixels = w.scaled(8, picture.size)
        shares, under = shares_of(w)[which], below[pixels.index]
        share = sum(shares[1:], shares[0])
        if _everywhere(share, 0):
            if below is not out:
                out[pixels.index] = under
            return
        passes.settle_open(w, note, done)
        result = passes.decoded(w)
        partly = not _everywhere(share, 1)
        if isinstance(share, Tensor):
            share = share.to(device)
        if luma or partly:
            image = unit(picture.pixels[pixels.index].to(device))
        if partly and not stylizer.conditional:
            result += (1 - share) * (image - passes.plain(w))
        if luma:
            result = image + (brightness(result.clamp(0, 1)) - brightness(image))
        if partly and stylizer.conditional:
            result = unit(under.to(device)) + share * (result.clamp(0, 1) - image)
        out[pixels.index] = quantized(result, out.dtype).cpu()

    each(windows(passes.cells, passes.plan.tile), work, note, passes.plan.tidy_above, done)


def _after_tile(forget: Sequence[Callable[[], None]], progress: Progress, total: int) -> Callable[[Window], None]:
    """What to call with each window that is ready, of so many features in all passes."""
    worked = 0

    def done(w: Window) -> None:
        nonlocal worked
        for hand_back in forget:
            hand_back()
        worked += w.size[0] * w.size[1]
        progress(min(1.0, worked / total))

    return done


def _blended(
    x: Tensor, transforms: Sequence[Transform], shares: Sequence[float | Tensor], w: Window, stride: int
) -> Tensor:
    """f + Σ w_k (T_k(f) - f), in float32 where more than one style takes part.

    Args:
        x: the features of ``w``.
        shares: w_k over the pixels of the window.
        stride: pixels between features.
    """
    blended = x.float()
    for styled, share in zip(transforms, shares, strict=True):
        if isinstance(share, Tensor):
            share = pooled(share, stride, x.shape[-2:]).to(x.device)  # noqa: PLW2901
        if not _everywhere(share, 0):
            blended = blended + share * (styled(x, w).float() - x.float())
    return blended.to(x.dtype)


def _shifts(
    told: Sequence[Mapping[str, Tensor]], shares: Sequence[float | Tensor], strides: Mapping[str, int], w: Window
) -> dict[str, Tensor]:
    """Σ w_k β_k for each convolution that is told something: one for all places, or a map of the window."""
    found = {}
    for name in told[0]:
        stride = strides[name]
        size = [8 // stride * cells for cells in w.size]
        terms = [
            betas[name] * (pooled(share, stride, size).to(betas[name].device) if isinstance(share, Tensor) else share)
            for betas, share in zip(told, shares, strict=True)
        ]
        found[name] = sum(terms[1:], terms[0])
    return found


def _everywhere(share: float | Tensor, value: float) -> bool:
    return bool((share == value).all()) if isinstance(share, Tensor) else share == value


def brightness(rgb: Tensor) -> Tensor:
    """Luma of Rec. 601, (N, 1, H, W)."""
    r, g, b = rgb.unbind(1)
    return (0.299 * r + 0.587 * g + 0.114 * b).unsqueeze(1)
