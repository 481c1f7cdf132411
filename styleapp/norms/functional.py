"""The formula that every norm of this library is, and the transforms that give content the statistics of a style.

The transforms share one call, ``f(content, style, alpha)``: features of the content, of the style (or its moments,
where those are enough), and the strength.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.kernels import affine, suits
from styleapp.norms.moments import Moments, moments

__all__ = [
    "EPS",
    "covariance",
    "efdm",
    "l2_normalize",
    "min_max_scale",
    "normalize",
    "standardize_weight",
    "wct",
    "wct_matrix",
    "z_score",
]

EPS = 1e-5


def normalize(x: Tensor, m: Moments, gamma: Tensor | None, beta: Tensor | None, eps: float = EPS) -> Tensor:
    """y = γ · (x - μ) / sqrt(σ² + ε) + β, in the dtype of ``x``, computed in that of the moments.

    Args:
        x: any shape.
        m: moments that broadcast against ``x``.
        gamma, beta: broadcast against ``x``; None stands for 1 and 0.
        eps: added to the variance.
    """
    if _is_affine(x, m, gamma, beta):
        scale = (m.var + eps).rsqrt() if gamma is None else gamma * (m.var + eps).rsqrt()
        return affine(x, scale, -m.mean * scale if beta is None else beta - m.mean * scale)
    if _is_batch_norm(x, m, gamma, beta):
        mean, var, weight, bias = (None if t is None else t.flatten() for t in (m.mean, m.var, gamma, beta))
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    scale = (m.var + eps).rsqrt()
    if gamma is not None:
        scale = gamma * scale
    y = (x.to(m.mean.dtype) - m.mean) * scale
    if beta is not None:
        y = y + beta
    return y.to(x.dtype)


def _is_affine(x: Tensor, m: Moments, gamma: Tensor | None, beta: Tensor | None) -> bool:
    """Whether a GPU has one kernel for it: x · scale + shift of each sample and channel, as exact as the one below."""
    if torch.is_grad_enabled() or x.dtype not in (torch.bfloat16, torch.float16) or not suits(x):
        return False
    each = ((len(x), x.shape[1], 1, 1), (1, x.shape[1], 1, 1))
    return all(t is None or (t.dtype == torch.float32 and t.shape in each) for t in (m.mean, m.var, gamma, beta))


def _is_batch_norm(x: Tensor, m: Moments, gamma: Tensor | None, beta: Tensor | None) -> bool:
    """Whether torch's batch norm in evaluation computes the same, in one pass over memory instead of five.

    It computes x · γ/σ + (β - μ · γ/σ) in float32. That loses digits where the mean is large, but none that a ``x`` of
    half precision had. It knows no gradient of the moments.
    """
    if torch.is_grad_enabled() or x.shape[0] != 1 or x.dim() < 3 or x.dtype not in (torch.bfloat16, torch.float16):
        return False
    each = (1, x.shape[1], *(1 for _ in x.shape[2:]))
    return all(t is None or (t.dtype == torch.float32 and t.shape == each) for t in (m.mean, m.var, gamma, beta))


def efdm(content: Tensor, style: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    """Exact feature distribution matching: the k-th smallest content value becomes the style's k-th smallest.

    Zhang et al. 2022 (arXiv 2203.07740), eq. 8, per sample and channel. A style of another size is
    resampled along its sorted values. The gradient passes to the content unchanged, as in the paper.

    Args:
        content: (N, C, *).
        style: (N or 1, C, *).
        alpha: strength in [0,1].
    """
    flat = content.flatten(2)
    wanted = style.flatten(2).to(flat.dtype).sort(dim=-1).values
    if wanted.shape[-1] != flat.shape[-1]:
        wanted = F.interpolate(wanted.float(), size=flat.shape[-1], mode="linear", align_corners=True).to(flat.dtype)
    order = flat.argsort(dim=-1, stable=True)  # many features are exactly 0 after a ReLU
    matched = torch.empty_like(flat).scatter_(-1, order, wanted.expand_as(flat)).view_as(content)
    return content + alpha * (matched - content.detach())


def wct(content: Tensor, style: Tensor, alpha: float | Tensor = 1.0, eps: float = EPS) -> Tensor:
    """Whitening and colouring: the channels take on the style's mean and full covariance.

    y = Σs^½ · Σc^-½ · (c - μc) + μs (Li et al. 2017, arXiv 1705.08086, eq. 2 and 3), with the symmetric
    roots, which change the content least. Where the content has fewer positions than channels its
    covariance is singular: eigenvalues below ``eps`` times the largest are left out, as the authors do.

    Args:
        content: (N, C, *).
        style: (N or 1, C, *).
        alpha: strength in [0,1].
        eps: smallest eigenvalue that counts, relative to the largest.
    """
    wide = torch.promote_types(content.dtype, torch.float32)
    flat = content.flatten(2).to(wide)
    (mean, own), (target, wanted) = covariance(flat), covariance(style.flatten(2).to(wide))
    y = (wct_matrix(own, wanted, eps) @ (flat - mean) + target).view(content.shape).to(content.dtype)
    return content + alpha * (y - content)


def covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, C, 1) and biased covariance (N, C, C) of (N, C, positions)."""
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    return mean, centred @ centred.mT / x.shape[-1]


def wct_matrix(content: Tensor, style: Tensor, eps: float = EPS) -> Tensor:
    """A = Σs^½ · Σc^-½ of :func:`wct`, from the covariances (N, C, C): y = A (x - μc) + μs."""
    return _root(style, 0.5, eps) @ _root(content, -0.5, eps)


def _root(covariance: Tensor, power: float, eps: float) -> Tensor:
    """A symmetric matrix to a power, leaving out its null space."""
    values, vectors = torch.linalg.eigh(covariance)
    least = eps * values.amax(-1, keepdim=True)
    powers = torch.where(values > least, values.clamp_min(torch.finfo(values.dtype).tiny) ** power, 0.0)
    return vectors * powers.unsqueeze(-2) @ vectors.mT


def standardize_weight(weight: Tensor, eps: float = EPS) -> Tensor:
    """Weight standardisation: each filter of (O, I, …) to mean 0 and variance 1 (Qiao et al. 2019, eq. 5)."""
    return normalize(weight, moments(weight, range(1, weight.dim())), None, None, eps)


def l2_normalize(x: Tensor, dim: int | tuple[int, ...] = 1, eps: float = 1e-12) -> Tensor:
    """x / max(‖x‖₂, ε) along ``dim``."""
    return x / torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min(eps)


def min_max_scale(x: Tensor, dim: int | tuple[int, ...] = 1) -> Tensor:
    """(x - min) / (max - min) along ``dim``: to [0,1]. Where all values are equal, 0."""
    least = x.amin(dim, keepdim=True)
    span = x.amax(dim, keepdim=True) - least
    return (x - least) / torch.where(span > 0, span, torch.ones_like(span))


def z_score(x: Tensor, dim: int | tuple[int, ...] = 1, eps: float = EPS) -> Tensor:
    """(x - μ) / sqrt(σ² + ε) along ``dim``."""
    return normalize(x, moments(x, (dim,) if isinstance(dim, int) else dim), None, None, eps)
