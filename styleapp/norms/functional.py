"""The formula that every norm of this library is, and the transforms that give content the statistics of a style.

The transforms share one call, ``f(content, style, alpha)``: features of the content, of the style (or its moments,
where those are enough), and the strength.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.kernels import affine, suits
from styleapp.norms.moments import Moments, moments

__all__ = [
    "EPS",
    "adaattn",
    "covariance",
    "efdm",
    "l2_normalize",
    "min_max_scale",
    "modulate_weight",
    "normalize",
    "ot",
    "ot_matrix",
    "root",
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
        each = [_batch_norm(part, i, m, gamma, beta, eps) for i, part in enumerate(x.split(1))]
        return each[0] if len(each) == 1 else torch.cat(each)
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
    """Whether torch's batch norm in evaluation, of each sample, does the same in one pass over memory instead of five.

    It computes x · γ/σ + (β - μ · γ/σ) in float32. That loses digits where the mean is large, but none that a ``x`` of
    half precision had. It knows no gradient of the moments.
    """
    if torch.is_grad_enabled() or x.dim() < 3 or x.dtype not in (torch.bfloat16, torch.float16):
        return False
    if len(x) != 1 and (x.device.type != "cpu" or torch.compiler.is_compiling()):  # a GPU waits for each start
        return False
    ones = tuple(1 for _ in x.shape[2:])
    each = ((len(x), x.shape[1], *ones), (1, x.shape[1], *ones))
    return all(t is None or (t.dtype == torch.float32 and t.shape in each) for t in (m.mean, m.var, gamma, beta))


def _batch_norm(x: Tensor, i: int, m: Moments, gamma: Tensor | None, beta: Tensor | None, eps: float) -> Tensor:
    """The ``i``-th sample of a batch by that."""
    mean, var, weight, bias = (None if t is None else t[i % len(t)].flatten() for t in (m.mean, m.var, gamma, beta))
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)


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
    return _matched(content, style, alpha, eps, wct_matrix)


def ot(content: Tensor, style: Tensor, alpha: float | Tensor = 1.0, eps: float = EPS) -> Tensor:
    """Optimal transport: the style's mean and full covariance as in :func:`wct`, by the map that moves features least.

    y = A (c - μc) + μs, A = Σc^-½ · (Σc^½ · Σs · Σc^½)^½ · Σc^-½: of all maps from one normal distribution to the other
    the one of least mean square ‖y - c‖² (Lu et al. 2019, arXiv 1906.00668; Mroueh 2020, arXiv 1905.12828).
    Where both covariances have the same axes it is ``wct``, where these are the channels, AdaIN.

    Args:
        content: (N, C, *).
        style: (N or 1, C, *).
        alpha: strength in [0,1]; between, y is on the shortest way from one distribution to the other.
        eps: smallest eigenvalue that counts, relative to the largest.
    """
    return _matched(content, style, alpha, eps, ot_matrix)


def adaattn(
    content: Tensor,
    style: Tensor,
    alpha: float | Tensor = 1.0,
    eps: float = EPS,
    *,
    query: Tensor | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """Adaptive attention normalisation: each position takes on the moments of the places of the style that are like it.

    y = S · x̂ + M, M = A v, S = sqrt(A v² - M²), A = softmax(q kᵀ) over the positions of the style (Liu et al. 2021,
    AdaAttN, arXiv 2108.03647): moments of the style as in AdaIN, but weighed anew for each position of the content.
    Where all of the style looks alike to it (q = 0) it is AdaIN.

    Args:
        content: (N, C, *).
        style: v, (N or 1, C, *); in the paper a learned 1x1 convolution of features.
        alpha: strength in [0,1].
        eps: added to the variance of the content.
        query, key: q and k, (N, K, *) and (N or 1, K, *), positions as those of content and style; by default both
            features, each channel normalised. In the paper learned 1x1 convolutions of such, of shallower layers too.
    """
    wide = torch.promote_types(content.dtype, torch.float32)
    positions = range(2, content.dim())
    unit = normalize(content.to(wide), moments(content.to(wide), positions), None, None, eps)
    if query is None:
        query = unit
    if key is None:
        key = normalize(style.to(wide), moments(style.to(wide), positions), None, None, eps)
    values = style.to(wide).flatten(2).mT
    centre = values.mean(1, keepdim=True)  # a square of what is near zero loses no digits to a large mean
    values = values - centre
    both = torch.cat([values, values.square()], dim=2).expand(len(content), -1, -1)
    q, k = query.to(wide).flatten(2).mT, key.to(wide).flatten(2).mT.expand(len(content), -1, -1)
    mean, square = F.scaled_dot_product_attention(q, k, both, scale=1.0).chunk(2, dim=2)
    std = (square - mean.square()).clamp_min(0).sqrt()
    y = (unit.flatten(2) * std.mT + (mean + centre).mT).view(content.shape).to(content.dtype)
    return content + alpha * (y - content)


def covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, C, 1) and biased covariance (N, C, C) of (N, C, positions)."""
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    return mean, centred @ centred.mT / x.shape[-1]


