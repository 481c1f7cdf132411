"""Kinds of batch norm: other parts of a batch, other limits, whitened, by domain or mode, with a reference batch.

Section numbers are those of "Rethinking 'Batch' in BatchNorm" (Wu and Johnson 2021, arXiv 2105.07576). What the running
statistics of a network stand for, and how to measure them, is in :mod:`styleapp.norms.population`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from styleapp.norms.functional import EPS, covariance, normalize, root
from styleapp.norms.moments import Moments, merge, moments
from styleapp.norms.named import BatchNorm
from styleapp.norms.norm import check_groups, check_num_channels, next_momentum, per_channel

__all__ = [
    "BatchRenorm",
    "DecorrelatedBatchNorm",
    "DomainBatchNorm",
    "GhostBatchNorm",
    "ModeNorm",
    "RepresentativeBatchNorm",
    "VirtualBatchNorm",
]


class GhostBatchNorm(BatchNorm):
    """Batch norm over virtual batches of ``virtual_batch_size`` samples (Hoffer et al. 2017; section 3).

    The normalisation batch is apart from that of SGD: a batch is cut into parts of nearly equal size, each
    normalised by itself and entering the running statistics in turn. Evaluation is that of batch norm.

    Args:
        virtual_batch_size: largest number of samples that are normalised together.
    """

    def __init__(self, num_channels: int, *, virtual_batch_size: int = 32, **options: Any) -> None:
        super().__init__(num_channels, **options)
        if virtual_batch_size < 1:
            raise ValueError(f"virtual_batch_size must be at least 1, got {virtual_batch_size}")
        self.virtual_batch_size = virtual_batch_size

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each part by itself in training."""
        parts = math.ceil(input.shape[0] / self.virtual_batch_size)
        if not self.training or parts <= 1:
            return super().forward(input)
        forward = super().forward
        return torch.cat([forward(part) for part in input.tensor_split(parts)])


