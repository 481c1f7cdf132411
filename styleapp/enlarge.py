"""A photo reduced for the network, and the result enlarged again along the edges of the photo.

Strokes have the size that they have in pixels: on a large photo they are crumbs. Of a photo that is reduced they are
broad, and what is lost of edges the photo itself has. So where the reduced result S is, near by, a linear function of
the reduced photo I, S ≈ A I + b, it is taken for one of the photo x too (guided filter, He, Sun and Tang 2013; at low
resolution, He and Sun 2015, arXiv 1505.00996), and all else of S is enlarged as it is:

    y = up(S) + up(A) · (x - up(I))
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.images import Picture, quantized, resized, strips, unit

__all__ = ["enlarged", "reduced", "slopes"]

CPU = torch.device("cpu")

RADIUS = 2
"""Of the windows in which a result is compared with its photo: 5x5 pixels."""

EPS = 1e-3
"""Variance of a photo below which it says nothing of the result: 0.03 in [0,1] is its noise."""

STRIP = 2**19
"""Pixels that are enlarged at once: 100 MB at most."""


def reduced(picture: Picture, short_side: int, device: torch.device = CPU) -> Picture:
    """The picture with its short side at ``short_side``, which must be less than it is: bicubic, antialiased.

    Strip by strip, first across, then down: what a large picture takes of memory is little. Hidden colours must have
    been filled (:func:`styleapp.images.filled`).
    """
    height, width = picture.size
    ratio = short_side / min(height, width)
    size = [max(short_side, round(height * ratio)), max(short_side, round(width * ratio))]
    narrow = torch.empty(1, 3, height, size[1], device=device)  # in one piece: parts between the strips leave holes
    for rows in strips(picture):
        strip = unit(picture.pixels[:, :, rows].to(device))
        narrow[:, :, rows] = F.interpolate(strip, [strip.shape[2], size[1]], mode="bicubic", antialias=True)
        picture.forget()
    pixels = F.interpolate(narrow, size, mode="bicubic", antialias=True).cpu()
    alpha = None if picture.alpha is None else resized(picture.alpha, size)
    picture.forget()
    small = quantized(pixels, picture.pixels.dtype).contiguous(memory_format=torch.channels_last)
    return Picture(small, alpha, picture.metadata)


def slopes(photo: Tensor, result: Tensor, kept: float | Tensor) -> Tensor:
    """A of the module's formula: (Σ_SI + ε k) (Σ_II + ε)⁻¹ in windows around each pixel, and the mean of those near by.

    Args:
        photo, result: I and S, (1, 3, h, w) in [0,1].
        kept: k, how much of the photo is left in the result, from 0 to 1, (1, 1, h, w) or a number: what is taken for
            A where the photo is even.

    Returns:
        (1, 9, h, w), row by row. Where S is I, and k is 1, the identity.
    """
    pair = torch.cat([photo, result], 1)
    products = (pair.unsqueeze(2) * photo.unsqueeze(1)).flatten(1, 2)
    means = _mean(torch.cat([pair, products], 1))
    covariance = means[:, 6:].unflatten(1, (6, 3)) - means[:, :6].unsqueeze(2) * means[:, :3].unsqueeze(1)
    own, both = covariance.chunk(2, 1)
    one = torch.eye(3, device=photo.device)[None, :, :, None, None]
    left, right = both + EPS * (kept.unsqueeze(1) if isinstance(kept, Tensor) else kept) * one, own + EPS * one
    # By cofactors: LAPACK takes the systems one by one, and three times as long.
    r0, r1, r2 = right.unbind(1)
    columns = [torch.linalg.cross(*pair, dim=1) for pair in ((r1, r2), (r2, r0), (r0, r1))]
    determinant = (r0 * columns[0]).sum(1, keepdim=True)
    inverse = torch.stack(columns, 2) / determinant.unsqueeze(2)
    solved = sum(left[:, :, c : c + 1] * inverse[:, c : c + 1] for c in (1, 2)) + left[:, :, :1] * inverse[:, :1]
    return _mean(solved.flatten(1, 2), 1)


def enlarged(picture: Picture, small: Picture, result: Picture, kept: float | Tensor, device: torch.device) -> Picture:
    """What ``result`` is of ``small``, for ``picture``, of which ``small`` is :func:`reduced`; strip by strip.

    Args:
        kept: as for :func:`slopes`.
    """
    size, height = picture.size, small.size[0]
    out = picture.empty()
    for rows in strips(picture, max(16, STRIP // size[1])):
        x = unit(picture.pixels[:, :, rows].to(device))
        taps = {mode: _taps(rows.start, x.shape[2], height, size[0], mode) for mode in ("bicubic", "bilinear")}
        seen = slice(int(taps["bicubic"][0][0].min()), int(taps["bicubic"][0][-1].max()) + 1)
        around = slice(max(0, seen.start - RADIUS - 1), seen.stop + RADIUS + 1)  # a strip has the slopes of the whole
        photo, styled = (unit(p.pixels[:, :, around].to(device)) for p in (small, result))
        left = kept[:, :, around].to(device) if isinstance(kept, Tensor) else kept
        slope = _enlarged(slopes(photo, styled, left), taps["bilinear"], around.start, size[1], "bilinear")
        both = _enlarged(torch.cat([styled, photo], 1), taps["bicubic"], around.start, size[1], "bicubic")
        y = both[:, :3] + (slope.unflatten(1, (3, 3)) * (x - both[:, 3:]).unsqueeze(1)).sum(2)
        out[:, :, rows] = quantized(y, out.dtype).cpu()
        picture.forget()
    return replace(picture, pixels=out)


def _mean(x: Tensor, radius: int = RADIUS) -> Tensor:
    """Over windows of 2 r + 1 pixels square, reflected at the borders: shifted sums, faster than a CPU pools."""
    side, height, width = 2 * radius + 1, *x.shape[2:]
    x = F.pad(x, (radius,) * 4, mode="reflect")
    across = x[..., :width].clone()
    for k in range(1, side):
        across += x[..., k : k + width]
    total = across[..., :height, :].clone()
    for k in range(1, side):
        total += across[..., k : k + height, :]
    return total.div_(side**2)


def _taps(top: int, count: int, source: int, size: int, mode: str) -> tuple[list[Tensor], list[Tensor]]:
    """Which rows of ``source`` make ``count`` rows, from ``top`` on, of ``size``, and how much of each; as torch does.

    Returns:
        Of each tap the indices and the weights, (count,).
    """
    at = (torch.arange(top, top + count, dtype=torch.float64) + 0.5) * source / size - 0.5
    if mode == "bilinear":
        at = at.clamp(min=0)
    first = at.floor()
    t = at - first
    cubic = {offset: _cubic((t - offset).abs()) for offset in (-1, 0, 1, 2)}
    taps = {0: 1 - t, 1: t} if mode == "bilinear" else cubic
    return [(first + offset).clamp(0, source - 1).long() for offset in taps], [w.float() for w in taps.values()]


def _enlarged(x: Tensor, taps: tuple[list[Tensor], list[Tensor]], above: int, width: int, mode: str) -> Tensor:
    """Rows made of those of ``x`` by :func:`_taps`, where ``above`` rows are missing, at another width."""
    terms = [
        x[:, :, (index - above).to(x.device)] * weight.to(x.device).view(-1, 1)
        for index, weight in zip(*taps, strict=True)
    ]
    down = sum(terms[1:], terms[0])
    return F.interpolate(down, [down.shape[2], width], mode=mode)


def _cubic(d: Tensor, a: float = -0.75) -> Tensor:
    """Keys' kernel, with torch's a."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))
