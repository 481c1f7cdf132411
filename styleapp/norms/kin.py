"""Kin of the norms: what takes no mean away, takes the norm and the activation together, or takes no moments at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleapp.norms.functional import EPS
from styleapp.norms.moments import Moments, moments
from styleapp.norms.norm import check_groups, check_num_channels, next_momentum, per_channel, pool_moments, statistics

__all__ = [
    "TLU",
    "ActNorm",
    "DynamicErf",
    "DynamicTanh",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseNorm",
    "GlobalResponseNorm",
    "LocalContrastNorm",
    "ScaleNorm",
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


class LocalContrastNorm(nn.Module):
    """Local contrast normalisation (Jarrett et al. 2009, ICCV, section 2): y = v / max(c, σ), v = x - μ.

    μ = Σ w x and σ² = Σ w v² are of all channels in a Gaussian window around each position, whose weights w add up to
    1; c is the mean of σ over a sample, so that flat parts are not blown up. At borders the edge is repeated.

    Args:
        num_channels: C.
        kernel_size: odd; 9 in the paper. The deviation of the window is a quarter of it, as in Torch 7.
        eps: least divisor.

    Shape:
        (N, C, H, W) to the same.

    Raises:
        ValueError: for an even size, or another number of channels.
    """

    def __init__(self, num_channels: int, *, kernel_size: int = 9, eps: float = EPS) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.num_channels = num_channels
        self.kernel_size = kernel_size
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Subtract and divide."""
        check_num_channels(self, x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        apart = wide - self._near(wide.mean(1, keepdim=True))
        std = self._near(apart.square().mean(1, keepdim=True)).sqrt()
        least = std.mean((2, 3), keepdim=True).clamp_min(self.eps)
        return (apart / torch.maximum(std, least)).to(x.dtype)

    def _near(self, x: Tensor) -> Tensor:
        """Σ w x around each position of one channel, across and down."""
        pad = self.kernel_size // 2
        offsets = torch.arange(-pad, pad + 1, dtype=x.dtype, device=x.device)
        window = torch.exp(-0.5 * (offsets / (self.kernel_size / 4)).square())
        window = window / window.sum()
        x = F.conv2d(F.pad(x, (pad, pad, 0, 0), mode="replicate"), window.view(1, 1, 1, -1))
        return F.conv2d(F.pad(x, (0, 0, pad, pad), mode="replicate"), window.view(1, 1, -1, 1))

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        return f"{self.num_channels}, kernel_size={self.kernel_size}, eps={self.eps}"


class ScaleNorm(nn.Module):
    """Scale norm (Nguyen and Salazar 2019, arXiv 1910.05895): y = g · x / max(‖x‖₂, ε) over the last dim, g one number.

    That is RMS norm with one γ = g / sqrt(D). g starts at sqrt(D), as in the paper.

    Args:
        num_channels: D, size of the last dim.
        eps: ε.

    Shape:
        (*, D) to the same.
    """

    def __init__(self, num_channels: int, *, eps: float = EPS) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.scale = nn.Parameter(torch.tensor(float(num_channels) ** 0.5))  # no weight: that is one a channel

    def forward(self, x: Tensor) -> Tensor:
        """Scale to one length."""
        if x.shape[-1] != self.num_channels:
            raise ValueError(f"ScaleNorm takes (*, {self.num_channels}), got {tuple(x.shape)}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min(self.eps)
        return (self.scale.to(wide.dtype) * (wide / length)).to(x.dtype)


class ActNorm(nn.Module):
    """Activation norm (Kingma and Dhariwal 2018, Glow, arXiv 1807.03039, section 3.1): y = γ · x + β, for each channel.

    The first batch in training sets γ and β so that its y has mean 0 and variance 1; from then on they are learned as
    any parameters, and no batch counts any more. Before, in evaluation, it is the identity.

    Args:
        num_channels: C.
        eps: added to the variance of the first batch.

    Shape:
        (N, C, *) to the same.
    """

    initialized: Tensor

    def __init__(self, num_channels: int, *, eps: float = EPS) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift."""
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"ActNorm takes (N, {self.num_channels}, *), got {tuple(x.shape)}")
        if self.training and not self.initialized:
            with torch.no_grad():
                first = moments(x, (0, *range(2, x.dim())))
                scale = 1 / first.std(self.eps).flatten()
                self.weight.copy_(scale)
                self.bias.copy_(-first.mean.flatten() * scale)
                self.initialized.fill_(True)
        wide = torch.promote_types(x.dtype, torch.float32)
        gamma, beta = (per_channel(v, x).to(wide) for v in (self.weight, self.bias))
        return torch.addcmul(beta, x.to(wide), gamma).to(x.dtype)


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
