"""The losses of the AdaIN paper (Huang and Belongie 2017, section 5.2), and one against regular grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from styleapp.models.stylizer import StyleCode

__all__ = ["content_loss", "grid_loss", "style_loss"]


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


def grid_loss(picture: Tensor, period: int = 8, eps: float = 1e-6) -> Tensor:
    """How much of a picture's fine detail h repeats on the grid of the encoder's 8x8 pixels. (N,).

    With h the grey picture less its local mean, and E_p the mean over all places of phase p, one of ``period``² within
    a cell of the grid:

        mean_p (E_p h)² / E h²  +  var_p (E_p h²) / (E h²)²

    A pattern that is the same in each cell shows in the first term, one that is stronger at some places of a cell than
    at others in the second. Detail that knows nothing of the grid has both near 0. A decoder that lacks texture finds
    it cheaply in the borders of cells, and the style loss alone does not mind. (Ours; not of the paper.)
    """
    grey = picture.float().mean(1, keepdim=True)
    fine = grey - F.avg_pool2d(grey, period + 1, 1, period // 2, count_include_pad=False)
    n, _, height, width = fine.shape
    rows, columns = height // period, width // period
    cells = fine[..., : rows * period, : columns * period].reshape(n, rows, period, columns, period)
    energy = cells.square().mean((1, 3))
    whole = energy.mean((1, 2)) + eps
    return cells.mean((1, 3)).square().mean((1, 2)) / whole + energy.var((1, 2), correction=0) / whole.square()
