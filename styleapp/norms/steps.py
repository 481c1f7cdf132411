"""Batch norm for batches of few samples: statistics of several steps of a training, and a backward pass to match.

What they keep is part of a training, so their gradient depends on the steps before. In evaluation all are batch norm.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from styleapp.norms.functional import EPS, normalize
from styleapp.norms.moments import Moments, moments
from styleapp.norms.named import BatchNorm
from styleapp.norms.norm import check_num_channels, next_momentum, per_channel

__all__ = ["CrossIterationBatchNorm", "MovingAverageBatchNorm", "OnlineNorm", "center_weight"]


class CrossIterationBatchNorm(BatchNorm):
    """Cross-iteration batch norm (Yao et al. 2021, arXiv 2002.05712): moments of the last ``window`` batches.

    A past batch went through other weights, so its moments are carried over to those of now, to first order:

        μ' = μ + Σ ∂μ/∂θ · (θ_now - θ),   ν' = ν + Σ ∂ν/∂θ · (θ_now - θ)

    with ν the mean square, and θ the weights of the layer before, which matter most. Then μ is the mean of all μ', and
    σ² that of all max(ν', μ'²) less its square (section 3 of the paper). Gradients go through the batch of now alone.
    With a window of 1 it is batch norm; so it is where nothing is to be trained, and in evaluation.

    The past is not in the state dict: a training that goes on begins a new window.

    Args:
        num_channels: C.
        window: k; 8 in the paper.
        warmup: as many batches are normalised by themselves first: early weights move too fast.
        options: others of :class:`BatchNorm`.

    Shape:
        (N, C, *), and the weight, (C, *), of the convolution or linear layer that gave it, to the first.

    Raises:
        ValueError: if ``x`` does not come from ``weight``, or for a window or warmup that is none.
    """

    def __init__(self, num_channels: int, *, window: int = 8, warmup: int = 0, **options: Any) -> None:
        super().__init__(num_channels, **options)
        if window < 1 or warmup < 0:
            raise ValueError(f"window must be at least 1 and warmup at least 0, got {window} and {warmup}")
        self.window = window
        self.warmup = warmup
        self._past: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=window - 1)

    def forward(self, input: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise."""
        learns = torch.is_grad_enabled() and input.requires_grad and weight.requires_grad
        if not self.training or not learns or self.window == 1 or int(self.num_batches_tracked or 0) < self.warmup:
            return super().forward(input)
        self._check_input_dim(input)
        found = moments(input, (0, *range(2, input.dim())))
        if found.count <= 1:
            raise ValueError(f"expected more than 1 value per channel when training, got shape {tuple(input.shape)}")
        mean = found.mean.flatten()
        both = torch.stack([mean, found.var.flatten() + mean.square()])
        now = weight.detach().to(both.dtype, copy=True)
        slopes = torch.stack([_slope(row, weight).to(both.dtype) for row in both])
        carried = [
            old.to(both) + (slope.to(both) * (now - then.to(both))).flatten(2).sum(-1)
            for old, slope, then in self._past
        ]
        self._past.appendleft((both.detach(), slopes, now))
        means, squares = torch.stack([both, *carried], 1)  # (k, C) each
        mean = means.mean(0)
        var = (torch.maximum(squares, means.square()).mean(0) - mean.square()).clamp_min(0)
        self._track(found)
        gamma = None if self.weight is None else per_channel(self.weight, input)
        beta = None if self.bias is None else per_channel(self.bias, input)
        of_all = Moments(found.count, per_channel(mean, input), per_channel(var, input))
        return normalize(input, of_all, gamma, beta, self.eps)

    @torch.no_grad()
    def _track(self, found: Moments) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        momentum = next_momentum(self.num_batches_tracked, self.momentum)
        unbiased = found.var.flatten() * (found.count / (found.count - 1))
        self.running_mean.lerp_(found.mean.flatten().to(self.running_mean), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), momentum)


def _slope(of_channels: Tensor, weight: Tensor) -> Tensor:
    """∂ of each channel's number for its own filter, (C, *): one filter has no part in another's channel."""
    try:
        (found,) = torch.autograd.grad(of_channels.sum(), weight, retain_graph=True)
    except RuntimeError as error:
        if "not have been used" not in str(error):
            raise
        raise ValueError("x does not come from this weight: give that of the layer before the norm") from None
    return found


