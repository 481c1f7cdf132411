"""The grid: over what the moments are taken x where γ and β come from."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from styleapp.norms.functional import EPS, normalize
from styleapp.norms.moments import Moments, moments

__all__ = [
    "OVER",
    "Norm",
    "Over",
    "check_groups",
    "check_num_channels",
    "next_momentum",
    "per_channel",
    "pool_moments",
    "statistics",
]

Over: TypeAlias = Literal["batch", "layer", "instance", "group", "position"]
OVER: tuple[Over, ...] = ("batch", "layer", "instance", "group", "position")


def statistics(x: Tensor, over: Over = "instance", num_groups: int | None = None) -> Moments:
    """Moments of (N, C, *) that broadcast against it.

    ========== =================== ============
    over       averaged            shape
    ========== =================== ============
    batch      N and positions     (1, C, 1…)
    layer      C and positions     (N, 1, 1…)
    instance   positions           (N, C, 1…)
    group      C/G and positions   (N, C, 1…)
    position   C                   (N, 1, *)
    ========== =================== ============

    Those of each position are the structure of a picture (PONO, Li et al. 2019, arXiv 1907.04312), which its
    moment shortcut hands on to a later layer: y · σ + μ.

    Args:
        x: (N, C, *).
        over: one of :data:`OVER`.
        num_groups: G, for "group" alone; must divide C.

    Raises:
        ValueError: for an unknown ``over``, or groups that do not divide the channels.
    """
    positions = tuple(range(2, x.dim()))
    if over == "batch":
        return moments(x, (0, *positions))
    if over == "layer":
        return moments(x, (1, *positions))
    if over == "instance":
        return moments(x, positions)
    if over == "position":
        return moments(x, (1,))
    if over != "group":
        raise ValueError(f"unknown statistics {over!r}; choices: {', '.join(OVER)}")
    channels = x.shape[1]
    if not num_groups or channels % num_groups:
        raise ValueError(f"num_groups must divide the {channels} channels, got {num_groups}")
    m = moments(x.unflatten(1, (num_groups, -1)), (2, *(d + 1 for d in positions)))
    size = channels // num_groups

    def spread(t: Tensor) -> Tensor:
        return t.squeeze(2).repeat_interleave(size, dim=1)

    return Moments(m.count, spread(m.mean), spread(m.var))


def pool_moments(m: Moments, over: Over = "instance", num_groups: int | None = None) -> Moments:
    """Moments over ``over`` from those of each instance, without another look at the tensor.

    μ = mean of μ_c, σ² = mean of σ_c² + (μ_c - μ)², over the channels of a group ("group"), all channels
    ("layer"), or the samples ("batch"): the merge of parts of equal count.

    Args:
        m: as ``statistics(x, "instance")`` gives it, (N, C, 1…).
        over, num_groups: as for :func:`statistics`. "layer" comes back as (N, C, 1…), all channels alike.

    Raises:
        ValueError: for an unknown ``over``, for "position", of which those of instances know nothing, or groups that do
            not divide the channels.
    """
    if over == "instance":
        return m
    if over == "batch":
        mean = m.mean.mean(0, keepdim=True)
        var = (m.var + (m.mean - mean).square()).mean(0, keepdim=True)
        return Moments(m.count * m.mean.shape[0], mean, var)
    if over not in ("layer", "group"):
        raise ValueError(
            f"no statistics {over!r} follow from those of instances; choices: instance, batch, layer, group"
        )
    channels = m.mean.shape[1]
    groups = 1 if over == "layer" else num_groups
    if not groups or channels % groups:
        raise ValueError(f"num_groups must divide the {channels} channels, got {num_groups}")
    means, variances = (t.unflatten(1, (groups, -1)) for t in (m.mean, m.var))
    mean = means.mean(2, keepdim=True)
    var = (variances + (means - mean).square()).mean(2, keepdim=True)
    size = channels // groups
    return Moments(m.count * size, *(t.squeeze(2).repeat_interleave(size, dim=1) for t in (mean, var)))


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """(C,) or (N, C) in a shape that broadcasts against ``x``, (N, C, *)."""
    return vector.reshape(*(vector.shape if vector.dim() == 2 else (1, -1)), *[1] * (x.dim() - 2))


def check_num_channels(module: nn.Module, x: Tensor, *, spatial: bool = True) -> None:
    """Raise ValueError unless ``x`` is (N, ``module.num_channels``, *), with a spatial part where one is needed."""
    if x.dim() < (3 if spatial else 2) or x.shape[1] != module.num_channels:
        part = " with a spatial part" if spatial else ""
        raise ValueError(f"{type(module).__name__} takes (N, {module.num_channels}, *){part}, got {tuple(x.shape)}")


def check_groups(num_channels: int, num_groups: int) -> None:
    """Raise ValueError unless the groups divide the channels."""
    if num_groups < 1 or num_channels % num_groups:
        raise ValueError(f"num_channels must be divisible by num_groups, got {num_channels} and {num_groups}")


def next_momentum(num_batches_tracked: Tensor, momentum: float | None) -> float:
    """Count one batch more; its weight in running statistics: ``momentum``, or for None that of a plain mean."""
    num_batches_tracked.add_(1)
    return 1 / float(num_batches_tracked) if momentum is None else momentum


class Norm(nn.Module):
    """Any statistics with a learned γ and β for each channel: y = γ · (x - μ) / sqrt(σ² + ε) + β.

    The plain form of the formula, in float32 statistics whatever the dtype. The named norms compute the
    same with torch's fused kernels; this one serves points of the grid that have none.

    Args:
        num_channels: C.
        over: see :func:`statistics`. There are no running statistics: "batch" is that of the moment.
        num_groups: for "group".
        eps: added to the variance.
        affine: learn γ and β.

    Shape:
        (N, C, *) to the same.
    """

    def __init__(
        self,
        num_channels: int,
        over: Over = "instance",
        *,
        num_groups: int | None = None,
        eps: float = EPS,
        affine: bool = True,
    ) -> None:
        super().__init__()
        if over not in OVER:
            raise ValueError(f"unknown statistics {over!r}; choices: {', '.join(OVER)}")
        self.num_channels = num_channels
        self.over: Over = over
        self.num_groups = num_groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        gamma = None if self.weight is None else per_channel(self.weight, x)
        beta = None if self.bias is None else per_channel(self.bias, x)
        return normalize(x, statistics(x, self.over, self.num_groups), gamma, beta, self.eps)

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        groups = f", num_groups={self.num_groups}" if self.over == "group" else ""
        return f"{self.num_channels}, over={self.over}{groups}, eps={self.eps}, affine={self.weight is not None}"
