"""The losses of the AdaIN paper (Huang and Belongie 2017, section 5.2), and two against patterns of the pixel grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from styleapp.models.stylizer import StyleCode

__all__ = ["content_loss", "equivariance_loss", "grid_loss", "range_loss", "style_loss"]


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Mean squared error to the AdaIN target at relu4_1 (eq. 12 with a mean in place of the norm). (N,)."""
    return (features.float() - target.float()).square().mean((1, 2, 3))


def style_loss(found: Sequence[StyleCode], wanted: Sequence[StyleCode]) -> Tensor:
    """Σ over layers of MSE(means) + MSE(standard deviations), σ = sqrt(var + ε) (eq. 13). (N,).

    Args:
        found, wanted: codes of the picture and of the painting at relu1_1, relu2_1, relu3_1, relu4_1.
    """
    terms = [
        (f.beta - w.beta).square().mean((1, 2, 3)) + (f.gamma - w.gamma).square().mean((1, 2, 3))
        for f, w in zip(found, wanted, strict=True)
    ]
    return sum(terms[1:], terms[0])


def range_loss(picture: Tensor) -> Tensor:
    """Mean of (y - clamp(y))²: what a picture has beyond black and white. (N,).

    The other losses are of what is shown, clamp(y), where a pixel beyond has no gradient: this one brings it back.
    """
    image = picture.float()
    return (image - image.clamp(0, 1)).square().mean((1, 2, 3))


def grid_loss(picture: Tensor, periods: Sequence[int] = (4, 8), window: int = 17, eps: float = 0.01) -> Tensor:
    """How much of a picture's fine detail is tied to the grid of the encoder's 8x8 pixels, or of half of that. (N,).

    For a period p let h be a channel less its mean over (p + 1)², g = h / sqrt(mean of h² over window² + eps²) the same
    with equal contrast everywhere, and E g the mean over all places of one phase, one of p² within a cell of the grid:

        mean_phase (E g)² / mean g²  +  var_phase (E g²) / (mean g²)²

    averaged over channels and periods. A pattern that is the same in each cell shows in the first term, one that is
    stronger at some places of a cell than at others in the second; detail that knows nothing of the grid has both near
    0. A decoder that lacks texture finds it cheaply in dots and dashes at the same place of a cell, and the style loss
    alone does not mind. Contrast is made equal because one sees them first where a picture is calm. (Ours; not of the
    paper.)
    """
    image = picture.float()
    values = [_tied(_equalised(image - _local_mean(image, p + 1), window, eps), p) for p in periods]
    return torch.stack(values).mean((0, 2))


def equivariance_loss(
    picture: Tensor, other: Tensor, inside: Tensor | None = None, window: int = 17, eps: float = 0.01
) -> Tensor:
    """How much the fine detail of two pictures of the same thing differs. (N,).

    With h a channel less its mean over 9² and g = h / sqrt(mean of h² over window² + eps²), as in :func:`grid_loss`:

        mean (g - g')² / 2

    0 for the same detail, 1 for details that know nothing of each other. For T a turn or a shift, T(f(photo)) against
    f(T(photo)) shows how much of what a network f draws follows the photo; the rest follows the grid of the pixels, as
    dots, dashes and weaves do at any period and any place. (Ours; not of the paper.)

    Args:
        picture, other: (N, C, H, W).
        inside: (1, 1, H, W), 1 where to compare and 0 elsewhere; None for all places.
    """
    g, h = (_equalised(x - _local_mean(x, 9), window, eps) for x in (picture.float(), other.float()))
    difference = (g - h).square().mean(1, keepdim=True) / 2
    if inside is None:
        return difference.mean((1, 2, 3))
    return (difference * inside).sum((1, 2, 3)) / inside.sum().clamp_min(1)


def _equalised(detail: Tensor, window: int, eps: float) -> Tensor:
    return detail * (_local_mean(detail.square(), window) + eps**2).rsqrt()


def _local_mean(x: Tensor, size: int) -> Tensor:
    """Over size², at the border over what there is. Two products of matrices: at 192² 4 times as fast as pooling."""
    height, width = (_windows(count, size, x) for count in x.shape[-2:])
    return height @ x @ width.mT


def _windows(count: int, size: int, like: Tensor) -> Tensor:
    """(count, count): in row i what each of ``count`` places has of the mean over ``size`` places around i."""
    places = torch.arange(count, device=like.device)
    near = ((places[:, None] - places).abs() <= size // 2).to(like.dtype)
    return near / near.sum(1, keepdim=True)


def _tied(detail: Tensor, period: int, least: float = 1e-6) -> Tensor:
    """The formula of :func:`grid_loss` for one period, (N, C)."""
    n, c, height, width = detail.shape
    rows, columns = height // period, width // period
    cells = detail[..., : rows * period, : columns * period].reshape(n, c, rows, period, columns, period)
    energy = cells.square().mean((2, 4))
    whole = energy.mean((2, 3)) + least
    return cells.mean((2, 4)).square().mean((2, 3)) / whole + energy.var((2, 3), correction=0) / whole.square()
