"""Training images: a folder decoded once into memory, random crops of it, and patterns that we draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from styleapp.errors import ImageError
from styleapp.files import SUFFIXES, read_image

__all__ = ["ImagePool", "colour_augmentation", "painting_crops", "patterns"]


class ImagePool:
    """All images of a folder as uint8 in the memory of one device, and random crops of them.

    Args:
        folder: searched recursively, in the order of the names.
        short_side: larger images are reduced to it, so that a crop shows more than a detail.
        device: where the pixels are kept and the crops are made.
        skipped: called with the error of each file that cannot be used.

    Raises:
        ImageError: if no image of the folder can be used.
    """

    def __init__(
        self,
        folder: Path,
        short_side: int = 320,
        device: torch.device | str = "cpu",
        skipped: Callable[[ImageError], None] = lambda error: None,
    ) -> None:
        self.images: list[Tensor] = []
        if not folder.is_dir():
            raise ImageError(f"{folder}: not a folder of training images")
        files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)

        def load(file: Path) -> Tensor | ImageError:
            try:
                image = read_image(file).rgb
            except ImageError as error:
                return error
            if min(image.shape[-2:]) > short_side:
                image = v2.functional.resize(image, [short_side], antialias=True)
            return (image[0].clamp(0, 1) * 255).round().to(torch.uint8)

        with ThreadPoolExecutor() as pool:
            for loaded in pool.map(load, files):
                if isinstance(loaded, ImageError):
                    skipped(loaded)
                else:
                    self.images.append(loaded.to(device))
        if not self.images:
            raise ImageError(f"{folder}: no readable image among {len(files)} files")

    def __len__(self) -> int:
        return len(self.images)

    def crops(self, count: int, size: int, scale: tuple[float, float]) -> Tensor:
        """(count, 3, size, size) in [0,1]: random images, random squares of ``scale`` times the short side."""
        out = [torch.empty(0, 3, size, size, device=self.images[0].device)]
        for index in torch.randint(len(self.images), (count,)).tolist():
            image = self.images[index]
            height, width = image.shape[-2:]
            part, top, left, flip = torch.rand(4).tolist()
            side = max(1, round(min(height, width) * (scale[0] + part * (scale[1] - scale[0]))))
            y, x = round(top * (height - side)), round(left * (width - side))
            crop = image[None, :, y : y + side, x : x + side].float() / 255
            crop = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)
            out.append(crop.flip(-1) if flip < 0.5 else crop)
        return torch.cat(out).clamp_(0, 1)


_COLOUR = v2.Compose(
    [
        v2.RandomApply([v2.RandomChannelPermutation()], p=0.3),
        v2.RandomInvert(p=0.15),
        v2.RandomApply([v2.ColorJitter(brightness=0.3, contrast=0.4, saturation=0.5, hue=0.5)], p=0.5),
        v2.RandomApply([v2.ColorJitter(contrast=(1.5, 4.0), saturation=(1.0, 2.0))], p=0.15),  # as posters have it
        v2.RandomGrayscale(p=0.08),  # ink and engravings
        v2.RandomVerticalFlip(p=0.2),
    ]
)


def colour_augmentation(batch: Tensor, groups: int = 4) -> Tensor:
    """Random permuted or inverted channels, hue, contrast and vertical flips, one draw for each of ``groups`` parts."""
    return torch.cat([_COLOUR(part) for part in batch.chunk(groups)])


def painting_crops(
    pool: ImagePool, count: int, size: int, pattern_share: float = 0.0, colour_share: float = 1.0
) -> Tensor:
    """(count, 3, size, size) in [0,1]: crops of paintings, ``colour_share`` of them in random colours.

    ``pattern_share`` of them are no paintings but drawn by us.
    """
    drawn = int((torch.rand(count) < pattern_share).sum())
    crops = pool.crops(count - drawn, size, (0.3, 1.0))
    changed = torch.rand(len(crops), 1, 1, 1) < colour_share
    crops = torch.where(changed.to(crops.device), colour_augmentation(crops), crops)
    return torch.cat([crops, patterns(drawn, size, crops.device)]) if drawn else crops


def patterns(count: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """(count, 3, size, size) in [0,1]: stripes, checks, rings, cells, noise and curls in random palettes."""
    axis = torch.linspace(-1, 1, size, device=device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    drawn = [_palette(_field(kind, x, y)) for kind in torch.randint(6, (count,)).tolist()]
    return torch.cat([torch.empty(0, 3, size, size, device=device), *drawn])


def _field(kind: int, x: Tensor, y: Tensor) -> Tensor:
    """A scalar field in [0,1] on the grid (x, y)."""
    angle, shift, frequency = torch.rand(3).tolist()
    frequency = 2 ** (1 + 5 * frequency)
    cos, sin = math.cos(math.pi * angle), math.sin(math.pi * angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    if kind == 0:  # stripes
        return 0.5 + 0.5 * torch.sin(math.pi * frequency * (u + shift))
    if kind == 1:  # checks
        return 0.5 + 0.5 * torch.sin(math.pi * frequency * u) * torch.sin(math.pi * frequency * v)
    if kind == 2:  # rings
        return 0.5 + 0.5 * torch.sin(math.pi * frequency * torch.hypot(u - shift, v))
    if kind == 3:  # cells: distance to the nearest of some random points
        points = torch.rand(int(8 + 4 * frequency), 2, device=x.device) * 2 - 1
        distance = torch.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1]).amin(-1)
        return distance / distance.max()
    if kind == 4:  # noise of several octaves, as clouds and canvas have it
        return _noise(x, range(2, 7), 2 * shift)
    curls = _noise(x, range(2, 4 + int(2 * shift)), 1.0)  # bands between its heights, mirrored, as ornaments are
    if angle < 0.5:
        curls = torch.maximum(curls, curls.flip(-1))
    if angle < 0.25:
        curls = torch.maximum(curls, curls.flip(-2))
    return 0.5 + 0.5 * torch.sin(math.pi * frequency * curls)


def _noise(like: Tensor, octaves: range, fall: float) -> Tensor:
    """Smooth noise in [0,1]; each octave has 2 to the power of ``-fall`` of the amplitude of the one before."""
    noise = torch.zeros_like(like)
    for octave in octaves:
        grid = torch.randn(1, 1, 2**octave, 2**octave, device=like.device)
        fine = F.interpolate(grid, like.shape, mode="bicubic", align_corners=True)[0, 0]
        noise += fine * 2 ** (-octave * fall)
    return (noise - noise.min()) / (noise.max() - noise.min())


def _palette(field: Tensor) -> Tensor:
    """Colours for a scalar field: a palette of 2 to 5, now and then pure ones, in steps or blended. (1, 3, H, W)."""
    colours = torch.rand(1, 3, 1, int(torch.randint(2, 6, ())), device=field.device)
    if torch.rand(()) < 0.33:
        colours = colours.round()
    steps = bool(torch.rand(()) < 0.5)
    row = torch.stack([field * 2 - 1, torch.zeros_like(field)], -1)[None]
    return F.grid_sample(
        colours, row, mode="nearest" if steps else "bilinear", padding_mode="border", align_corners=True
    )