class MovingAverageBatchNorm(nn.Module):
    """Moving average batch norm (MABN; Yan et al. 2020, arXiv 2001.06838), for filters with mean 0.

        y = γ · r · x / sqrt(χ + ε) + β,   r = sqrt((χ + ε) / (χ_running + ε)) within [1 / limit, limit]

    χ is the mean square, μ being left to the filters before (:func:`center_weight`). In training χ is the mean over the
    last ``window`` batches, and so is the mean of g · x / sqrt(χ + ε) in the gradient (section 4 of the paper); r has
    no gradient. Until ``warmup`` both are those of the batch, and the gradient is the true one; until ``renorm_after``
    r is 1.

    Args:
        num_channels: C.
        window: m; the paper's batches of 2 have 16.
        warmup, renorm_after: in batches.
        limit: λ.
        momentum: weight of the new batch in χ_running (torch's convention).
        eps: ε.
        affine: learn γ and β.

    Shape:
        (N, C, *) to the same.
    """

    running_square: Tensor
    squares: Tensor
    gradients: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        window: int = 16,
        warmup: int = 100,
        renorm_after: int = 1000,
        limit: float = 5.0,
        eps: float = EPS,
        affine: bool = True,
        momentum: float = 0.02,
    ) -> None:
        super().__init__()
        if window < 1 or limit < 1:
            raise ValueError(f"window and limit must be at least 1, got {window} and {limit}")
        self.num_channels = num_channels
        self.window = window
        self.warmup = warmup
        self.renorm_after = renorm_after
        self.limit = limit
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None
        self.register_buffer("running_square", torch.ones(num_channels))
        self.register_buffer("squares", torch.zeros(window, num_channels))
        self.register_buffer("gradients", torch.zeros(window, num_channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        check_num_channels(self, x, spatial=False)
        wide = torch.promote_types(x.dtype, torch.float32)
        gamma = per_channel(torch.ones_like(self.running_square) if self.weight is None else self.weight, x).to(wide)
        beta = 0.0 if self.bias is None else per_channel(self.bias, x).to(wide)
        running = self.running_square.to(wide) + self.eps
        if not self.training:
            return (x.to(wide) * (gamma / per_channel(running, x).sqrt()) + beta).to(x.dtype)
        with torch.no_grad():
            step = self.num_batches_tracked.add_(1)
            square = self._over_window(self.squares, x.to(wide).square().mean((0, *range(2, x.dim()))), step)
            r = ((square + self.eps) / running).sqrt().clamp(1 / self.limit, self.limit)
            r = torch.where(step > max(self.renorm_after, self.warmup), r, torch.ones_like(r))
            self.running_square.lerp_(square.to(self.running_square), self.momentum)
        scaled: Tensor = _Scaled.apply(
            x, per_channel((square + self.eps).rsqrt(), x), per_channel(r, x), self, step.clone()
        )
        return (scaled * gamma + beta).to(x.dtype)

    def _over_window(self, kept: Tensor, new: Tensor, step: Tensor) -> Tensor:
        """The mean over the last batches, of which this is one; in the warmup, of this alone."""
        kept.index_copy_(0, (step % self.window).view(1), new[None].to(kept))
        return torch.where(step > max(self.window, self.warmup), kept.mean(0).to(new.dtype), new)

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        return f"{self.num_channels}, window={self.window}, eps={self.eps}, momentum={self.momentum}"


class _Scaled(torch.autograd.Function):
    """r · z with z = x · scale, and for x the gradient scale · (r g - z · mean(r g z)), the mean over the window."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, r: Tensor, norm: MovingAverageBatchNorm, step: Tensor) -> Tensor:
        z = x.to(scale.dtype) * scale
        ctx.save_for_backward(z, scale, r)
        ctx.norm, ctx.step, ctx.dtype = norm, step, x.dtype
        return z * r

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, scale, r = ctx.saved_tensors
        g = g * r
        new = (g * z).mean((0, *range(2, z.dim())))
        along = per_channel(ctx.norm._over_window(ctx.norm.gradients, new, ctx.step), z)
        return ((g - z * along) * scale).to(ctx.dtype), None, None, None, None


class OnlineNorm(nn.Module):
    """Online normalisation (Chiley et al. 2019, arXiv 1905.05894): a stream of samples, in place of batches.

    A sample, of mean m and variance s², is normalised with the averages over those before it, and then enters them:

        y = (x - μ) / sqrt(σ² + ε),   σ² ← α σ² + (1 - α) s² + α (1 - α) (m - μ)²,   μ ← α μ + (1 - α) m

    with α = ``alpha_fwd``. Batch norm's gradient has no part along 1 and along y. This one is held there by feedback:
    what has passed along either is summed up, and a share of 1 - ``alpha_bkw`` of the sum taken off the next sample's
    (section 3 of the paper). A batch is a sequence of samples. Then γ and β, and what keeps errors of the averages from
    growing from layer to layer: ``guard`` "scaling" divides each sample by the root mean square of all its features,
    "clamping", which its authors took up later, limits them to ±5, "none" is none.

    Args:
        num_channels: C.
        alpha_fwd, alpha_bkw: what an average keeps at each sample.
        guard: "scaling", "clamping" or "none".
        eps: ε.
        affine: learn γ and β.

    Shape:
        (N, C, *) to the same.
    """

    running_mean: Tensor
    running_var: Tensor
    mean_error: Tensor
    scale_error: Tensor

    def __init__(
        self,
        num_channels: int,
        *,
        alpha_fwd: float = 0.999,
        alpha_bkw: float = 0.99,
        guard: str = "scaling",
        eps: float = EPS,
        affine: bool = True,
    ) -> None:
        super().__init__()
        if not (0 <= alpha_fwd <= 1 and 0 <= alpha_bkw <= 1):
            raise ValueError(f"alpha_fwd and alpha_bkw must be from 0 to 1, got {alpha_fwd} and {alpha_bkw}")
        if guard not in ("scaling", "clamping", "none"):
            raise ValueError(f"guard must be scaling, clamping or none, got {guard!r}")
        self.num_channels = num_channels
        self.alpha_fwd = alpha_fwd
        self.alpha_bkw = alpha_bkw
        self.guard = guard
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self.register_buffer("mean_error", torch.zeros(num_channels))
        self.register_buffer("scale_error", torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each sample with those before it."""
        check_num_channels(self, x, spatial=False)
        wide = torch.promote_types(x.dtype, torch.float32)
        mean, var = self.running_mean.to(wide), self.running_var.to(wide)
        if self.training:
            means, stds = self._before(x.detach().to(wide), mean, var)
            y: Tensor = _Controlled.apply(x, means, stds, self)
        else:
            y = (x.to(wide) - per_channel(mean, x)) / per_channel(var + self.eps, x).sqrt()
        if self.weight is not None and self.bias is not None:
            y = torch.addcmul(per_channel(self.bias, x).to(wide), y, per_channel(self.weight, x).to(wide))
        if self.guard == "scaling":
            y = y * (y.square().mean(tuple(range(1, y.dim())), keepdim=True) + self.eps).rsqrt()
        elif self.guard == "clamping":
            y = y.clamp(-5, 5)
        return y.to(x.dtype)

    @torch.no_grad()
    def _before(self, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation before each sample, (N, C, …), all of which then are in the running ones."""
        positions = tuple(range(2, x.dim()))
        found = moments(x, positions) if positions else Moments(1, x, torch.zeros_like(x))
        keep, shape = self.alpha_fwd, (len(x), self.num_channels, *[1] * len(positions))
        means, variances = [], []
        for own_mean, own_var in zip(found.mean.flatten(1), found.var.flatten(1), strict=True):
            means.append(mean)
            variances.append(var)
            apart = own_mean - mean
            var = keep * var + (1 - keep) * own_var + keep * (1 - keep) * apart.square()
            mean = mean + (1 - keep) * apart
        before = torch.stack(means).view(shape), (torch.stack(variances) + self.eps).sqrt().view(shape)
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return before

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        return f"{self.num_channels}, alpha_fwd={self.alpha_fwd}, alpha_bkw={self.alpha_bkw}, guard={self.guard}"


class _Controlled(torch.autograd.Function):
    """(x - mean) / std for each sample; its gradient is held orthogonal to 1 and to y over the samples."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, std: Tensor, norm: OnlineNorm) -> Tensor:
        y = (x.to(std.dtype) - mean) / std
        ctx.save_for_backward(y, std)
        ctx.norm, ctx.dtype = norm, x.dtype
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        y, std = ctx.saved_tensors
        norm, share = ctx.norm, 1 - ctx.norm.alpha_bkw
        # The feedback needs means over each sample alone, so positions need no loop.
        means = [t.flatten(2).mean(-1) if t.dim() > 2 else t for t in (g, y, g * y, y * y)]
        of_mean, of_scale = norm.mean_error.to(y.dtype), norm.scale_error.to(y.dtype)
        along_y, along_1 = [], []
        for g_1, y_1, g_y, y_y, deviation in zip(*means, std.flatten(1), strict=True):
            along_y.append(share * of_scale)
            along_1.append(share * of_mean)
            of_scale = of_scale + g_y - along_y[-1] * y_y
            of_mean = of_mean + (g_1 - along_y[-1] * y_1) / deviation - along_1[-1]
        norm.mean_error.copy_(of_mean)
        norm.scale_error.copy_(of_scale)
        off_y, off_1 = (torch.stack(t).view_as(std) for t in (along_y, along_1))
        return ((g - off_y * y) / std - off_1).to(ctx.dtype), None, None, None


def center_weight(weight: Tensor) -> Tensor:
    """Each filter of (O, I, …) less its mean, so that inputs of one mean give outputs of mean 0 (Yan et al. 2020)."""
    return weight - weight.mean(tuple(range(1, weight.dim())), keepdim=True)
