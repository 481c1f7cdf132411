"""What a user asks for, as algebra on codes: weights of styles, masks, colours, the statistics that are matched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Literal

import torch
from torch import Tensor

from styleapp.errors import ImageError, OptionError, unknown_name
from styleapp.images import Picture, quantized, strips, unit
from styleapp.models import StyleCode
from styleapp.norms import Over, feather, ot_matrix, wct_matrix
from styleapp.options import NORM_EXAMPLES, NORM_NAMES

__all__ = [
    "Layer",
    "Mask",
    "Matching",
    "Window",
    "blended",
    "check_mask",
    "colour_statistics",
    "match_colours",
    "match_histograms",
    "normalized",
    "parse_norm",
    "weights_of",
]


def normalized(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1.

    Raises:
        OptionError: for a negative weight, one that is no number, or if all are 0.
    """
    if any(not math.isfinite(w) or w < 0 for w in weights) or sum(weights) <= 0:
        raise OptionError(f"weights must be 0 or more, at least one above 0, got {', '.join(map(str, weights))}")
    return [w / sum(weights) for w in weights]


# What is matched


COVARIANCE = {"wct": wct_matrix, "ot": ot_matrix}
"""Ways of taking on the full covariance: the matrix for the covariances of content and style."""


@dataclass(frozen=True)
class Matching:
    """How content takes on a style: the moments over some axes, the full covariance, or every value.

    Attributes:
        kind: "moments" (AdaIN and its kin), one of :data:`COVARIANCE`, or "efdm".
        over, num_groups: of the moments, as for :func:`styleapp.norms.statistics`.
    """

    kind: Literal["moments", "wct", "ot", "efdm"] = "moments"
    over: Over = "instance"
    num_groups: int | None = None

    def above(self, num_channels: int) -> Matching:
        """What is matched at a layer above, of so many channels: always moments, of as many groups at most as fit."""
        if self.kind != "moments" or self.num_groups is None:
            return self if self.kind == "moments" else Matching()
        fitting = (n for n in range(min(self.num_groups, num_channels), 0, -1) if num_channels % n == 0)
        return replace(self, num_groups=next(fitting))


def parse_norm(text: str, num_channels: int) -> Matching:
    """One of :data:`styleapp.options.NORM_NAMES`; "cin", "in" and "decoder:bn" match each channel, as "adain" does.

    Raises:
        OptionError: for anything else, or groups that do not divide the channels.
    """
    name, _, argument = text.partition(":")
    if name not in NORM_NAMES or (argument and name not in ("adagn", "decoder")):
        raise unknown_name("norm", text, NORM_EXAMPLES)
    more = {"wct": Matching("wct"), "ot": Matching("ot"), "efdm": Matching("efdm")}
    if name in more:
        return more[name]
    if name != "adagn":
        over: dict[str, Over] = {"adaln": "layer", "adabn": "batch"}
        return Matching(over=over.get(name, "instance"))
    groups = int(argument) if argument.isdigit() else 0
    if not groups or num_channels % groups:
        raise OptionError(f"adagn takes a number of groups that divides {num_channels}, such as adagn:32; got {text!r}")
    return Matching(over="group", num_groups=groups)


# Where it is laid on


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels or of features: rows top to bottom, columns left to right, the ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    @property
    def index(self) -> tuple[EllipsisType, slice, slice]:
        """To index the last two dims of a tensor."""
        return ..., slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, by: int, size: tuple[int, int]) -> Window:
        """With ``by`` more at each side, but not beyond a whole of ``size``."""
        return Window(
            max(0, self.top - by),
            max(0, self.left - by),
            min(size[0], self.bottom + by),
            min(size[1], self.right + by),
        )

    def scaled(self, factor: int, size: tuple[int, int]) -> Window:
        """In units ``factor`` times finer, within a whole of ``size``."""
        bottom, right = min(size[0], self.bottom * factor), min(size[1], self.right * factor)
        return Window(self.top * factor, self.left * factor, bottom, right)

    def within(self, outer: Window) -> Window:
        """The same place counted from the corner of ``outer``."""
        return Window(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)


@dataclass(frozen=True)
class Mask:
    """How much of something there is at each pixel.

    Attributes:
        values: (1, 1, H, W) of the photo's size: uint8, uint16, or float in [0,1].
        feather: standard deviation of the Gaussian that softens its borders, in pixels.
    """

    values: Tensor
    feather: float = 0.0

    def window(self, w: Window) -> Tensor:
        """float32 in [0,1], (1, 1, h, w): softened over the whole mask, computed for this window alone."""
        if self.feather <= 0:
            return unit(self.values[w.index])
        height, width = self.values.shape[-2:]
        outer = w.grown(max(1, round(3 * self.feather)), (height, width))
        soft = feather(unit(self.values[outer.index]), self.feather)
        return soft[w.within(outer).index]


@dataclass(frozen=True)
class Layer:
    """One style on the photo, or on a region of it.

    Attributes:
        style: its code; or, where more than moments is matched, its parts by the names of their layers, with the
            features of the painting, (1, C, h, w), for that at the last layer of the encoder.
        alpha: strength in [0,1].
        mask: where; None for the rest, that is, where no mask of another layer is.
    """

    style: StyleCode | Mapping[str, StyleCode | Tensor]
    alpha: float = 1.0
    mask: Mask | None = None


