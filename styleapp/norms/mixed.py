"""Norms that mix statistics, by learned weights or by splitting the channels; and two that are kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from styleapp.norms.functional import EPS, normalize
from styleapp.norms.moments import Moments, moments
from styleapp.norms.named import BatchNorm, InstanceNorm
from styleapp.norms.norm import per_channel

__all__ = [
    "TLU",
    "BatchInstanceNorm",
    "FilterResponseNorm",
    "HalfInstanceNorm",
    "IBNa",
    "IBNb",
    "SwitchableNorm",
]


class SwitchableNorm(nn.Module):
    """Switchable normalisation (Luo et al. 2019, arXiv 1806.10779): learned mixtures of IN, LN and BN statistics.

    μ = Σ wₖ μₖ, σ² = Σ wₖ' σₖ², k in {in, ln, bn}, w and w' each a softmax of three learned numbers
    (eq. 3 to 5). All variances are biased. LN and BN moments are merged from those of IN (section 3.2).

    Args:
        num_channels: C.
        eps: added to the variance.
        affine: learn γ and β.
        momentum: weight of the new batch in the running statistics (torch's convention); None, the
            paper's batch average, for the plain mean of all batches.
        batch: use BN statistics; without, the mixture is of IN and LN alone.

    Shape:
        (N, C, *) with at least two positions, to the same.

    Raises:
        ValueError: for a single position (its variance is 0) or another number of channels.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        eps: float = EPS,
        affine: bool = True,
        momentum: float | None = 0.1,
        batch: bool = True,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.momentum = momentum
        self.batch = batch
        self.mean_weight = nn.Parameter(torch.ones(3 if batch else 2))
        self.var_weight = nn.Parameter(torch.ones(3 if batch else 2))
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None
        if batch:
            # Variance 1 before any training, so that evaluation is defined.
            self.register_buffer("running_mean", torch.zeros(num_channels))
            self.register_buffer("running_var", torch.ones(num_channels))
            self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        if x.dim() < 3 or x.shape[1] != self.num_channels:
            raise ValueError(f"SwitchableNorm takes (N, {self.num_channels}, *), got shape {tuple(x.shape)}")
        instance = moments(x, range(2, x.dim()))
        if instance.count == 1:
            raise ValueError(f"SwitchableNorm needs at least two positions, got shape {tuple(x.shape)}")
        kinds = [instance, _over(instance, 1)]
        if self.batch:
            kinds.append(self._batch(instance, x))
        shape = [-1] + [1] * x.dim()
        mean_weight = self.mean_weight.softmax(0).view(shape)
        var_weight = self.var_weight.softmax(0).view(shape)
        mean = sum(w * m.mean for w, m in zip(mean_weight, kinds, strict=True))
        var = sum(w * m.var for w, m in zip(var_weight, kinds, strict=True))
        gamma = None if self.weight is None else per_channel(self.weight, x)
        beta = None if self.bias is None else per_channel(self.bias, x)
        assert isinstance(mean, Tensor) and isinstance(var, Tensor)
        return normalize(x, Moments(0, mean, var), gamma, beta, self.eps)

    def _batch(self, instance: Moments, x: Tensor) -> Moments:
        if not self.training:
            return Moments(0, per_channel(self.running_mean, x), per_channel(self.running_var, x))
        m = _over(instance, 0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(m.mean.flatten().to(self.running_mean), momentum)
            self.running_var.lerp_(m.var.flatten().to(self.running_var), momentum)
        return m


def _over(m: Moments, dim: int) -> Moments:
    """Moments over ``dim`` as well: the mean of means; mean variance and variance of the means."""
    mean = m.mean.mean(dim, keepdim=True)
    var = m.var.mean(dim, keepdim=True) + (m.mean - mean).square().mean(dim, keepdim=True)
    return Moments(m.count * m.mean.shape[dim], mean, var)


class IBNa(nn.Module):
    """IBN-a (Pan et al. 2018, arXiv 1807.09441): instance norm for the first channels, batch norm for the rest.

    Args:
        num_channels: C.
        ratio: share of the channels, rounded down, that get instance norm; any from 0 to 1.
        options: those of :class:`BatchNorm`.

    Shape:
        (N, C, *) with a spatial part, to the same.
    """

    def __init__(self, num_channels: int, *, ratio: float = 0.5, eps: float = EPS, **options: Any) -> None:
        super().__init__()
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be from 0 to 1, got {ratio}")
        self.num_channels = num_channels
        half = int(num_channels * ratio)
        self.sizes = [half, num_channels - half]
        affine = options.get("affine", True)
        self.IN = InstanceNorm(half, eps=eps, affine=affine) if half else None
        self.BN = BatchNorm(num_channels - half, eps=eps, **options) if half < num_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the parts and join them."""
        _check_num_channels(self, x)
        parts = zip(x.split(self.sizes, dim=1), (self.IN, self.BN), strict=True)
        return torch.cat([norm(part) for part, norm in parts if norm is not None], dim=1)


class IBNb(InstanceNorm):
    """IBN-b (Pan et al. 2018): instance norm after a block's residual addition, before its last ReLU.

    The norm is plain instance norm with γ and β; what makes it IBN-b is the place: ``relu(norm(x + f(x)))``.
    """


class HalfInstanceNorm(nn.Module):
    """Half instance normalisation (Chen et al. 2021, HINet): instance norm for the first ⌈C/2⌉ channels alone.

    Args:
        num_channels: C, odd ones too.

    Shape:
        (N, C, *) with a spatial part, to the same.
    """

    def __init__(self, num_channels: int, *, eps: float = EPS, affine: bool = True) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.sizes = [(num_channels + 1) // 2, num_channels // 2]
        self.norm = InstanceNorm(self.sizes[0], eps=eps, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the first half."""
        _check_num_channels(self, x)
        first, rest = x.split(self.sizes, dim=1)
        return torch.cat([self.norm(first), rest], dim=1)


class BatchInstanceNorm(nn.Module):
    """Batch-instance normalisation (Nam and Kim 2018, arXiv 1805.07925): y = (ρ · x̂_BN + (1 - ρ) · x̂_IN) · γ + β.

    ρ in [0,1] is learned for each channel, from 1 (batch norm) on, and clipped after each update (eq. 4 to 6).

    Args:
        num_channels: C.
        options: those of :class:`BatchNorm`.

    Shape:
        (N, C, *) with a spatial part, to the same.
    """

    def __init__(self, num_channels: int, *, eps: float = EPS, affine: bool = True, **options: Any) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.batch = BatchNorm(num_channels, eps=eps, affine=False, **options)
        self.instance = InstanceNorm(num_channels, eps=eps, affine=False)
        self.rho = nn.Parameter(torch.ones(num_channels))
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise both ways and mix."""
        if self.training:
            # The paper's clipping after an update: what an optimiser did is cut here. By .data, because a second
            # forward, which changes nothing, must not make autograd think that it did.
            self.rho.data.clamp_(0, 1)
        rho = per_channel(self.rho, x).to(x.dtype)
        y = rho * self.batch(x) + (1 - rho) * self.instance(x)
        if self.weight is not None and self.bias is not None:
            y = y * per_channel(self.weight, x).to(x.dtype) + per_channel(self.bias, x).to(x.dtype)
        return y


class FilterResponseNorm(nn.Module):
    """Filter response normalisation (Singh and Krishnan 2020, arXiv 1911.09737): y = γ · x / sqrt(ν² + |ε|) + β.

    ν² = mean(x²) over positions (eq. 1 to 3): no mean is subtracted and no batch is needed. To be followed
    by :class:`TLU` in place of ReLU.

    Args:
        num_channels: C.
        eps: ε; the paper uses 1e-6, and learns it where positions are few.
        learn_eps: make ε a parameter.

    Shape:
        (N, C, *) to the same.
    """

    eps: Tensor

    def __init__(self, num_channels: int, *, eps: float = 1e-6, affine: bool = True, learn_eps: bool = False) -> None:
        super().__init__()
        self.num_channels = num_channels
        if learn_eps:
            self.eps = nn.Parameter(torch.tensor(eps))
        else:
            self.register_buffer("eps", torch.tensor(eps))
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        _check_num_channels(self, x)
        wide = torch.promote_types(x.dtype, torch.float32)
        nu2 = x.to(wide).square().mean(tuple(range(2, x.dim())), keepdim=True)
        y = x.to(wide) * (nu2 + self.eps.abs()).rsqrt()
        if self.weight is not None and self.bias is not None:
            y = y * per_channel(self.weight, x) + per_channel(self.bias, x)
        return y.to(x.dtype)


class TLU(nn.Module):
    """Thresholded linear unit: max(y, τ), τ learned for each channel (Singh and Krishnan 2020, eq. 4)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same."""
        return torch.maximum(x, per_channel(self.tau, x).to(x.dtype))


def _check_num_channels(module: nn.Module, x: Tensor) -> None:
    if x.dim() < 3 or x.shape[1] != module.num_channels:
        raise ValueError(
            f"{type(module).__name__} takes (N, {module.num_channels}, *) with a spatial part, got {tuple(x.shape)}"
        )
