"""Norms whose γ and β come from a table (one row a style), from a style's statistics, a linear layer, or the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from styleapp.norms.functional import EPS, normalize
from styleapp.norms.moments import Moments, moments
from styleapp.norms.named import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from styleapp.norms.norm import Over, check_num_channels, per_channel, statistics

__all__ = [
    "AdaLNZero",
    "AdaptiveNorm",
    "AttentiveNorm",
    "ConditionalBatchNorm",
    "ConditionalGroupNorm",
    "ConditionalInstanceNorm",
    "ConditionalLayerNorm",
    "ConditionalNorm",
    "ModulatedNorm",
    "StyleIds",
    "adabn",
    "adagn",
    "adain",
    "adaln",
    "adaptive",
]

StyleIds: TypeAlias = "int | Tensor | Sequence[int]"
"""A row, a row for each sample (integers, (N,)), or weights over rows (floats, (S,) or (N, S))."""


class ConditionalNorm(nn.Module):
    """A norm without γ and β, then γ and β of a style out of a table (Dumoulin, Shlens and Kudlur 2017, eq. 5).

    Args:
        base: normalises; without affine parameters.
        num_channels: C.
        num_styles: rows of the table; γ starts at 1, β at 0.

    Shape:
        (N, C, *) and the styles (:data:`StyleIds`) to (N, C, *).
    """

    def __init__(self, base: nn.Module, num_channels: int, num_styles: int) -> None:
        super().__init__()
        self.base = base
        self.num_channels = num_channels
        # One parameter a row, not one table: what is frozen is out of every optimiser's reach, weight decay included.
        self.weight = nn.ParameterList(torch.ones(num_channels) for _ in range(num_styles))
        self.bias = nn.ParameterList(torch.zeros(num_channels) for _ in range(num_styles))

    @property
    def num_styles(self) -> int:
        """Rows of the table."""
        return len(self.weight)

    def forward(self, x: Tensor, style: StyleIds) -> Tensor:
        """Normalise and apply the γ and β of ``style``.

        Raises:
            IndexError: for a row that is not there.
            ValueError: for weights that do not fit the number of rows, or ids that do not fit the batch.
        """
        gamma, beta = (per_channel(self._rows(table, style, x.shape[0]), x) for table in (self.weight, self.bias))
        y: Tensor = self.base(x)
        return torch.addcmul(beta.to(y.dtype), y, gamma.to(y.dtype))

    def _rows(self, table: nn.ParameterList, style: StyleIds, batch: int) -> Tensor:
        if isinstance(style, int):
            if not 0 <= style < len(table):
                raise IndexError(f"style must be 0 to {len(table) - 1}, got {style}")
            return table[style]
        rows = torch.stack(list(table))
        style = torch.as_tensor(style, device=rows.device)
        if style.is_floating_point():
            if style.dim() not in (1, 2) or style.shape[-1] != len(table):
                raise ValueError(f"weights over {len(table)} styles are (S,) or (N, S), got {tuple(style.shape)}")
            return style.to(rows.dtype) @ rows
        if style.dim() != 1 or style.shape[0] != batch:
            raise ValueError(f"ids of styles have shape ({batch},), one for each sample, got {tuple(style.shape)}")
        if not torch.compiler.is_compiling() and style.numel() and not 0 <= style.min() <= style.max() < len(table):
            raise IndexError(f"styles must be 0 to {len(table) - 1}, got {style.tolist()}")
        return rows[style]

    def add_style(self, gamma: Tensor | None = None, beta: Tensor | None = None, *, freeze: bool = True) -> int:
        """Add a row and return its number; the others are frozen unless told otherwise.

        Args:
            gamma, beta: (C,) to start from, for example a measured code; 1 and 0 by default.
            freeze: turn off the gradients of all other rows. The base and the rest of the network are the caller's.
        """
        like = self.weight[0] if len(self.weight) else torch.ones(self.num_channels)
        for table, value, default in ((self.weight, gamma, 1.0), (self.bias, beta, 0.0)):
            if freeze:
                table.requires_grad_(False)
            row = torch.full_like(like, default) if value is None else value.detach().flatten().to(like).clone()
            if row.shape != (self.num_channels,):
                raise ValueError(f"a row has {self.num_channels} numbers, got {row.numel()}")
            table.append(nn.Parameter(row))
        return self.num_styles - 1


class ConditionalInstanceNorm(ConditionalNorm):
    """CIN: instance norm with one (γ, β) a style (Dumoulin, Shlens and Kudlur 2017). With one row it is IN."""

    def __init__(self, num_channels: int, num_styles: int = 1, *, eps: float = EPS, **options: Any) -> None:
        super().__init__(InstanceNorm(num_channels, eps=eps, affine=False, **options), num_channels, num_styles)


class ConditionalBatchNorm(ConditionalNorm):
    """Batch norm with one (γ, β) a class (de Vries et al. 2017, with a table)."""

    def __init__(self, num_channels: int, num_styles: int = 1, *, eps: float = EPS, **options: Any) -> None:
        super().__init__(BatchNorm(num_channels, eps=eps, affine=False, **options), num_channels, num_styles)


class ConditionalGroupNorm(ConditionalNorm):
    """Group norm with one (γ, β) a style."""

    def __init__(self, num_channels: int, num_styles: int = 1, *, num_groups: int = 32, eps: float = EPS) -> None:
        base = GroupNorm(num_channels, num_groups=num_groups, eps=eps, affine=False)
        super().__init__(base, num_channels, num_styles)


class ConditionalLayerNorm(ConditionalGroupNorm):
    """Layer norm over (C, H, W), that is, one group, with one (γ, β) a style."""

    def __init__(self, num_channels: int, num_styles: int = 1, *, eps: float = EPS) -> None:
        super().__init__(num_channels, num_styles, num_groups=1, eps=eps)


def adaptive(
    content: Tensor,
    style: Tensor | Moments,
    alpha: float | Tensor = 1.0,
    *,
    over: Over = "instance",
    num_groups: int | None = None,
    eps: float = EPS,
) -> Tensor:
    """Give the content the style's moments over any axes: AdaIN, AdaLN, AdaGN or AdaBN by ``over``.

    y = σ(s) · (c - μ(c)) / σ(c) + μ(s), with σ = sqrt(var + ε), both sides over the same axes. "group" with C
    groups equals "instance", with one group "layer". The lerp of features that alpha stands for is done on
    the codes: one pass over the features.

    Args:
        content: (N, C, *).
        style: features, (N or 1, C, *); or moments that broadcast against the content.
        alpha: strength in [0,1].
        over, num_groups: see :func:`~styleapp.norms.norm.statistics`.
        eps: added to both variances.
    """
    own = statistics(content, over, num_groups)
    target = style if isinstance(style, Moments) else statistics(style, over, num_groups)
    gamma = own.std(eps) * (1 - alpha) + target.std(eps) * alpha
    beta = own.mean * (1 - alpha) + target.mean * alpha
    return normalize(content, own, gamma, beta, eps)


def adain(content: Tensor, style: Tensor | Moments, alpha: float | Tensor = 1.0, eps: float = EPS) -> Tensor:
    """Adaptive instance normalisation (Huang and Belongie 2017, eq. 8; alpha: section 7.3): channel by channel."""
    return adaptive(content, style, alpha, eps=eps)


def adaln(content: Tensor, style: Tensor | Moments, alpha: float | Tensor = 1.0, eps: float = EPS) -> Tensor:
    """The same with one mean and deviation for all channels together."""
    return adaptive(content, style, alpha, over="layer", eps=eps)


def adabn(content: Tensor, style: Tensor | Moments, alpha: float | Tensor = 1.0, eps: float = EPS) -> Tensor:
    """The same with moments over the whole batch (with one sample: AdaIN)."""
    return adaptive(content, style, alpha, over="batch", eps=eps)


def adagn(
    content: Tensor, style: Tensor | Moments, alpha: float | Tensor = 1.0, eps: float = EPS, *, num_groups: int = 32
) -> Tensor:
    """The same with one mean and deviation for each group of channels."""
    return adaptive(content, style, alpha, over="group", num_groups=num_groups, eps=eps)


class AdaptiveNorm(nn.Module):
    """:func:`adaptive` as a module that holds the axes; AdaIN by default."""

    def __init__(self, over: Over = "instance", *, num_groups: int | None = None, eps: float = EPS) -> None:
        super().__init__()
        self.over: Over = over
        self.num_groups = num_groups
        self.eps = eps

    def forward(self, content: Tensor, style: Tensor | Moments, alpha: float | Tensor = 1.0) -> Tensor:
        """Content features with the style's moments."""
        return adaptive(content, style, alpha, over=self.over, num_groups=self.num_groups, eps=self.eps)

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        groups = f", num_groups={self.num_groups}" if self.over == "group" else ""
        return f"over={self.over}{groups}, eps={self.eps}"


