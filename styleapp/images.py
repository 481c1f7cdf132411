"""Files and PIL images to tensors and back, faithfully.

Inside StyleApp an image is RGB, (1, 3, H, W), sRGB, upright, float in [0,1] where it is computed with.
Everything that a file may be instead (palette, CMYK, another colour space, turned by EXIF) is settled here
and nowhere else.
"""

from __future__ import annotations

import io
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from styleapp.errors import ImageError, OptionError, StyleError

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Picture",
    "atomic_path",
    "check_output",
    "from_pil",
    "quantized",
    "read_image",
    "save_picture",
    "save_rgb",
    "to_pil",
    "unit",
]

MAX_PIXELS = 200_000_000
_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".gif": "GIF",
}
SUFFIXES = tuple(_FORMATS)
_FULL = {torch.uint8: 255, torch.uint16: 65535}
_HOLDS_ALPHA = ("PNG", "WEBP", "TIFF")
_SAVE = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "WEBP": {"quality": 95, "method": 4},
    "TIFF": {"compression": "tiff_deflate"},
}


@dataclass(frozen=True)
class Picture:
    """An image as it is kept: in the depth it has in its file, with its transparency.

    Attributes:
        pixels: (1, 3, H, W): uint8, uint16, or float32 in [0,1].
        alpha: (1, 1, H, W) in one of these types, 0 is transparent; None if the source is opaque by nature.
    """

    pixels: Tensor
    alpha: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @property
    def rgb(self) -> Tensor:
        """float32, (1, 3, H, W), in [0,1]: what the networks take."""
        return unit(self.pixels)


def unit(values: Tensor) -> Tensor:
    """uint8, uint16 or float to float32 in [0,1]."""
    full = _FULL.get(values.dtype)
    return values.float() if full is None else values.float().div_(full)