def wct_matrix(content: Tensor, style: Tensor, eps: float = EPS) -> Tensor:
    """A = Σs^½ · Σc^-½ of :func:`wct`, from the covariances (N, C, C): y = A (x - μc) + μs."""
    return root(style, 0.5, eps) @ root(content, -0.5, eps)


def ot_matrix(content: Tensor, style: Tensor, eps: float = EPS) -> Tensor:
    """A = Σc^-½ · (Σc^½ · Σs · Σc^½)^½ · Σc^-½ of :func:`ot`, from the covariances (N, C, C): y = A (x - μc) + μs.

    Computed in float64: the product in the middle has the squares of what the covariances have.
    """
    c = content.double()
    whiten, back = root(c, -0.5, eps), root(c, 0.5, eps)
    middle = back @ style.double() @ back
    matrix: Tensor = whiten @ root((middle + middle.mT) / 2, 0.5, eps**2) @ whiten
    return matrix.to(content.dtype)


def _matched(
    content: Tensor, style: Tensor, alpha: float | Tensor, eps: float, matrix: Callable[[Tensor, Tensor, float], Tensor]
) -> Tensor:
    wide = torch.promote_types(content.dtype, torch.float32)
    flat = content.flatten(2).to(wide)
    (mean, own), (target, wanted) = covariance(flat), covariance(style.flatten(2).to(wide))
    y = (matrix(own, wanted, eps) @ (flat - mean) + target).view(content.shape).to(content.dtype)
    return content + alpha * (y - content)


def root(covariance: Tensor, power: float, eps: float) -> Tensor:
    """Symmetric matrices (…, C, C) to a power, without eigenvalues that are not above ``eps`` times the largest."""
    values, vectors = torch.linalg.eigh(covariance)
    least = eps * values.amax(-1, keepdim=True)
    powers = torch.where(values > least, values.clamp_min(torch.finfo(values.dtype).tiny) ** power, 0.0)
    return vectors * powers.unsqueeze(-2) @ vectors.mT


def standardize_weight(weight: Tensor, eps: float = EPS) -> Tensor:
    """Weight standardisation: each filter of (O, I, …) to mean 0 and variance 1 (Qiao et al. 2019, eq. 5)."""
    return normalize(weight, moments(weight, range(1, weight.dim())), None, None, eps)


def modulate_weight(weight: Tensor, style: Tensor, *, demodulate: bool = True, eps: float = 1e-8) -> Tensor:
    """StyleGAN2's modulation and demodulation of filters (Karras et al. 2020, section 2.2): a norm by expectation.

    w' = s_i · w and w'' = w' / sqrt(Σ w'² + ε), the sum over inputs and taps: where inputs have variance 1, so
    have outputs.

    Args:
        weight: (O, I, *).
        style: s, (N, I).
        demodulate: divide; without, w'.
        eps: ε.

    Returns:
        (N, O, I, *): filters for each sample, for a convolution with N groups.
    """
    scaled = weight * style.view(*style.shape[:1], 1, style.shape[1], *[1] * (weight.dim() - 2))
    if not demodulate:
        return scaled
    return scaled * (scaled.square().sum(tuple(range(2, scaled.dim())), keepdim=True) + eps).rsqrt()


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
