"""Photos turned and shifted, and what a network makes of them: strokes shall follow the photo, not the pixels' grid."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.models.losses import equivariance_loss

__all__ = ["followed", "motion", "move", "random_motion"]

MARGIN = 24
"""Pixels at the border that are not compared: what the network makes there depends on what lies outside."""


def motion(size: int, angle: float = 0.0, down: float = 0.0, right: float = 0.0) -> Tensor:
    """A turn in radians and a shift in pixels of a square of ``size`` pixels, (1, 2, 3), for ``affine_grid``."""
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[[cos, -sin, 2 * right / size], [sin, cos, 2 * down / size]]])


def random_motion(size: int, cell: int = 8) -> Tensor:
    """Half of them shift by whole pixels, up to ``cell``, the rest turn by up to 45 degrees besides."""
    turns, angle, *shifts = torch.rand(4).tolist()
    down, right = (round((2 * shift - 1) * cell) for shift in shifts)
    return motion(size, (angle - 0.5) * math.pi / 2 if turns < 0.5 else 0.0, down, right)


def move(image: Tensor, moved: Tensor) -> Tensor:
    """``image``, (N, C, H, H), in the motion ``moved``, bicubic; what comes in is reflected."""
    grid = F.affine_grid(moved.to(image.device), [1, 1, *image.shape[-2:]], align_corners=False)
    grid = grid.expand(len(image), -1, -1, -1)
    return F.grid_sample(image.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def followed(photo: Tensor, picture: Tensor, moved: Tensor, stylize: Callable[[Tensor], Tensor]) -> Tensor:
    """:func:`styleapp.models.losses.equivariance_loss` of the moved picture and the picture of the moved photo. (N·k,).

    Only ``picture`` gets gradients: the other one costs a pass forward.

    Args:
        photo: (N, 3, H, H).
        picture: (N·k, 3, H, H), what the network makes of the photos.
        moved: of :func:`motion` or :func:`random_motion`.
        stylize: the network, from photos to their pictures of at least that size.
    """
    height, width = photo.shape[-2:]
    with torch.no_grad():
        other = stylize(move(photo, moved).clamp(0, 1))[..., :height, :width]
        kept = torch.zeros_like(photo[:1, :1], dtype=torch.float32)
        kept[..., MARGIN : height - MARGIN, MARGIN : width - MARGIN] = 1
        inside = kept * (move(kept, moved) > 0.5)
    return equivariance_loss(move(picture, moved), other, inside)
