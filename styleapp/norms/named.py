"""The stock norms: torch's own layers behind one constructor.

Numbers, gradients, state dicts and train/eval behaviour are torch.nn's, because the kernels are; a state
dict moves either way. What differs: every constructor is ``(num_channels, *, eps=1e-5, affine=True, …)``,
1d, 2d and 3d are told apart by the input, and nothing else needs to be known to swap one for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from styleapp.norms.functional import EPS, normalize
from styleapp.norms.moments import Moments, moments
from styleapp.norms.norm import next_momentum, per_channel

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "LayerNorm2d",
    "LocalResponseNorm",
    "RMSNorm",
    "SyncBatchNorm",
]


class BatchNorm(_BatchNorm):
    """Batch normalisation (Ioffe and Szegedy 2015): μ, σ² over N and positions, for each channel.

    In training the biased variance of the batch normalises and the unbiased one enters the running
    average, running ← (1 - momentum) · running + momentum · batch, as in torch.

    Args:
        num_channels: C.
        eps: added to the variance.
        affine: learn γ and β, (C,).
        momentum: weight of the new batch; None for the plain mean of all batches. For the convention of
            Keras and of the paper see :func:`~styleapp.norms.population.momentum_from_keep`.
        track_running_stats: without, batch statistics are used in evaluation, too.

    Shape:
        (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), to the same.

    Raises:
        ValueError: for another shape, or one value per channel in training.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        eps: float = EPS,
        affine: bool = True,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_channels, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        _check_channels(self, input, self.num_features, least=2)


