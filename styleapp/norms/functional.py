"""The formula that every norm of this library is: y = γ · (x - μ) / sqrt(σ² + ε) + β."""

from __future__ import annotations

from torch import Tensor

from styleapp.norms.moments import Moments, moments

__all__ = ["EPS", "adain", "normalize"]

EPS = 1e-5


def normalize(x: Tensor, m: Moments, gamma: Tensor | None, beta: Tensor | None, eps: float = EPS) -> Tensor:
    """y = γ · (x - μ) / sqrt(σ² + ε) + β, in the dtype of ``x``, computed in that of the moments.

    Args:
        x: any shape.
        m: moments that broadcast against ``x``.
        gamma, beta: broadcast against ``x``; None stands for 1 and 0.
        eps: added to the variance.
    """
    scale = (m.var + eps).rsqrt()
    if gamma is not None:
        scale = gamma * scale
    y = (x.to(m.mean.dtype) - m.mean) * scale
    if beta is not None:
        y = y + beta
    return y.to(x.dtype)


def adain(content: Tensor, style: Tensor, eps: float = EPS) -> Tensor:
    """Adaptive instance normalisation: σ(s) · (c - μ(c)) / σ(c) + μ(s), with σ = sqrt(var + ε).

    Huang and Belongie 2017, eq. 8. The statistics are per sample and channel, over (H, W).

    Args:
        content, style: (N, C, H, W) and (N or 1, C, H', W').
    """
    target = moments(style)
    return normalize(content, moments(content), target.std(eps), target.mean, eps)