def quantized(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float in [0,1] to uint8 or uint16, clamped and rounded; to float32, clamped."""
    full = _FULL.get(dtype)
    if full is None:
        return values.float().clamp(0, 1)
    return (values.float() * full).round_().clamp_(0, full).to(dtype)


def read_image(source: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a file, or the bytes of one (first frame): upright, in sRGB, with its transparency.

    Raises:
        ImageError: naming the file, if it is missing, a folder, empty, no image, damaged, or has more
            than ``max_pixels`` pixels. The size is known, and refused, before any pixel is decoded.
    """
    name = "image data" if isinstance(source, bytes) else os.fspath(source)
    if not isinstance(source, bytes):
        path = Path(source)
        if path.is_dir():
            raise ImageError(f"{name}: is a folder, not an image file")
        try:
            empty = path.stat().st_size == 0
        except FileNotFoundError:
            raise ImageError(f"{name}: no such file") from None
        except OSError as error:
            raise ImageError(f"{name}: cannot be read ({error.strerror})") from None
        if empty:
            raise ImageError(f"{name}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return from_pil(image, max_pixels, name)
    except StyleError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image that can be read (known: {', '.join(SUFFIXES)})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: has more than the {max_pixels / 1e6:g} megapixels allowed") from None
    except MemoryError:
        raise ImageError(f"{name}: too little memory to decode it") from None
    # Pillow's readers of damaged files raise nearly anything: SyntaxError, struct.error, zlib.error, …
    except Exception as error:
        raise ImageError(f"{name}: damaged or cut off ({error})") from None


def _check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(
            f"{name}: {image.width}x{image.height} is {pixels / 1e6:.1f} megapixels, "
            f"more than the {max_pixels / 1e6:g} allowed"
        )


def from_pil(image: Image.Image, max_pixels: int = MAX_PIXELS, name: str = "image") -> Picture:
    """A PIL image of any mode as a :class:`Picture`: EXIF orientation applied, converted to sRGB.

    Raises:
        ImageError: with ``name``, for more than ``max_pixels`` pixels or float pixels that are not finite.
    """
    _check_pixels(image, name, max_pixels)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Picture(_deep_grey(image, name))
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = _tensor(image.getchannel("A"))
    return Picture(_tensor(_to_srgb(image)), alpha)


def _deep_grey(image: Image.Image, name: str) -> Tensor:
    """16-bit, 32-bit and float grey as (1, 3, H, W). Integers count up to 65535 (uint16), floats up to 1 (or 255)."""
    if image.mode != "F":
        whole = np.asarray(image).clip(0, 65535).astype(np.uint16)
        return torch.from_numpy(whole).expand(1, 3, -1, -1)
    values = torch.from_numpy(np.asarray(image).astype(np.float32))
    if not torch.isfinite(values).all():
        raise ImageError(f"{name}: has pixels that are infinite or not a number")
    if values.max() > 1:
        values = values / 255
    return values.clamp(0, 1).expand(1, 3, -1, -1).contiguous()


def _to_srgb(image: Image.Image) -> Image.Image:
    """RGB in sRGB. A profile that is broken or of another kind of image is ignored, as browsers do."""
    profile = image.info.get("icc_profile")
    if profile:
        if image.mode == "RGBA":
            image = image.convert("RGB")
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            # Relative colorimetric, with black point compensation: what viewers do.
            converted = ImageCms.profileToProfile(
                image,
                source,
                ImageCms.createProfile("sRGB"),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return image.convert("RGB")


def _tensor(image: Image.Image) -> Tensor:
    """8-bit RGB or L to (1, C, H, W), uint8, as channels_last: PIL's own order, so nothing is moved."""
    array = np.empty((image.height, image.width, len(image.getbands())), np.uint8)
    for top in range(0, image.height, 256):  # numpy's own conversion of a whole image takes three times its memory
        strip = image.crop((0, top, image.width, min(top + 256, image.height)))
        array[top : top + 256] = np.asarray(strip).reshape(strip.height, strip.width, -1)
    return torch.from_numpy(array).unsqueeze(0).permute(0, 3, 1, 2)


def to_pil(picture: Picture) -> Image.Image:
    """An 8-bit PIL image: RGB, or RGBA if there is transparency. Values are clamped and rounded."""

    def eight_bits(values: Tensor) -> Tensor:
        return values if values.dtype == torch.uint8 else quantized(unit(values), torch.uint8)

    layers = eight_bits(picture.pixels)
    if picture.alpha is not None:
        layers = torch.cat([layers, eight_bits(picture.alpha).to(layers.device)], 1)
    return Image.fromarray(layers[0].permute(1, 2, 0).contiguous().cpu().numpy())


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse a place that cannot be written, before any work is done.

    Raises:
        OptionError: for a suffix of an unknown format.
        ImageError: if the folder is missing or not writable, or the file exists and may not be replaced.
    """
    if path.suffix.lower() not in _FORMATS:
        raise OptionError(f"{path}: unknown image format {path.suffix!r}; choices: {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise ImageError(f"{path}: is a folder, not a file to write")
    if path.exists() and not overwrite:
        raise ImageError(f"{path}: exists already; --overwrite replaces it")
    if not path.parent.is_dir():
        raise ImageError(f"{path.parent}: the output folder does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ImageError(f"{path.parent}: the output folder is not writable")


def save_picture(image: Image.Image, path: Path) -> None:
    """Write by the suffix of ``path``, whole or not at all. Where a format has no alpha, white shows through.

    Raises:
        OptionError: for a suffix of an unknown format.
        ImageError: if it cannot be written.
    """
    fmt = _FORMATS.get(path.suffix.lower())
    if fmt is None:
        raise OptionError(f"{path}: unknown image format {path.suffix!r}; choices: {', '.join(SUFFIXES)}")
    if image.mode == "RGBA" and fmt not in _HOLDS_ALPHA:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    try:
        with atomic_path(path) as temporary:
            image.save(temporary, format=fmt, **_SAVE.get(fmt, {}))  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({error})") from None


def save_rgb(rgb: Tensor, path: Path) -> None:
    """Write a (1, 3, H, W) tensor, making the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(to_pil(Picture(rgb)), path)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its name if the block succeeds and vanishes if not."""
    temporary = path.with_name(f".styleapp-{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
