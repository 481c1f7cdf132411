"""Kin of the norms: what takes no mean away, takes the norm and the activation together, or takes no moments at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from styleapp.norms.functional import EPS
from styleapp.norms.moments import Moments
from styleapp.norms.norm import check_groups, check_num_channels, next_momentum, per_channel, pool_moments, statistics

__all__ = [
    "TLU",
    "DynamicErf",
    "DynamicTanh",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm",
    "GlobalResponseNorm",
]


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
        check_num_channels(self, x)
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


class GlobalResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023, ConvNeXt V2, arXiv 2301.00808): y = γ · (x · n) + β + x.

    n_c = g_c / (mean of g over the channels + ε), g_c = ‖x_c‖₂ over positions: channels compete by their strength. (The
    paper's equation has the sum of g, its code the mean; the mean does not depend on C.) Fresh from the constructor it
    is the identity: γ and β start at 0.

    Args:
        num_channels: C.
        eps: ε.

    Shape:
        (N, C, *) with a spatial part, to the same.
    """

    def __init__(self, num_channels: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        # Not weight and bias: those of another norm, which start at 1, would mean something else here.
        self.gamma = nn.Parameter(torch.zeros(num_channels))
        self.beta = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Strengthen the channels that are strong."""
        check_num_channels(self, x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        strength = torch.linalg.vector_norm(wide, dim=tuple(range(2, x.dim())), keepdim=True)
        relative = strength / (strength.mean(1, keepdim=True) + self.eps)
        y = per_channel(self.gamma, x) * (wide * relative) + per_channel(self.beta, x) + wide
        return y.to(x.dtype)


class EvoNormB0(nn.Module):
    """EvoNorm-B0 (Liu et al. 2020, arXiv 2004.02967): y = γ · x / max(σ_batch, v · x + σ_instance) + β.

    Norm and activation in one; no mean is subtracted. σ = sqrt(var + ε), of all samples and of each; in evaluation the
    running variance takes the place of the batch's, as in batch norm.

    Args:
        num_channels: C.
        eps: added to the variances.
        momentum: weight of the new batch in the running variance (torch's convention); None for the plain mean.

    Shape:
        (N, C, *) with a spatial part, to the same.
    """

    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_channels: int, *, eps: float = EPS, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.v = nn.Parameter(torch.ones(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate."""
        check_num_channels(self, x)
        found = statistics(x)
        wide = x.to(found.mean.dtype)
        batch = (self._batch(pool_moments(found, "batch"), x) + self.eps).sqrt()
        below = torch.maximum(batch, per_channel(self.v, x) * wide + found.std(self.eps))
        y = per_channel(self.weight, x) * wide / below + per_channel(self.bias, x)
        return y.to(x.dtype)

    def _batch(self, found: Moments, x: Tensor) -> Tensor:
        if not self.training:
            return per_channel(self.running_var, x)
        if found.count <= 1:
            raise ValueError(f"expected more than 1 value per channel when training, got shape {tuple(x.shape)}")
        with torch.no_grad():
            momentum = next_momentum(self.num_batches_tracked, self.momentum)
            unbiased = found.var.flatten() * (found.count / (found.count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var), momentum)
        return found.var


class EvoNormS0(nn.Module):
    """EvoNorm-S0 (Liu et al. 2020, arXiv 2004.02967): y = γ · x · sigmoid(v · x) / σ_group + β.

    Norm and activation in one, for each sample by itself; no mean is subtracted.

    Args:
        num_channels: C.
        num_groups: G, a divisor of C.
        eps: added to the variance.

    Shape:
        (N, C, *) to the same.

    Raises:
        ValueError: if G does not divide C.
    """

    def __init__(self, num_channels: int, *, num_groups: int = 32, eps: float = EPS) -> None:
        super().__init__()
        check_groups(num_channels, num_groups)
        self.num_channels = num_channels
        self.num_groups = num_groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.v = nn.Parameter(torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate."""
        check_num_channels(self, x)
        std = statistics(x, "group", self.num_groups).std(self.eps)
        wide = x.to(std.dtype)
        y = wide * torch.sigmoid(per_channel(self.v, x) * wide) / std
        return (per_channel(self.weight, x) * y + per_channel(self.bias, x)).to(x.dtype)


class DynamicTanh(nn.Module):
    """Dynamic tanh (Zhu et al. 2025, arXiv 2503.10622): y = γ · tanh(α · x) + β. It takes no statistics at all.

    Args:
        num_channels: C.
        alpha: where the learned α, one for all channels, starts.
        dim: where the channels are: 1 for images, -1 for tokens.
    """

    def __init__(self, num_channels: int, *, alpha: float = 0.5, dim: int = 1) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.dim = dim
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Squash."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight, bias = (t.to(wide.dtype) for t in (self._along(self.weight, x), self._along(self.bias, x)))
        return (weight * self._squashed(wide) + bias).to(x.dtype)

    def _squashed(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha.to(x.dtype) * x)

    def _along(self, vector: Tensor, x: Tensor) -> Tensor:
        if x.shape[self.dim] != self.num_channels:
            raise ValueError(f"{type(self).__name__} has {self.num_channels} channels, got shape {tuple(x.shape)}")
        return vector.view([-1 if d == self.dim % x.dim() else 1 for d in range(x.dim())])

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        return f"{self.num_channels}, dim={self.dim}"


class DynamicErf(DynamicTanh):
    """Dynamic erf, Derf (Chen et al. 2025, arXiv 2512.10938): y = γ · erf(α · x + s) + β, s learned, from 0.

    Args: as for :class:`DynamicTanh`.
    """

    def __init__(self, num_channels: int, *, alpha: float = 0.5, dim: int = 1) -> None:
        super().__init__(num_channels, alpha=alpha, dim=dim)
        self.shift = nn.Parameter(torch.tensor(0.0))

    def _squashed(self, x: Tensor) -> Tensor:
        return torch.erf(self.alpha.to(x.dtype) * x + self.shift.to(x.dtype))