class ModulatedNorm(nn.Module):
    """A norm without γ and β, then those that a linear layer makes of a condition: y = norm(x) · (1 + γ(c)) + β(c).

    With instance norm it is the AdaIN of StyleGAN (Karras et al. 2019), with group norm the AdaGN of diffusion models
    (Dhariwal and Nichol 2021), with layer norm the AdaLN of DiT (Peebles and Xie 2023), with batch norm conditional
    batch norm (de Vries et al. 2017), with ``nn.Identity()`` FiLM (Perez et al. 2018). The layer starts at zero: fresh
    from the constructor it is the base.

    Args:
        base: normalises; without affine parameters.
        num_channels: C.
        condition_channels: K.
        dim: where the channels are: 1 for images, -1 for tokens.

    Shape:
        (N, C, *), or with ``dim=-1`` (N, *, C), and a condition (N, K), to that of the first.
    """

    parts = 2  # γ and β

    def __init__(self, base: nn.Module, num_channels: int, condition_channels: int, *, dim: int = 1) -> None:
        super().__init__()
        self.base = base
        self.num_channels = num_channels
        self.dim = dim
        self.linear = nn.Linear(condition_channels, self.parts * num_channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalise and modulate."""
        gamma, beta = self.modulation(x, condition)[:2]
        return self._modulated(x, gamma, beta)

    def modulation(self, x: Tensor, condition: Tensor) -> tuple[Tensor, ...]:
        """γ(c), β(c), and what else the layer makes, in shapes that broadcast against ``x``."""
        shape = [1] * x.dim()
        shape[0], shape[self.dim] = len(condition), self.num_channels
        return tuple(part.reshape(shape) for part in self.linear(condition).chunk(self.parts, dim=1))

    def _modulated(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return torch.addcmul(beta.to(y.dtype), y, (1 + gamma).to(y.dtype))


class AdaLNZero(ModulatedNorm):
    """adaLN-Zero (Peebles and Xie 2023, arXiv 2212.09748) around a block: x + g(c) · block(LN(x) · (1 + γ(c)) + β(c)).

    γ, β and the gate g are of one linear layer that starts at zero, so that each block starts as the identity. (DiT
    has a SiLU before that layer, which is the caller's.)

    Args:
        num_channels: C.
        condition_channels: K.
        eps: added to the variance; 1e-6 in DiT.

    Shape:
        Tokens (N, L, C), a condition (N, K) and a block that keeps shapes, to (N, L, C).
    """

    parts = 3

    def __init__(self, num_channels: int, condition_channels: int, *, eps: float = EPS) -> None:
        super().__init__(LayerNorm(num_channels, eps=eps, affine=False), num_channels, condition_channels, dim=-1)

    def forward(  # type: ignore[override]
        self, x: Tensor, condition: Tensor, block: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The block with its residual connection."""
        gamma, beta, gate = self.modulation(x, condition)
        y = block(self._modulated(x, gamma, beta))
        return torch.addcmul(x, gate.to(x.dtype), y.to(x.dtype))


class AttentiveNorm(nn.Module):
    """Attentive normalisation (Li, Sun and Wu 2020, arXiv 1908.01259): K pairs of γ and β, mixed by each sample.

        λ_n = hard-sigmoid(BN(W a_n)), a_n = μ / sqrt(σ² + 1e-3) of each channel of sample n
        y_n = norm(x_n) · Σ_k λ_nk γ_k + Σ_k λ_nk β_k

    These weights, of several that the paper compares, are the ones that its authors' code has by default.

    Args:
        num_channels: C.
        mixtures: K, 5 to 20 in the paper.
        base: norm without affine parameters; batch norm by default.
        eps: added to the variance by the default base.

    Shape:
        (N, C, *) with a spatial part, to the same. In training N must be above 1, for the batch norm of λ.
    """

    def __init__(
        self, num_channels: int, *, mixtures: int = 10, base: nn.Module | None = None, eps: float = EPS
    ) -> None:
        super().__init__()
        if mixtures < 1:
            raise ValueError(f"mixtures must be at least 1, got {mixtures}")
        self.num_channels = num_channels
        self.base = BatchNorm(num_channels, eps=eps, affine=False) if base is None else base
        self.gate = nn.Linear(num_channels, mixtures, bias=False)
        self.gate_norm = BatchNorm(mixtures)
        self.gamma = nn.Parameter(1 + 0.1 * torch.randn(mixtures, num_channels))
        self.beta = nn.Parameter(0.1 * torch.randn(mixtures, num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and modulate."""
        check_num_channels(self, x)
        own = moments(x, range(2, x.dim()))
        relative = (own.mean / own.std(1e-3)).flatten(1)
        wide = relative.dtype
        logits = self.gate_norm(nn.functional.linear(relative, self.gate.weight.to(wide)).to(self.gate.weight.dtype))
        shares = nn.functional.hardsigmoid(logits)
        gamma, beta = (per_channel(shares.to(wide) @ table.to(wide), x) for table in (self.gamma, self.beta))
        y: Tensor = self.base(x)
        return torch.addcmul(beta, y.to(wide), gamma).to(x.dtype)

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        return f"{self.num_channels}, mixtures={len(self.gamma)}"
