"""A photo reduced for the network, and the result enlarged again along the edges of the photo.

Strokes have the size that they have in pixels: on a large photo they are crumbs. Of a photo that is reduced they are
broad, and what is lost of edges the photo itself has. So where the reduced result S is, near by, a linear function of
the reduced photo I, S ≈ A I + b, it is taken for one of the photo x too (guided filter, He, Sun and Tang 2013; at low
resolution, He and Sun 2015, arXiv 1505.00996), and all else of S is enlarged as it is:

    y = up(S) + up(A) · (x - up(I))
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

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

MODES = ("bicubic", "bilinear")
"""In which pictures and slopes are enlarged."""

BAND = 64
"""Rows, or columns, that one product of matrices makes: of longer ones most numbers are zeros."""


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
    both = torch.cat([photo, result], 1)
    products = (both.unsqueeze(2) * photo.unsqueeze(1)).flatten(1, 2)
    means = _mean(torch.cat([both, products], 1))
    covariance = means[:, 6:].unflatten(1, (6, 3)) - means[:, :6].unsqueeze(2) * means[:, :3].unsqueeze(1)
    own, common = covariance.chunk(2, 1)
    one = torch.eye(3, device=photo.device)[None, :, :, None, None]
    left = common + EPS * (kept.unsqueeze(1) if isinstance(kept, Tensor) else kept) * one
    inverse = _inverse(own + EPS * one)
    solved = left[:, :, :1] * inverse[:, :1]
    for k in (1, 2):
        solved.addcmul_(left[:, :, k : k + 1], inverse[:, k : k + 1])
    return _mean(solved.flatten(1, 2), 1)


def _inverse(m: Tensor) -> Tensor:
    """Of symmetric matrices (1, 3, 3, h, w), by cofactors: LAPACK takes them one by one, and three times as long."""
    (a, b, c), (d, e), f = m[:, 0].unbind(1), m[:, 1, 1:].unbind(1), m[:, 2, 2]
    across = [d * f - e * e, c * e - b * f, b * e - c * d]
    below = [a * f - c * c, b * c - a * e, a * d - b * b]
    cofactors = torch.stack([*across, across[1], *below[:2], across[2], below[1], below[2]], 1)
    determinant = a * across[0] + b * across[1] + c * across[2]
    return cofactors.div_(determinant.unsqueeze(1)).unflatten(1, (3, 3))


def enlarged(picture: Picture, small: Picture, result: Picture, kept: float | Tensor, device: torch.device) -> Picture:
    """What ``result`` is of ``small``, for ``picture``, of which ``small`` is :func:`reduced`; strip by strip.

    Args:
        kept: as for :func:`slopes`.
    """
    size, out = picture.size, picture.empty()
    down, across = ({mode: _taps(*pair, mode) for mode in MODES} for pair in zip(small.size, size, strict=True))
    columns = {mode: _bands(taps, 0, size[1]) for mode, taps in across.items()}
    most = STRIP if device.type == "cpu" else 4 * STRIP  # a GPU has no cache to stay in, and waits for small parts
    for strip in strips(picture, max(16, most // size[1])):
        x = unit(picture.pixels[:, :, strip].to(device))
        rows = {mode: _bands(taps, strip.start, strip.start + x.shape[2]) for mode, taps in down.items()}
        seen = slice(rows["bicubic"][0].seen.start, rows["bicubic"][-1].seen.stop)
        around = slice(max(0, seen.start - RADIUS - 1), seen.stop + RADIUS + 1)  # a strip has the slopes of the whole
        photo, styled = (unit(p.pixels[:, :, around].to(device)) for p in (small, result))
        left = kept[:, :, around].to(device) if isinstance(kept, Tensor) else kept
        slope, y, low = (
            _enlarged(part, around.start, rows[mode], columns[mode], mode)
            for part, mode in ((slopes(photo, styled, left), "bilinear"), (styled, "bicubic"), (photo, "bicubic"))
        )
        apart = x - low
        for k in range(3):
            y.addcmul_(slope[:, k::3], apart[:, k : k + 1])
        out[:, :, strip] = quantized(y, out.dtype).cpu()
        picture.forget()
    return replace(picture, pixels=out)


def _mean(x: Tensor, radius: int = RADIUS) -> Tensor:
    """Over windows of 2 r + 1 pixels square, reflected at the borders: shifted sums, faster than a CPU pools."""
    side, height, width = 2 * radius + 1, *x.shape[2:]
    x = F.pad(x, (radius,) * 4, mode="reflect")
    across = x[..., :width] + x[..., 1 : width + 1]
    for k in range(2, side):
        across += x[..., k : k + width]
    total = across[..., :height, :] + across[..., 1 : height + 1, :]
    for k in range(2, side):
        total += across[..., k : k + height, :]
    return total.div_(side**2)


class Band(NamedTuple):
    """Some rows of an enlarged picture: ``matrix`` times those that are ``seen`` of the small one.

    Attributes:
        made: which rows, counted from the first of all bands.
        seen: rows of the small picture.
        matrix: (rows that are made, rows that are seen).
    """

    made: slice
    seen: slice
    matrix: Tensor


def _taps(source: int, size: int, mode: str) -> tuple[Tensor, Tensor]:
    """Which of ``source`` rows make each of ``size``, and how much of each, as torch enlarges: (size, taps) both."""
    at = (torch.arange(size, dtype=torch.float64) + 0.5) * source / size - 0.5
    if mode == "bilinear":
        at = at.clamp(min=0)
    first = at.floor()
    t = at - first
    cubic = {offset: _cubic((t - offset).abs()) for offset in (-1, 0, 1, 2)}
    taps = {0: 1 - t, 1: t} if mode == "bilinear" else cubic
    index = torch.stack([(first + offset).clamp(0, source - 1) for offset in taps], 1).long()
    return index, torch.stack(list(taps.values()), 1).float()


def _bands(taps: tuple[Tensor, Tensor], start: int, stop: int) -> list[Band]:
    """The rows from ``start`` to ``stop``, :data:`BAND` at a time."""
    bands = []
    for top in range(start, stop, BAND):
        index, weights = (t[top : min(top + BAND, stop)] for t in taps)
        seen = slice(int(index[0, 0]), int(index[-1, -1]) + 1)
        matrix = torch.zeros(len(index), seen.stop - seen.start).scatter_add_(1, index - seen.start, weights)
        bands.append(Band(slice(top - start, top - start + len(index)), seen, matrix))
    return bands


def _enlarged(x: Tensor, above: int, rows: list[Band], columns: list[Band], mode: str) -> Tensor:
    """The picture that rows and columns make of ``x``, above which ``above`` rows are missing."""
    height, width = rows[-1].made.stop, columns[-1].made.stop
    if not x.is_cpu:
        wide = F.interpolate(x, [x.shape[2], width], mode=mode)
        parts = [r.matrix.to(x.device) @ wide[:, :, r.seen.start - above : r.seen.stop - above] for r in rows]
        return torch.cat(parts, 2)
    flat = x.flatten(0, 2)
    across = x.new_empty(flat.shape[0], width)
    for made, seen, matrix in columns:  # three times as fast as torch, which takes 16 taps for what has 4
        torch.mm(flat[:, seen], matrix.T, out=across[:, made])
    out = x.new_empty(*x.shape[:2], height, width)
    for made, seen, matrix in rows:
        below = slice(seen.start - above, seen.stop - above)
        for channel, place in zip(across.view(*x.shape[1:3], width), out[0], strict=True):
            torch.mm(matrix, channel[below], out=place[made])
    return out


def _cubic(d: Tensor, a: float = -0.75) -> Tensor:
    """Keys' kernel, with torch's a."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))
