"""Photos turned and shifted, and what a network makes of them: strokes shall follow the photo, not the pixels' grid."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.models.losses import equivariance_loss

__all__ = ["draw_move", "followed", "move"]

MARGIN = 24
"""Pixels at the border that are not compared: what the network makes there depends on what lies outside."""


def draw_move(size: int, device: torch.device | str = "cpu", cell: int = 8) -> Tensor:
    """A random motion of a square of ``size`` pixels, (1, 2, 3), as ``torch.nn.functional.affine_grid`` takes it.

    Half of them shift by whole pixels, up to ``cell``, the rest turn by up to 45 degrees besides.
    """
    turns, angle, down, right = torch.rand(4).tolist()
    angle = (angle - 0.5) * math.pi / 2 if turns < 0.5 else 0.0
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = (2 / size * round((2 * shift - 1) * cell) for shift in (right, down))
    return torch.tensor([[[cos, -sin, x], [sin, cos, y]]], device=device)


def move(image: Tensor, motion: Tensor) -> Tensor:
    """``image``, (N, C, H, H), moved by a motion of :func:`draw_move`, bicubic; what comes in is reflected."""
    grid = F.affine_grid(motion, [1, 1, *image.shape[-2:]], align_corners=False)
    grid = grid.expand(len(image), -1, -1, -1)
    return F.grid_sample(image.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def followed(photo: Tensor, picture: Tensor, motion: Tensor, stylize: Callable[[Tensor], Tensor]) -> Tensor:
    """:func:`styleapp.models.losses.equivariance_loss` of the moved picture and the picture of the moved photo. (N·k,).

    Only ``picture`` gets gradients: the other one costs a pass forward.

    Args:
        photo: (N, 3, H, H).
        picture: (N·k, 3, H, H), what the network makes of the photos.
        motion: of :func:`draw_move`.
        stylize: the network, from photos to their pictures of at least that size.
    """
    height, width = photo.shape[-2:]
    with torch.no_grad():
        other = stylize(move(photo, motion).clamp(0, 1))[..., :height, :width]
        kept = torch.zeros_like(photo[:1, :1], dtype=torch.float32)
        kept[..., MARGIN : height - MARGIN, MARGIN : width - MARGIN] = 1
        inside = kept * (move(kept, motion) > 0.5)
    return equivariance_loss(move(picture, motion), other, inside)
