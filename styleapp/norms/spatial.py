"""Norms whose γ and β, or moments too, vary over the image: SPADE, SEAN, CLADE, region norm, and AdaIN by regions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleapp.norms.functional import EPS, normalize
from styleapp.norms.moments import Moments, moments
from styleapp.norms.named import InstanceNorm
from styleapp.norms.norm import check_num_channels, per_channel

__all__ = ["CLADE", "SEAN", "SPADE", "RegionNorm", "feather", "regional_adain"]


class SPADE(nn.Module):
    """Spatially adaptive (de)normalisation (Park et al. 2019, arXiv 1903.07291): y = norm(x) · (1 + γ(m)) + β(m).

    γ and β are maps that a small network computes from a segmentation map (eq. 2, and figure 3 for the
    network): a shared convolution and ReLU, then a convolution each.

    Args:
        num_channels: C of the features.
        label_channels: L of the segmentation map (one-hot, or any other map).
        hidden_channels: of the shared convolution.
        kernel_size: odd.
        base: norm without affine parameters; instance norm by default (the paper: synchronised batch norm).

    Shape:
        (N, C, H, W) and a map (N, L, h, w), resized to (H, W) by nearest, to (N, C, H, W).
    """

    def __init__(
        self,
        num_channels: int,
        label_channels: int,
        *,
        hidden_channels: int = 128,
        kernel_size: int = 3,
        base: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.base = InstanceNorm(num_channels, affine=False) if base is None else base
        pad = kernel_size // 2
        self.shared = nn.Conv2d(label_channels, hidden_channels, kernel_size, padding=pad)
        self.gamma = nn.Conv2d(hidden_channels, num_channels, kernel_size, padding=pad)
        self.beta = nn.Conv2d(hidden_channels, num_channels, kernel_size, padding=pad)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        """Normalise and apply the maps."""
        gamma, beta = self.maps(segmap, (x.shape[-2], x.shape[-1]))
        return self.base(x) * (1 + gamma) + beta

    def maps(self, segmap: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """γ and β, (N, C, H, W) each."""
        hidden = F.relu(self.shared(_resized(segmap, size).to(self.shared.weight.dtype)))
        return self.gamma(hidden), self.beta(hidden)


class SEAN(nn.Module):
    """Semantic region-adaptive normalisation (Zhu et al. 2020, arXiv 1911.12861): a style code for each region.

    γ = α_γ · γ_style + (1 - α_γ) · γ_SPADE, β likewise, and y = norm(x) · (1 + γ) + β (eq. 1 to 3 of section
    4.1). γ_style and β_style are convolutions of a style map: each region's code, projected by a layer of
    its own, spread over the region.

    Args:
        num_channels: C of the features.
        num_regions: R, channels of the segmentation map.
        style_channels: S of the codes.
        hidden_channels, kernel_size, base: as for :class:`SPADE`.
        noise: add noise to the features before the norm, with a learned scale for each channel (starting at 0).

    Shape:
        (N, C, H, W), a map (N, R, h, w) and style codes (N, R, S) to (N, C, H, W).
    """

    def __init__(
        self,
        num_channels: int,
        num_regions: int,
        *,
        style_channels: int = 512,
        hidden_channels: int = 128,
        kernel_size: int = 3,
        base: nn.Module | None = None,
        noise: bool = False,
    ) -> None:
        super().__init__()
        self.spade = SPADE(
            num_channels, num_regions, hidden_channels=hidden_channels, kernel_size=kernel_size, base=base
        )
        # One linear layer a region, as one tensor: (R, out, in) and (R, out).
        bound = style_channels**-0.5
        self.project = nn.Parameter(torch.empty(num_regions, style_channels, style_channels).uniform_(-bound, bound))
        self.project_bias = nn.Parameter(torch.empty(num_regions, style_channels).uniform_(-bound, bound))
        pad = kernel_size // 2
        self.gamma = nn.Conv2d(style_channels, num_channels, kernel_size, padding=pad)
        self.beta = nn.Conv2d(style_channels, num_channels, kernel_size, padding=pad)
        # sigmoid(0) = 0.5: both branches count alike at the start
        self.blend_gamma = nn.Parameter(torch.zeros(()))
        self.blend_beta = nn.Parameter(torch.zeros(()))
        self.noise = nn.Parameter(torch.zeros(num_channels)) if noise else None

    def forward(self, x: Tensor, segmap: Tensor, codes: Tensor) -> Tensor:
        """Normalise and apply the maps of regions and styles.

        Raises:
            ValueError: if map and codes have different numbers of regions.
        """
        if segmap.shape[1] != codes.shape[1] or codes.shape[1] != self.project.shape[0]:
            raise ValueError(
                f"SEAN has {self.project.shape[0]} regions, the map {segmap.shape[1]}, the codes {codes.shape[1]}"
            )
        if self.noise is not None:
            noise = torch.randn(x.shape[0], 1, *x.shape[2:], device=x.device, dtype=x.dtype)
            x = x + per_channel(self.noise, x) * noise
        size = (x.shape[-2], x.shape[-1])
        projected = F.relu(torch.einsum("nri,roi->nro", codes, self.project) + self.project_bias)
        style_map = torch.einsum("nrs,nrhw->nshw", projected, _resized(segmap, size).to(projected.dtype))
        gamma, beta = self.spade.maps(segmap, size)
        gamma = torch.lerp(gamma, self.gamma(style_map), self.blend_gamma.sigmoid())
        beta = torch.lerp(beta, self.beta(style_map), self.blend_beta.sigmoid())
        return self.spade.base(x) * (1 + gamma) + beta


class CLADE(nn.Module):
    """Class-adaptive (de)normalisation (Tan et al. 2021, arXiv 2012.04644): γ and β by the class of each position.

    y(p) = norm(x)(p) · γ[class(p)] + β[class(p)]: SPADE with a table in place of its convolutions, or conditional
    instance norm with a row at each position.

    Args:
        num_channels: C of the features.
        num_classes: rows of the table; γ starts at 1, β at 0.
        base: norm without affine parameters; instance norm by default (the paper: synchronised batch norm).

    Shape:
        (N, C, H, W) and classes (N or 1, h, w), whole numbers, resized to (H, W) by nearest, to (N, C, H, W).

    Raises:
        ValueError: for classes that are no whole numbers.
        IndexError: for a class that is not in the table.
    """

    def __init__(self, num_channels: int, num_classes: int, *, base: nn.Module | None = None) -> None:
        super().__init__()
        self.base = InstanceNorm(num_channels, affine=False) if base is None else base
        self.weight = nn.Parameter(torch.ones(num_classes, num_channels))
        self.bias = nn.Parameter(torch.zeros(num_classes, num_channels))

    def forward(self, x: Tensor, classes: Tensor) -> Tensor:
        """Normalise and apply the rows."""
        if classes.is_floating_point() or classes.dim() != 3:
            raise ValueError(f"classes are whole numbers, (N, h, w), got {classes.dtype} {tuple(classes.shape)}")
        known = torch.compiler.is_compiling() or 0 <= classes.min() <= classes.max() < len(self.weight)
        if not known:
            raise IndexError(f"classes must be 0 to {len(self.weight) - 1}, got {classes.min()} to {classes.max()}")
        row = _resized(classes[:, None], (x.shape[-2], x.shape[-1]))[:, 0].long()
        gamma, beta = (F.embedding(row, table).movedim(-1, 1) for table in (self.weight, self.bias))
        y: Tensor = self.base(x)
        return torch.addcmul(beta.to(y.dtype), y, gamma.to(y.dtype))


class RegionNorm(nn.Module):
    """Region normalisation (Yu et al. 2020, arXiv 1911.10375, RN-B): each region by its own moments, with its own γ, β.

    y(p) = Σᵣ mᵣ(p) · (γᵣ · (x(p) - μᵣ) / sqrt(σᵣ² + ε) + βᵣ), μᵣ and σᵣ² over the positions of region r of a sample and
    channel, each counting as its mask says. For inpainting the regions are the hole and the rest: what fills the hole
    does not shift the statistics of what is known. One region is instance norm.

    Args:
        num_channels: C of the features.
        num_regions: R.
        eps: added to the variance.

    Shape:
        (N, C, H, W) and masks (N or 1, R, h, w), 0 or more, resized to (H, W) by nearest and divided by their sum at
        each position, which must be above 0, to (N, C, H, W).

    Raises:
        ValueError: for another number of masks, or a position that belongs to no region.
    """

    def __init__(self, num_channels: int, num_regions: int = 2, *, eps: float = EPS) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_regions, num_channels))
        self.bias = nn.Parameter(torch.zeros(num_regions, num_channels))

    def forward(self, x: Tensor, masks: Tensor) -> Tensor:
        """Normalise region by region."""
        check_num_channels(self, x)
        if masks.shape[1] != len(self.weight):
            raise ValueError(f"RegionNorm has {len(self.weight)} regions, got {masks.shape[1]} masks")
        wide = torch.promote_types(x.dtype, torch.float32)
        shares = _shares(_resized(masks, (x.shape[-2], x.shape[-1])).to(wide))
        total = torch.zeros_like(x, dtype=wide)
        for r, (gamma, beta) in enumerate(zip(self.weight, self.bias, strict=True)):
            mask = shares[:, r : r + 1]
            weight = mask / mask.sum((2, 3), keepdim=True).clamp_min(torch.finfo(wide).tiny)  # a region may be empty
            mean = (x * weight).sum((2, 3), keepdim=True)
            var = ((x - mean).square() * weight).sum((2, 3), keepdim=True)
            y = normalize(x.to(wide), Moments(0, mean, var), per_channel(gamma, x), per_channel(beta, x), self.eps)
            total = total + mask * y
        return total.to(x.dtype)


def regional_adain(
    content: Tensor,
    styles: Sequence[Tensor | Moments],
    masks: Tensor,
    alpha: float | Tensor = 1.0,
    eps: float = EPS,
) -> Tensor:
    """AdaIN with a style for each region: the content is normalised once, by its own moments over the whole image.

    y = γ(p) · (c - μ(c)) / σ(c) + β(p), with γ(p) = Σᵣ mᵣ(p) σ(sᵣ) and β(p) = Σᵣ mᵣ(p) μ(sᵣ): a map of codes.

    Args:
        content: (N, C, H, W).
        styles: features or moments of each region's style.
        masks: (N or 1, R, H, W), 0 or more; divided by their sum at each position, which must be above 0.
        alpha: strength in [0,1], a number or a map.
        eps: added to the variances.

    Raises:
        ValueError: if masks and styles differ in number, or a position belongs to no region.
    """
    if masks.shape[1] != len(styles):
        raise ValueError(f"{masks.shape[1]} masks but {len(styles)} styles")
    share = _shares(masks).unsqueeze(2)  # (N, R, 1, H, W)
    own = moments(content)
    targets = [s if isinstance(s, Moments) else moments(s) for s in styles]
    gamma = sum(share[:, r] * m.std(eps) for r, m in enumerate(targets))
    beta = sum(share[:, r] * m.mean for r, m in enumerate(targets))
    gamma = own.std(eps) * (1 - alpha) + gamma * alpha
    beta = own.mean * (1 - alpha) + beta * alpha
    return normalize(content, own, gamma, beta, eps)


def feather(masks: Tensor, radius: float) -> Tensor:
    """Masks (N, R, H, W) with borders softened by a Gaussian of standard deviation ``radius`` pixels; range kept."""
    if radius <= 0:
        return masks
    reach = max(1, round(3 * radius))
    offsets = torch.arange(-reach, reach + 1, device=masks.device, dtype=masks.dtype)
    kernel = torch.exp(-0.5 * (offsets / radius) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    flat = masks.flatten(0, 1).unsqueeze(1)
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernel.unsqueeze(2))
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel.unsqueeze(3))
    return flat.view_as(masks).clamp(0, 1)


def _shares(masks: Tensor) -> Tensor:
    """Masks (N, R, H, W), divided by their sum at each position."""
    total = masks.sum(1, keepdim=True)
    if not torch.compiler.is_compiling() and (not (total > 0).all() or (masks < 0).any()):
        raise ValueError("masks must be 0 or more, and at every position at least one above 0")
    return masks / total


def _resized(segmap: Tensor, size: tuple[int, int]) -> Tensor:
    return segmap if tuple(segmap.shape[-2:]) == size else F.interpolate(segmap.float(), size=size, mode="nearest")
