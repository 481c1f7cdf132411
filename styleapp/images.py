"""PIL images to tensors and back, faithfully.

Inside StyleApp an image is RGB, (1, 3, H, W), sRGB, upright, float in [0,1] where it is computed with.
Everything that a file may be instead (palette, CMYK, another colour space, turned by EXIF) is settled here
and nowhere else.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps
from torch import Tensor
from torch.nn import functional as F

from styleapp.errors import ImageError, OptionError

__all__ = [
    "MAX_PIXELS",
    "Metadata",
    "Picture",
    "check_pixels",
    "filled",
    "from_pil",
    "header_metadata",
    "on_white",
    "quantized",
    "resized",
    "scaled",
    "srgb_profile",
    "strips",
    "to_pil",
    "unit",
]

MAX_PIXELS = 200_000_000
_FULL = {torch.uint8: 255, torch.uint16: 65535}


@dataclass(frozen=True)
class Metadata:
    """What a file says besides its pixels, and what is to be kept of it.

    Attributes:
        exif: as a file holds it, without the orientation (which is applied) and what describes the pixels.
        dpi: horizontal and vertical.
        note: what was lost in reading, for the user to know.
    """

    exif: bytes = b""
    dpi: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An image as it is kept: in the depth it has in its file, with its transparency.

    Attributes:
        pixels: (1, 3, H, W): uint8, uint16, or float32 in [0,1].
        alpha: (1, 1, H, W) in one of these types, 0 is transparent; None if the source is opaque by nature.
        metadata: of its file.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    metadata: Metadata = Metadata()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @property
    def weight(self) -> Tensor | None:
        """What each pixel counts in statistics, (1, 1, H, W): its opacity. None where all count alike."""
        if self.alpha is None:
            return None
        least, most = 1.0, 0.0
        for rows in strips(self):
            low, high = unit(self.alpha[:, :, rows]).aminmax()
            least, most = min(least, float(low)), max(most, float(high))
            self.forget()
        return self.alpha if least < most else None

    def empty(self) -> Tensor:
        """Room for a result of this size and depth, where this picture is kept."""
        return torch.empty_like(self.pixels, memory_format=torch.channels_last)

    def forget(self) -> None:
        """Called where pixels have been looked at and are not needed for now."""

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


def strips(picture: Picture, rows: int = 256) -> Iterator[slice]:
    """Slices of so many rows, from top to bottom: not all of a large picture at once in float."""
    return (slice(top, top + rows) for top in range(0, picture.size[0], rows))


def filled(picture: Picture) -> Picture:
    """The picture with the colours around in the place of what is hidden, that is, transparent altogether.

    A file may hold any colour there, mostly black, which a network or a resampling would see. Each hidden pixel takes
    the mean of what shows in its cell of 8x8 pixels; where nothing does, in the smallest larger cell of a pyramid.
    """
    weight, cell = picture.weight, 8
    if weight is None:
        return picture
    colours, shares = [], []
    for rows in strips(picture):
        share = unit(weight[:, :, rows])
        pooled = F.avg_pool2d(torch.cat([unit(picture.pixels[:, :, rows]) * share, share], 1), cell, ceil_mode=True)
        colours.append(pooled[:, :3])
        shares.append(pooled[:, 3:])
        picture.forget()
    cells = _extended(torch.cat(colours, 2), torch.cat(shares, 2))
    out = picture.empty()
    for rows in strips(picture):
        pixels = picture.pixels[:, :, rows]
        top, bottom = rows.start // cell, -(-min(rows.stop, picture.size[0]) // cell)
        above = min(top, 1)  # so that the strips meet
        around = cells[:, :, top - above : bottom + 1]
        wide = F.interpolate(around, scale_factor=cell, mode="bilinear")[:, :, above * cell :]
        hidden = unit(weight[:, :, rows]) == 0
        fill = wide[..., : pixels.shape[-2], : pixels.shape[-1]]
        out[:, :, rows] = quantized(torch.where(hidden, fill, unit(pixels)), out.dtype)
        picture.forget()
    return replace(picture, pixels=out)


def _extended(colour: Tensor, share: Tensor) -> Tensor:
    """colour / share, and where the share is 0 that of half the resolution: what is near comes first."""
    known = share > 0
    if bool(known.all()):
        return colour / share
    height, width = colour.shape[-2:]
    half = ((height + 1) // 2, (width + 1) // 2)
    coarse = _extended(F.adaptive_avg_pool2d(colour, half), F.adaptive_avg_pool2d(share, half))
    return torch.where(known, colour / share, F.interpolate(coarse, (height, width), mode="bilinear"))


def scaled(picture: Picture, short_side: int, role: str, least: int, max_pixels: int) -> Picture:
    """The picture with its short side at ``short_side``: bicubic, antialiased, aspect ratio kept.

    Args:
        role: what messages call the picture.
        least: that ``short_side`` must be, pixels.

    Raises:
        OptionError: if it is less.
        ImageError: if the result would have more than ``max_pixels``.
    """
    height, width = picture.size
    if short_side < least:
        raise OptionError(f"{role} size must be at least {least} pixels, got {short_side}")
    if short_side == min(height, width):
        return picture
    ratio = short_side / min(height, width)
    size = [max(short_side, round(height * ratio)), max(short_side, round(width * ratio))]
    if size[0] * size[1] > max_pixels:
        raise ImageError(f"{role} of {width}x{height} at a short side of {short_side} would be {size[1]}x{size[0]}, "
                         f"more than the {max_pixels / 1e6:g} megapixels allowed")  # fmt: skip

    picture = filled(picture)  # hidden colours would show at the edges
    alpha = None if picture.alpha is None else resized(picture.alpha, size)
    return replace(picture, pixels=resized(picture.pixels, size), alpha=alpha)


def resized(pixels: Tensor, size: list[int]) -> Tensor:
    """Pixels, (N, C, H, W), at another (height, width): bicubic, antialiased, of the same type."""
    values = pixels if pixels.dtype == torch.uint8 else unit(pixels)
    resized = F.interpolate(values, size, mode="bicubic", antialias=True)
    return resized if pixels.dtype == torch.uint8 else quantized(resized, pixels.dtype)


def check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    """Refuse, with ``name``, an image of more than ``max_pixels`` pixels, told from its header."""
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
    check_pixels(image, name, max_pixels)
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # it copies the image even when there is nothing to do
        image = ImageOps.exif_transpose(image)
    metadata = Metadata(_exif(image), _dpi(image))
    if image.mode.startswith("I") or image.mode == "F":
        return Picture(_deep_grey(image, name), metadata=metadata)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = _tensor(image.getchannel("A"))
    return Picture(_tensor(_to_srgb(image)), alpha, metadata)


# Tags that say how the pixels of the source file are stored, which the result's are not.
_STORAGE_TAGS = {
    0x00FE, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x010A, 0x0111, 0x0112, 0x0115, 0x0116, 0x0117, 0x011A, 0x011B,
    0x011C, 0x0128, 0x013D, 0x0140, 0x0142, 0x0143, 0x0144, 0x0145, 0x0152, 0x0153, 0x0201, 0x0202, 0x0211, 0x0212,
    0x0213, 0x0214, 0x02BC, 0x8649, 0x8773,
}  # fmt: skip


def header_metadata(image: Image.Image, exif: bytes) -> Metadata:
    """Of a file whose pixels are not to be decoded; Pillow decodes a PNG to find its EXIF, so it is given."""
    found = Image.Exif()
    try:
        found.load(exif)
    except Exception:  # as below
        found = Image.Exif()
    return Metadata(_kept(found), _dpi(image))


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """None also for what no format can hold, such as 0/0, and for 1, which Pillow says of a TIFF without any."""
    across, down = (float(dpi) for dpi in image.info.get("dpi", (0, 0)))
    return (across, down) if 1 < across < 2**16 and 1 < down < 2**16 else None


def _exif(image: Image.Image) -> bytes:
    try:
        return _kept(image.getexif())
    except Exception:  # a damaged block of EXIF data is no reason to refuse the picture
        return b""


def _kept(exif: Image.Exif) -> bytes:
    for tag in _STORAGE_TAGS & set(exif):
        del exif[tag]
    return exif.tobytes() if len(exif) else b""


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
    if profile and profile != srgb_profile():  # a result of ours comes back to the last bit
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
    return image if image.mode == "RGB" else image.convert("RGB")


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
    image = Image.fromarray(layers[0].permute(1, 2, 0).contiguous().cpu().numpy())
    image.info["icc_profile"] = srgb_profile()
    if picture.metadata.exif:
        image.info["exif"] = picture.metadata.exif
    if picture.metadata.dpi:
        image.info["dpi"] = picture.metadata.dpi
    return image


def on_white(image: Image.Image) -> Image.Image:
    """A copy in RGB, with white where the image is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


@functools.cache
def srgb_profile() -> bytes:
    """The ICC profile that says what the numbers of a result mean, the same bytes on every day.

    Little CMS puts the time of its making into bytes 24 to 35 of the header (ICC.1:2022, table 17).
    """
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    date = b"".join(number.to_bytes(2, "big") for number in (2000, 1, 1, 0, 0, 0))
    return profile[:24] + date + profile[36:]