class BatchRenorm(BatchNorm):
    """Batch renormalisation (Ioffe 2017, arXiv 1702.03275): training sees what evaluation will see.

    y = γ · ((x - μ_B) / σ_B · r + d) + β with r = σ_B / σ clipped to [1 / r_max, r_max] and d = (μ_B - μ) / σ clipped
    to [-d_max, d_max], both without gradient (algorithm 1); μ and σ are the running ones. Within these limits y is
    that of evaluation, with gradients through the batch's moments as in batch norm; with ``r_max=1, d_max=0`` it is
    batch norm. As in the paper the running average is that of the deviation, σ = sqrt(var + ε); ``running_var`` is its
    square less ε, so that state dicts are those of batch norm.

    Args:
        num_channels: C.
        r_max, d_max: attributes too, to be changed while a training runs: the paper starts with 1 and 0 and ends with 3
            and 5.
        momentum: weight of the new batch; 0.01 in the paper.
        options: others of :class:`BatchNorm`.

    Raises:
        ValueError: for limits that are none.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        eps: float = EPS,
        affine: bool = True,
        momentum: float | None = 0.01,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if r_max < 1 or d_max < 0:
            raise ValueError(f"r_max must be at least 1 and d_max at least 0, got {r_max} and {d_max}")
        super().__init__(num_channels, eps=eps, affine=affine, momentum=momentum, device=device, dtype=dtype)
        self.r_max = r_max
        self.d_max = d_max

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        found = moments(input, (0, *range(2, input.dim())))
        if found.count <= 1:
            raise ValueError(f"expected more than 1 value per channel when training, got shape {tuple(input.shape)}")
        with torch.no_grad():
            mean = per_channel(self.running_mean, input).to(found.mean.dtype)
            std = (per_channel(self.running_var, input).to(mean) + self.eps).sqrt()
            new = found.std(self.eps)
            r = (new / std).clamp(1 / self.r_max, self.r_max)
            d = ((found.mean - mean) / std).clamp(-self.d_max, self.d_max)
            momentum = next_momentum(self.num_batches_tracked, self.momentum)
            self.running_mean.lerp_(found.mean.flatten().to(self.running_mean), momentum)
            self.running_var.copy_(std.lerp(new, momentum).square().flatten() - self.eps)
        gamma, beta = r, d
        if self.weight is not None and self.bias is not None:
            weight = per_channel(self.weight, input)
            gamma, beta = weight * r, torch.addcmul(per_channel(self.bias, input), weight, d)
        return normalize(input, found, gamma, beta, self.eps)


class DecorrelatedBatchNorm(nn.Module):
    """Batch norm that takes away the whole covariance: y = γ · Σ^-½ (x - μ) + β, within each group of channels.

    Σ is the covariance of the batch plus ε I, its root the symmetric one (ZCA): exactly by its eigenvectors
    (Huang et al. 2018, arXiv 1804.08450), whose gradient is undefined where eigenvalues are equal; or by T steps of
    Newton's iteration on Σ / trace(Σ), which is faster and whitens the large directions first (IterNorm, Huang et al.
    2019, arXiv 1904.03441). The running averages are those of the mean and of the whitening matrix. With groups of one
    channel, exactly, it is batch norm.

    Args:
        num_channels: C.
        num_groups: G, a divisor of C; the papers have groups of 16 to 64 channels.
        iterations: T; None for eigenvectors.
        eps: ε.
        affine: learn γ and β.
        momentum: weight of the new batch in the running averages (torch's convention); None for the plain mean.

    Shape:
        (N, C, *) to the same.

    Raises:
        ValueError: if G does not divide C, or one value per channel in training.
    """

    running_mean: Tensor
    running_whitening: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        num_groups: int = 1,
        iterations: int | None = 5,
        eps: float = EPS,
        affine: bool = True,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        check_groups(num_channels, num_groups)
        self.num_channels = num_channels
        self.num_groups = num_groups
        self.iterations = iterations
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None
        size = num_channels // num_groups
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_whitening", torch.eye(size).repeat(num_groups, 1, 1))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Whiten."""
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"DecorrelatedBatchNorm takes (N, {self.num_channels}, *), got {tuple(x.shape)}")
        wide = torch.promote_types(x.dtype, torch.float32)
        flat = x.to(wide).transpose(0, 1).reshape(self.num_groups, -1, x.numel() // self.num_channels)
        if self.training:
            mean, whitening = self._batch(flat)
        else:
            mean = self.running_mean.to(wide).view(self.num_groups, -1, 1)
            whitening = self.running_whitening.to(wide)
        y = (whitening @ (flat - mean)).view(x.transpose(0, 1).shape).transpose(0, 1)
        if self.weight is not None and self.bias is not None:
            y = torch.addcmul(per_channel(self.bias, x).to(wide), y, per_channel(self.weight, x).to(wide))
        return y.to(x.dtype)

    def _batch(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        if flat.shape[-1] <= 1:
            raise ValueError(f"expected more than 1 value per channel when training, got {flat.shape[-1]}")
        mean, found = covariance(flat)
        found = found + self.eps * torch.eye(found.shape[-1], dtype=found.dtype, device=found.device)
        whitening = root(found, -0.5, 0.0) if self.iterations is None else _newton(found, self.iterations)
        with torch.no_grad():
            momentum = next_momentum(self.num_batches_tracked, self.momentum)
            self.running_mean.lerp_(mean.flatten().to(self.running_mean), momentum)
            self.running_whitening.lerp_(whitening.to(self.running_whitening), momentum)
        return mean, whitening

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        return f"{self.num_channels}, num_groups={self.num_groups}, iterations={self.iterations}, eps={self.eps}"


def _newton(matrix: Tensor, iterations: int) -> Tensor:
    """M^-½ of symmetric positive matrices (…, C, C): P ← (3 P - P³ M / trace(M)) / 2 from I on, over sqrt(trace(M)).

    By the coupled form, which has the same P and keeps P M beside it: rounding does not grow in it (Higham 2008, 6.3).
    """
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    product = matrix / trace
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    found = one.expand_as(matrix)
    for _ in range(iterations):
        step = 1.5 * one - 0.5 * (found @ product)
        product, found = product @ step, step @ found
    return found * trace.rsqrt()


class DomainBatchNorm(nn.Module):
    """Batch norm with statistics for each domain and one γ, β for all (section 5; Li et al. 2017, AdaBN).

    Args:
        num_channels: C.
        num_domains: number of sets of statistics.
        options: those of :class:`BatchNorm`.

    Shape:
        (N, C, *) and the number of the domain to (N, C, *).
    """

    def __init__(self, num_channels: int, num_domains: int, *, affine: bool = True, **options: Any) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.domains = nn.ModuleList(BatchNorm(num_channels, affine=False, **options) for _ in range(num_domains))
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, x: Tensor, domain: int) -> Tensor:
        """Normalise with the statistics of ``domain``."""
        if not 0 <= domain < len(self.domains):
            raise IndexError(f"domain must be 0 to {len(self.domains) - 1}, got {domain}")
        y: Tensor = self.domains[domain](x)
        if self.weight is None or self.bias is None:
            return y
        return torch.addcmul(per_channel(self.bias, x).to(y), y, per_channel(self.weight, x).to(y))


class ModeNorm(nn.Module):
    """Mode normalisation (Deecke, Murray and Bilen 2019, arXiv 1810.05466): batch norm of K kinds of samples at once.

        g_n = softmax(W φ_n + b), φ_n the means of sample n over its positions (K shares that add up to 1)
        y_n = γ · Σ_k g_nk (x_n - μ_k) / sqrt(σ_k² + ε) + β

    μ_k and σ_k² are the moments of the batch in which sample n counts g_nk, merged from those of the samples; in
    evaluation the running ones. As in the paper it is E[x²] whose running average is taken, here as the
    variance that goes with it, so that large means lose no digits. With one mode it is batch norm, but for this and
    for torch's running variance being the unbiased one.

    Args:
        num_channels: C.
        modes: K.
        eps: added to the variances.
        affine: learn γ and β.
        momentum: weight of the new batch in the running statistics; None for the plain mean of all batches.

    Shape:
        (N, C, *) with a spatial part, to the same.

    Raises:
        ValueError: for fewer than one mode, another number of channels, or in training a single value a channel.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        modes: int = 2,
        eps: float = EPS,
        affine: bool = True,
        momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        if modes < 1:
            raise ValueError(f"modes must be at least 1, got {modes}")
        self.num_channels = num_channels
        self.modes = modes
        self.eps = eps
        self.momentum = momentum
        self.gate = nn.Linear(num_channels, modes)
        nn.init.normal_(self.gate.weight, std=0.01)  # equal filters would stay equal
        nn.init.zeros_(self.gate.bias)
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(modes, num_channels))
        self.register_buffer("running_var", torch.ones(modes, num_channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        check_num_channels(self, x)
        own = moments(x, range(2, x.dim()))
        if self.training and x.shape[0] * own.count <= 1:
            raise ValueError(f"expected more than 1 value per channel when training, got shape {tuple(x.shape)}")
        mean, var, wide = own.mean.flatten(1), own.var.flatten(1), own.mean.dtype
        shares = nn.functional.linear(mean, self.gate.weight.to(wide), self.gate.bias.to(wide)).softmax(1)
        if self.training:
            of_modes = self._merged(shares, mean, var)
            self._track(of_modes, shares.sum(0))
        else:
            of_modes = Moments(0, self.running_mean.to(wide), self.running_var.to(wide))
        # All modes share x: Σ_k g_nk (x - μ_k) / σ_k is a scale and a shift of each sample and channel.
        scales = (of_modes.var + self.eps).rsqrt()
        scale = shares @ scales
        centre = shares @ (of_modes.mean * scales) / scale
        shape = (*scale.shape, *[1] * (x.dim() - 2))
        weight = None if self.weight is None else per_channel(self.weight, x).to(wide)
        gamma = scale.view(shape) if weight is None else scale.view(shape) * weight
        beta = None if self.bias is None else per_channel(self.bias, x).to(wide)
        found = Moments(0, centre.view(shape), torch.ones_like(centre).view(shape))
        return normalize(x, found, gamma, beta, eps=0.0)

    @staticmethod
    def _merged(shares: Tensor, mean: Tensor, var: Tensor) -> Moments:
        """Moments of the modes, (K, C), from shares (N, K) and the moments of the samples, (N, C)."""
        counts = shares.sum(0)
        weights = (shares / counts.clamp_min(torch.finfo(counts.dtype).tiny)).T  # (K, N)
        of_modes = weights @ mean
        apart = (mean - of_modes[:, None]).square()  # (K, N, C)
        return Moments(0, of_modes, torch.einsum("kn,knc->kc", weights, var + apart))

    @torch.no_grad()
    def _track(self, new: Moments, counts: Tensor) -> None:
        """Merge into the running moments those of the modes that have samples at all."""
        momentum = next_momentum(self.num_batches_tracked, self.momentum)
        share = momentum * (counts > 0).to(self.running_mean)[:, None]
        apart = new.mean.to(self.running_mean) - self.running_mean
        self.running_mean += share * apart
        self.running_var.lerp_(new.var.to(self.running_var), share)
        self.running_var += share * (1 - share) * apart.square()

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        return f"{self.num_channels}, modes={self.modes}, eps={self.eps}, momentum={self.momentum}"


class VirtualBatchNorm(nn.Module):
    """Virtual batch norm (Salimans et al. 2016, arXiv 1606.03498, section 3.5): each sample with one fixed batch.

    μ and σ² are those of a reference batch and the sample together, merged exactly; a sample does not depend on the
    others of its batch, and training and evaluation are the same. The reference batch, chosen once, goes through the
    network beside x: what it is at each layer is given to the layer.

    Args:
        num_channels: C.
        eps: added to the variance.
        affine: learn γ and β.

    Shape:
        (N, C, *) and a reference (M, C, *), both with a spatial part, to the first.
    """

    def __init__(self, num_channels: int, *, eps: float = EPS, affine: bool = True) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """Normalise ``x``. For the next layer's reference give the reference for both."""
        check_num_channels(self, x)
        check_num_channels(self, reference)
        fixed = moments(reference, (0, *range(2, reference.dim())))
        found = fixed if x is reference else merge(fixed, moments(x, range(2, x.dim())))
        gamma = None if self.weight is None else per_channel(self.weight, x)
        beta = None if self.bias is None else per_channel(self.bias, x)
        return normalize(x, found, gamma, beta, self.eps)


class RepresentativeBatchNorm(nn.Module):
    """Batch norm, calibrated by each sample's own means (Gao et al. 2021, CVPR, section 3).

        x' = x + w_m K(x),  x̂ = (x' - μ) / sqrt(σ² + ε),  y = γ · x̂ · sigmoid(w_v K(x̂) + w_b) + β

    K are means over positions, one a sample and channel; w_m and w_v start at 0 and w_b at 1: it starts as batch norm
    times sigmoid(1).

    Args:
        num_channels: C.
        eps: added to the variance.
        affine: learn γ and β.
        options: others of :class:`BatchNorm`.

    Shape:
        (N, C, *) with a spatial part, to the same.
    """

    def __init__(self, num_channels: int, *, eps: float = EPS, affine: bool = True, **options: Any) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.base = BatchNorm(num_channels, eps=eps, affine=False, **options)
        self.center_weight = nn.Parameter(torch.zeros(num_channels))
        self.scale_weight = nn.Parameter(torch.zeros(num_channels))
        self.scale_bias = nn.Parameter(torch.ones(num_channels))
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Centre, normalise and scale."""
        check_num_channels(self, x)
        positions, wide = tuple(range(2, x.dim())), torch.promote_types(x.dtype, torch.float32)
        means = x.mean(positions, keepdim=True, dtype=wide)
        centred = torch.addcmul(x.to(wide), per_channel(self.center_weight, x).to(wide), means)
        y: Tensor = self.base(centred.to(x.dtype)).to(wide)
        known = per_channel(self.scale_weight, x).to(wide) * y.mean(positions, keepdim=True)
        gamma = (known + per_channel(self.scale_bias, x).to(wide)).sigmoid()
        if self.weight is not None and self.bias is not None:
            gamma = gamma * per_channel(self.weight, x).to(wide)
            return torch.addcmul(per_channel(self.bias, x).to(wide), y, gamma).to(x.dtype)
        return (y * gamma).to(x.dtype)
