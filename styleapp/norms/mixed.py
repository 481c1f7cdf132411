"""Norms that mix statistics: by learned weights, by splitting the channels, or of one sample with another's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from styleapp.norms.functional import EPS, normalize
from styleapp.norms.moments import Moments, moments
from styleapp.norms.named import BatchNorm, InstanceNorm
from styleapp.norms.norm import check_num_channels, next_momentum, per_channel, statistics

__all__ = [
    "BatchInstanceNorm",
    "DistributionUncertainty",
    "HalfInstanceNorm",
    "IBNa",
    "IBNb",
    "InstanceLayerNorm",
    "MixStyle",
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
            momentum = next_momentum(self.num_batches_tracked, self.momentum)
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
        check_num_channels(self, x)
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
        check_num_channels(self, x)
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


class InstanceLayerNorm(nn.Module):
    """Instance-layer normalisation (Kim et al. 2020, U-GAT-IT, arXiv 1907.10830).

    y = (ρ · x̂_IN + (1 - ρ) · x̂_LN) · γ + β, LN over (C, H, W). ρ in [0,1] is learned for each channel and clipped
    after each update. With γ and β from elsewhere, for each sample, it is AdaLIN; with its own, ILN.

    Args:
        num_channels: C.
        rho: where ρ starts: in the paper 1 for AdaLIN, in residual blocks, and 0 for ILN, behind upsampling.
        eps: added to the variances.
        affine: learn γ and β.

    Shape:
        (N, C, *) with a spatial part, and γ and β (N, C) if they come from elsewhere, to (N, C, *).
    """

    def __init__(self, num_channels: int, *, rho: float = 0.0, eps: float = EPS, affine: bool = True) -> None:
        super().__init__()
        if not 0 <= rho <= 1:
            raise ValueError(f"rho must be from 0 to 1, got {rho}")
        self.num_channels = num_channels
        self.eps = eps
        self.rho = nn.Parameter(torch.full((num_channels,), float(rho)))
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        """Normalise both ways and mix; ``gamma`` and ``beta`` take the place of the learned ones."""
        check_num_channels(self, x)
        if self.training:
            self.rho.data.clamp_(0, 1)  # as in BatchInstanceNorm
        instance = statistics(x, "instance")
        layer = _over(instance, 1)
        gamma, beta = self.weight if gamma is None else gamma, self.bias if beta is None else beta
        # Both are affine in x, so their mixture is: one pass over x, with a scale and a centre of each channel.
        rho = per_channel(self.rho, x).to(instance.mean.dtype)
        one, other = rho * (instance.var + self.eps).rsqrt(), (1 - rho) * (layer.var + self.eps).rsqrt()
        scale, offset = one + other, other * (instance.mean - layer.mean)
        y = (x.to(scale.dtype) - instance.mean) * scale + offset
        if gamma is not None:
            y = y * per_channel(gamma, x).to(y.dtype)
        if beta is not None:
            y = y + per_channel(beta, x).to(y.dtype)
        return y.to(x.dtype)


class MixStyle(nn.Module):
    """MixStyle (Zhou et al. 2021, arXiv 2104.02008): in training, each sample takes on some of another one's moments.

    y = γ · (x - μ(x)) / σ(x) + β, γ = λ σ(x) + (1 - λ) σ(x'), β = λ μ(x) + (1 - λ) μ(x'), x' another sample of the
    batch, λ ~ Beta(α, α); no gradient goes through the moments. It teaches a network not to mind the style of a
    picture. With all of the other's moments (``alpha=None``, λ = 0) it is pAdaIN (Nuriel et al. 2021), and what
    CrossNorm (Tang et al. 2021) does with pairs. In evaluation it does nothing.

    Args:
        p: how often a batch is mixed; the papers take 0.5, pAdaIN 0.01.
        alpha: of the Beta distribution; None for λ = 0.
        eps: added to the variances.

    Shape:
        (N, C, *) with a spatial part, to the same.
    """

    def __init__(self, p: float = 0.5, *, alpha: float | None = 0.1, eps: float = 1e-6) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must be from 0 to 1, got {p}")
        if alpha is not None and alpha <= 0:
            raise ValueError(f"alpha must be above 0, or None, got {alpha}")
        self.p = p
        self.alpha = alpha
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Mix, or not."""
        if not self.training or x.shape[0] < 2 or float(torch.rand(())) >= self.p:
            return x
        own = statistics(x.detach())
        order = torch.randperm(x.shape[0], device=x.device)
        share = own.mean.new_zeros(x.shape[0])
        if self.alpha is not None:
            share = torch.distributions.Beta(self.alpha, self.alpha).sample(share.shape).to(share)
        share = share.view(-1, *[1] * (x.dim() - 1))
        std = own.std(self.eps)
        gamma = share * std + (1 - share) * std[order]
        beta = share * own.mean + (1 - share) * own.mean[order]
        return normalize(x, own, gamma, beta, self.eps)

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        return f"p={self.p}, alpha={self.alpha}, eps={self.eps}"


class DistributionUncertainty(nn.Module):
    """DSU (Li et al. 2022, arXiv 2202.03958): in training, the moments of each sample are drawn at random.

    y = γ · (x - μ) / σ + β, β = μ + ε Σ_μ, γ = σ + ε' Σ_σ, ε and ε' ~ N(0, 1) for each sample and channel; Σ_μ and Σ_σ
    are the deviations, over the batch, of μ and of σ (eq. 4 to 9, all of them biased; the authors' code divides by one
    less). Unlike :class:`MixStyle` it leaves the span of the batch's styles, and gradients go through the moments. In
    evaluation it does nothing.

    Args:
        p: how often; the paper takes 0.5.
        factor: of the noise; 1 in the paper.
        eps: added to the variances.

    Shape:
        (N, C, *) with a spatial part, to the same.

    Raises:
        ValueError: for a ``p`` outside [0,1] or a negative ``factor``.
    """

    def __init__(self, p: float = 0.5, *, factor: float = 1.0, eps: float = 1e-6) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must be from 0 to 1, got {p}")
        if factor < 0:
            raise ValueError(f"factor must be 0 or more, got {factor}")
        self.p = p
        self.factor = factor
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Draw moments, or leave them."""
        if not self.training or x.shape[0] < 2 or float(torch.rand(())) >= self.p:
            return x
        own = statistics(x)
        std = own.std(self.eps)
        return normalize(x, own, self._drawn(std), self._drawn(own.mean), self.eps)

    def _drawn(self, of_samples: Tensor) -> Tensor:
        """Around that of each sample, by as much as samples differ."""
        spread = (of_samples.var(0, correction=0, keepdim=True) + self.eps).sqrt()
        return of_samples + self.factor * torch.randn_like(of_samples) * spread

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        return f"p={self.p}, factor={self.factor}, eps={self.eps}"