class InstanceNorm(_InstanceNorm):
    """Instance normalisation (Ulyanov, Vedaldi and Lempitsky 2016): μ, σ² over positions, for each sample and channel.

    Unlike torch.nn's it has γ and β unless told otherwise, as every norm here. Inputs always have a batch.

    Args:
        num_channels: C.
        eps: added to the variance.
        affine: learn γ and β, (C,).
        momentum, track_running_stats: running statistics, off as in torch.

    Shape:
        (N, C, L), (N, C, H, W) or (N, C, D, H, W), to the same.

    Raises:
        ValueError: for another shape, or a single position.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        eps: float = EPS,
        affine: bool = True,
        momentum: float = 0.1,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_channels, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        _check_channels(self, input, self.num_features, least=3)

    def _get_no_batch_dim(self) -> int:
        return 0  # there is always a batch

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        self._check_input_dim(input)
        return self._apply_instance_norm(input)  # type: ignore[no-untyped-call]


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu and He 2018): μ, σ² over positions and the C/G channels of a group.

    C groups are instance norm, one group is layer norm over (C, H, W).

    Args:
        num_channels: C.
        num_groups: G, a divisor of C.
        eps: added to the variance.
        affine: learn γ and β, (C,).

    Shape:
        (N, C, *) to the same.

    Raises:
        ValueError: if G does not divide C.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        num_groups: int = 32,
        eps: float = EPS,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        if input.is_cpu and input.dim() == 4 and input.stride(1) == 1:
            # channels_last: torch's kernel for that on the CPU takes E[x²] - E[x]², which is noise where |μ| >> σ.
            # The result does not depend on a shift of a whole group, so one that is near μ is taken off first.
            some = input.detach()[..., ::4, ::4].unflatten(1, (self.num_groups, -1))
            shift = some.mean((2, 3, 4), dtype=torch.promote_types(input.dtype, torch.float32))
            shift = shift.repeat_interleave(self.num_channels // self.num_groups, 1)
            input = input - per_channel(shift, input).to(input)
        if _mixed(input, self.weight):
            return super().forward(input.to(self.weight.dtype)).to(input.dtype)
        return super().forward(input)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation (Ba, Kiros and Hinton 2016) over the trailing dims, with γ and β for each element.

    ``LayerNorm(D)`` on (N, L, D) normalises each token by itself, so that padding changes nothing;
    ``LayerNorm((C, H, W))`` normalises each image. For the channels at each position see :class:`LayerNorm2d`.

    Args:
        num_channels: size of the last dim, or sizes of the last dims.
        eps: added to the variance.
        affine: learn γ and β of that shape.
        bias: learn β.
    """

    def __init__(
        self,
        num_channels: int | Sequence[int],
        *,
        eps: float = EPS,
        affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        shape = num_channels if isinstance(num_channels, int) else list(num_channels)
        super().__init__(shape, eps, affine, bias, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise."""
        if _mixed(input, self.weight):
            return super().forward(input.to(self.weight.dtype)).to(input.dtype)
        return super().forward(input)


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels at each position of (N, C, *), as in ConvNeXt (Liu et al. 2022).

    Args:
        num_channels: C.
        eps: added to the variance.
        affine: learn γ and β, (C,).
    """

    def __init__(
        self, num_channels: int, *, eps: float = EPS, affine: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(num_channels, eps, affine, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise. A channels_last image is not copied."""
        last = input.movedim(1, -1)
        if _mixed(input, self.weight):
            return super().forward(last.to(self.weight.dtype)).to(input.dtype).movedim(-1, 1)
        return super().forward(last).movedim(-1, 1)


class RMSNorm(nn.RMSNorm):
    """Root mean square normalisation (Zhang and Sennrich 2019) over the trailing dims: x / sqrt(mean(x²) + ε) · γ.

    Args:
        num_channels: size of the last dim, or sizes of the last dims.
        eps: added to the mean square; torch's default is that of the dtype, ours is 1e-5 as everywhere.
        affine: learn γ of that shape.
    """

    def __init__(
        self,
        num_channels: int | Sequence[int],
        *,
        eps: float | None = EPS,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        shape = num_channels if isinstance(num_channels, int) else list(num_channels)
        super().__init__(shape, eps, affine, device=device, dtype=dtype)


class LocalResponseNorm(nn.LocalResponseNorm):
    """Local response normalisation (Krizhevsky et al. 2012): y = x / (k + α/n · Σ x²)^β, Σ over n channels near by.

    Args:
        num_channels: C; any will do.
        size: n. AlexNet has n = 5, k = 2, β = 0.75 and α = 1e-4 without division by n: here ``alpha=5e-4``.
        alpha, beta, k: α, β and k, with torch's defaults.

    Shape:
        (N, C, *) with a spatial part, to the same.
    """

    def __init__(
        self, num_channels: int, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
    ) -> None:
        super().__init__(size, alpha, beta, k)
        self.num_channels = num_channels

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, in float32 or more: squares of half precision overflow."""
        _check_channels(self, input, self.num_channels, least=3)
        wide = torch.promote_types(input.dtype, torch.float32)
        return super().forward(input.to(wide)).to(input.dtype)


class SyncBatchNorm(BatchNorm):
    """Batch normalisation whose batch is that of all processes.

    The moments of the processes merge exactly, whatever the size of each one's batch, an empty one included.
    Works on every backend of torch.distributed, on the CPU as well (torch.nn's needs CUDA). Outside a
    process group, with one process, and in evaluation it is :class:`BatchNorm`.

    Args:
        process_group: the processes that share; all of them by default. Others as for :class:`BatchNorm`.
    """

    def __init__(self, num_channels: int, *, process_group: Any = None, **options: Any) -> None:
        super().__init__(num_channels, **options)
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in training every process of the group must call it."""
        shared = self.training and dist.is_available() and dist.is_initialized()
        if not shared or dist.get_world_size(self.process_group) == 1:
            return super().forward(input)
        self._check_input_dim(input)
        m = self._merged(input)
        if m.count <= 1:
            raise ValueError(f"expected more than 1 value per channel when training, got {m.count} in all processes")
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                momentum = next_momentum(self.num_batches_tracked, self.momentum)  # type: ignore[arg-type]
                self.running_mean.lerp_(m.mean.flatten().to(self.running_mean), momentum)
                unbiased = m.var.flatten() * (m.count / (m.count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var), momentum)
        gamma = None if self.weight is None else per_channel(self.weight, input)
        beta = None if self.bias is None else per_channel(self.bias, input)
        return normalize(input, m, gamma, beta, self.eps)

    def _merged(self, x: Tensor) -> Moments:
        """n = Σ nᵢ,  μ = Σ nᵢ μᵢ / n,  σ² = Σ nᵢ (σᵢ² + (μᵢ - μ)²) / n, with gradients through all processes."""
        over = (0, *range(2, x.dim()))
        if x.numel():
            own = moments(x, over)
        else:  # no element: a moment of weight zero that still takes part in the collective's backward
            nothing = x.to(torch.promote_types(x.dtype, torch.float32)).sum(over, keepdim=True)
            own = Moments(0, nothing, nothing)
        count = torch.full_like(own.mean, own.count)
        packed = torch.stack([count, own.mean, own.var])
        counts, means, variances = _AllGather.apply(packed, self.process_group).unbind(1)
        total = counts.sum(0)
        mean = (counts * means).sum(0) / total
        var = (counts * (variances + (means - mean).square())).sum(0) / total
        return Moments(int(total.flatten()[0]), mean, var)


class _AllGather(torch.autograd.Function):
    """The tensors of all processes, stacked; the gradient of one's own is the sum of all processes'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:  # type: ignore[override]
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad[dist.get_rank(ctx.group)], None


def _mixed(x: Tensor, weight: Tensor | None) -> bool:
    """Whether torch's kernel for layer and group norm would refuse: on a GPU, where γ is of another dtype than x."""
    if weight is None or x.is_cpu or x.dtype == weight.dtype:
        return False
    return not torch.is_autocast_enabled(x.device.type)  # else torch widens it itself


def _check_channels(module: nn.Module, x: Tensor, num_channels: int, least: int) -> None:
    name = type(module).__name__
    if not least <= x.dim() <= 5:
        raise ValueError(f"{name} takes {least} to 5 dims (N, C, …), got shape {tuple(x.shape)}")
    if x.shape[1] != num_channels:
        raise ValueError(f"{name} has {num_channels} channels, the input {x.shape[1]}: shape {tuple(x.shape)}")