def weights_of(layers: Sequence[Layer], strength: Mask | None, w: Window) -> list[float | Tensor]:
    """The share of each layer at each pixel of a window: its mask times its strength.

    Masks that overlap are divided by their sum where that is above 1; what they leave free belongs to the
    layers without a mask, of which there is at most one. A share is a number where it is the same everywhere.
    """
    masks = [layer.mask.window(w) for layer in layers if layer.mask is not None]
    total = sum(masks[1:], masks[0]) if masks else None
    shares: list[float | Tensor] = []
    for layer in layers:
        share: float | Tensor = 1.0
        if total is not None and layer.mask is None:
            share = (1 - total).clamp_min(0)
        elif total is not None:
            share = masks.pop(0) / total.clamp_min(1)
        share = share * layer.alpha
        shares.append(share if strength is None else share * strength.window(w))
    return shares


# Colours


def colour_statistics(picture: Picture) -> tuple[Tensor, Tensor]:
    """Mean (1, 3, 1) and covariance (1, 3, 3) of the colours that show, float64, read in strips."""
    count, total, products = 0.0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    weight = picture.weight
    for rows in strips(picture):
        x = unit(picture.pixels[:, :, rows]).flatten(2)[0].double()
        w = torch.ones_like(x[0]) if weight is None else unit(weight[:, :, rows]).flatten().double()
        count += float(w.sum())
        total += (x * w).sum(1)
        products += (x * w) @ x.T
    mean = total / count
    return mean.view(1, 3, 1), (products / count - torch.outer(mean, mean))[None]


def match_colours(picture: Picture, wanted: tuple[Tensor, Tensor]) -> Picture:
    """The picture with the mean and covariance of colours that are ``wanted``, as :func:`colour_statistics` gives them.

    CORAL (Sun et al. 2016): the linear map Σ_wanted^½ · Σ_own^-½, which keeps what is light light and what
    is red as red as can be.
    """
    mean, own = colour_statistics(picture)
    matrix = wct_matrix(own, wanted[1])[0].float()
    offset = (wanted[0][0] - matrix.double() @ mean[0]).float()

    def strip(values: Tensor) -> Tensor:
        x = unit(values)
        return (matrix @ x.flatten(2) + offset).view(x.shape)

    return _by_strips(picture, strip)


def match_histograms(picture: Picture, like: Picture) -> Picture:
    """The picture with, in each channel, the distribution of values of ``like`` (to 1/1024)."""
    bins = 1024

    def cumulative(p: Picture) -> Tensor:
        counts = torch.zeros(3, bins, dtype=torch.float64)
        weight = p.weight
        for rows in strips(p):
            index = (unit(p.pixels[:, :, rows])[0].flatten(1) * (bins - 1)).round().long()
            w = None if weight is None else unit(weight[:, :, rows]).flatten().double()
            for c in range(3):
                counts[c] += torch.bincount(index[c], w, minlength=bins)
        # the middle of each bin's share: a picture matched with itself stays as it is
        return (counts.cumsum(1) - counts / 2) / counts.sum(1, keepdim=True)

    own, wanted = cumulative(picture), cumulative(like)
    grid = torch.linspace(0, 1, bins, dtype=torch.float64)
    curves = torch.stack([_interpolate(own[c], wanted[c], grid) for c in range(3)]).float()

    def strip(values: Tensor) -> Tensor:
        index = (unit(values)[0].flatten(1) * (bins - 1)).round().long()
        return curves.gather(1, index).view(values.shape)

    return _by_strips(picture, strip)


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The piecewise linear function through (x, y), x rising, at ``at``."""
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    left = right - 1
    share = ((at - x[left]) / (x[right] - x[left]).clamp_min(1e-12)).clamp(0, 1)
    return y[left] + share * (y[right] - y[left])


def blended(a: Picture, b: Picture, share: Mask) -> Picture:
    """``a`` where ``share`` is 0, ``b`` where it is 1."""
    out = a.empty()
    for rows in strips(a):
        window = Window(rows.start, 0, min(rows.stop, a.size[0]), a.size[1])
        out[:, :, rows] = quantized(
            unit(a.pixels[:, :, rows]).lerp(unit(b.pixels[:, :, rows]), share.window(window)), out.dtype
        )
    return replace(a, pixels=out)


def _by_strips(picture: Picture, change: object) -> Picture:
    assert callable(change)
    out = torch.empty_like(picture.pixels, memory_format=torch.channels_last)
    for rows in strips(picture):
        out[:, :, rows] = quantized(change(picture.pixels[:, :, rows]), out.dtype)
    return replace(picture, pixels=out)


def check_mask(mask: Picture, name: str) -> Tensor:
    """The values of a grey picture as a mask, (1, 1, H, W): its transparency if it has one, else its brightness.

    Raises:
        ImageError: for a mask that is black everywhere.
    """
    values = mask.alpha if mask.alpha is not None and int(mask.alpha.min()) < int(mask.alpha.max()) else None
    if values is None:
        values = quantized(mask.rgb.mean(1, keepdim=True), torch.uint8)
    if not bool((values > 0).any()):
        raise ImageError(f"{name}: the mask is empty (black everywhere)")
    return values
