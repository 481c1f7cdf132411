"""The losses of the AdaIN paper (Huang and Belongie 2017, section 5.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from styleapp.models import StyleCode

__all__ = ["content_loss", "style_loss"]


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
