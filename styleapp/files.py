"""Image files, read and written faithfully: depth, transparency, colours, EXIF, resolution, every frame."""

from __future__ import annotations

import errno
import io
import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageSequence, UnidentifiedImageError
from safetensors.torch import save
from torch import Tensor

from styleapp.errors import ImageError, OptionError, StyleError
from styleapp.images import MAX_PIXELS, Metadata, Picture, check_pixels, from_pil, on_white, srgb_profile, to_pil, unit

__all__ = [
    "ANIMATED",
    "PNG_LEVEL",
    "SUFFIXES",
    "VIDEOS",
    "Animation",
    "atomic_path",
    "check_output",
    "check_place",
    "check_size",
    "example_photos",
    "frames_in",
    "header",
    "opened",
    "read_animation",
    "read_image",
    "save_animation",
    "save_picture",
    "save_rgb",
    "save_tensors",
    "vips_about",
    "vips_srgb",
    "writing",
]

_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".bmp": "BMP",
    ".gif": "GIF",
}
SUFFIXES = tuple(_FORMATS)
ANIMATED = (".gif", ".webp", ".png", ".avif")
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts")
"""Films, of which :mod:`styleapp.video` knows more."""

_HOLDS_FRAMES = tuple(_FORMATS[suffix] for suffix in ANIMATED)
_HOLDS_ALPHA = ("PNG", "WEBP", "TIFF", "AVIF", "HEIF")
_HOLDS_METADATA = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")
_LOSSY = ("JPEG", "WEBP", "AVIF", "HEIF")
_LONGEST = {"JPEG": 65500, "WEBP": 16383, "GIF": 65535, "AVIF": 65536, "HEIF": 65535}
"""Pixels of a side that a format, or what writes it here, can hold."""

PNG_LEVEL = 4
"""Of zlib's compression: its own level, 6, makes hardly smaller files and takes clearly longer."""

_MARKER = 65533
"""Bytes that a block of data beside the pixels may have in a JPEG."""

_DPI = (72.0, 72.0)
"""What programs take for the resolution of a file that has none; libvips, which writes one always, would say 25.4."""

_SAVE: dict[str, dict[str, Any]] = {
    "JPEG": {"subsampling": "4:4:4"},
    "PNG": {"compress_level": PNG_LEVEL},
    "WEBP": {"method": 4},
    "AVIF": {"subsampling": "4:4:4"},
    "TIFF": {"compression": "tiff_deflate"},
}


# Reading


def read_image(source: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a file, or the bytes of one (first frame): upright, in sRGB, with its transparency.

    Colour of 16 bits a channel needs the extra "deep"; without it such a file is read in 8 bits, and
    ``metadata.note`` says so. HEIC needs the extra "heif".

    Raises:
        ImageError: naming the file, if it is missing, a folder, empty, no image, damaged, or has more
            than ``max_pixels`` pixels. The size is known, and refused, before any pixel is decoded.
    """
    with opened(source, max_pixels) as (image, name):
        deep = _is_deep(image)  # once it is decoded, Pillow does not know any more
        picture = from_pil(image, max_pixels, name)
        if not deep:
            return picture
        try:
            import pyvips
        except ImportError:
            note = "has 16 bits a channel, read in 8; pip install 'styleapp[deep]' keeps them"
            return replace(picture, metadata=replace(picture.metadata, note=note))
        return _from_vips(_vips_image(pyvips, source), picture.metadata)


def frames_in(path: Path) -> int:
    """How many frames a file has of which :func:`read_animation` reads all; 1 for any other."""
    if path.suffix.lower() not in ANIMATED:
        return 1
    with opened(path, sys.maxsize) as (image, _):
        return int(getattr(image, "n_frames", 1))


@dataclass(frozen=True)
class Animation:
    """The frames of a GIF, WebP, PNG or AVIF, each whole.

    Attributes:
        frames: pictures of one size.
        durations: of each frame, in milliseconds.
        loop: how often it is shown, 0 for ever; None if the file does not say (once).
    """

    frames: Sequence[Picture]
    durations: Sequence[int]
    loop: int | None


def read_animation(source: str | os.PathLike[str] | bytes, max_pixels: int = MAX_PIXELS) -> Animation | None:
    """Every frame of a file; None if it has only one.

    Raises:
        ImageError: as :func:`read_image`; the pixels of all frames count together.
    """
    with opened(source, max_pixels) as (image, name):
        count = getattr(image, "n_frames", 1)
        if count == 1 or image.format not in _HOLDS_FRAMES:
            return None
        pixels = count * image.width * image.height
        if pixels > max_pixels:
            raise ImageError(
                f"{name}: {count} frames of {image.width}x{image.height} are {pixels / 1e6:.1f} megapixels, "
                f"more than the {max_pixels / 1e6:g} allowed"
            )
        frames, durations = [], []
        loop = image.info.get("loop")
        for frame in ImageSequence.Iterator(image):
            frames.append(from_pil(frame.convert("RGBA"), max_pixels, name))
            durations.append(int(frame.info.get("duration", 100)))  # WebP knows it once the frame is decoded
        if all(f.alpha is None or bool((f.alpha == 255).all()) for f in frames):
            frames = [replace(f, alpha=None) for f in frames]
        return Animation(frames, durations, loop)


_OPENING = threading.Lock()


def header(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """The image of a file or of the bytes of one, whatever its size, not yet decoded.

    Pillow refuses more than 179 megapixels before one can ask how many there are; here it is not asked.

    Raises:
        OSError, ValueError, SyntaxError: if it is no image; of a damaged one Pillow's readers raise nearly anything.
    """
    with _OPENING:  # the limit is one for all threads
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def opened(source: str | os.PathLike[str] | bytes, max_pixels: int) -> Iterator[tuple[Image.Image, str]]:
    """The image, not yet decoded, and its name in messages; every failure in the block as an ImageError.

    Raises:
        ImageError: also for an image of more than ``max_pixels``.
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
        _register_heif()
        with header(source) as image:
            check_pixels(image, name, max_pixels)
            yield image, name
    except StyleError:
        raise
    except UnidentifiedImageError:
        hint = "; HEIC needs pip install 'styleapp[heif]'" if name.lower().endswith((".heic", ".heif")) else ""
        raise ImageError(f"{name}: not an image that can be read (known: {', '.join(SUFFIXES)}){hint}") from None
    except MemoryError:
        raise ImageError(f"{name}: too little memory to decode it") from None
    # Pillow's readers of damaged files raise nearly anything: SyntaxError, struct.error, zlib.error, …
    except Exception as error:
        raise ImageError(f"{name}: damaged or cut off ({error})") from None


def _register_heif() -> bool:
    """Teach Pillow HEIC if the extra is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has colour of 16 bits a channel, which Pillow reads in 8."""
    if image.format == "PNG":
        return any("RGB" in str(tile[3]) and "16" in str(tile[3]) for tile in image.tile)  # type: ignore[attr-defined]
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, ())  # type: ignore[attr-defined]
        return len(bits) >= 3 and set(bits) == {16}
    return False


def _vips_image(pyvips: Any, source: str | os.PathLike[str] | bytes) -> Any:
    if isinstance(source, bytes):
        return pyvips.Image.new_from_buffer(source, "", access="sequential", fail_on="error")
    return pyvips.Image.new_from_file(os.fspath(source), access="sequential", fail_on="error")


def vips_srgb(image: Any, depth: int) -> Any:
    """A libvips image in sRGB of 8 or 16 bits a channel: three bands, and one of transparency where it has one."""
    alpha, integer = None, "uchar" if depth == 8 else "ushort"
    if image.hasalpha():
        alpha = image[image.bands - 1].cast(integer)
        image = image[0 : image.bands - 1]
    if image.get_typeof("icc-profile-data") and image.get("icc-profile-data") != srgb_profile():
        intent = {"intent": "relative", "black_point_compensation": True}
        image = image.icc_transform("srgb", embedded=True, depth=depth, **intent)
    else:
        image = image.colourspace("srgb" if depth == 8 else "rgb16")
    image = image.cast(integer)
    return image if alpha is None else image.bandjoin(alpha)


def _from_vips(image: Any, metadata: Metadata) -> Picture:
    """A 16-bit picture of a libvips image: upright, in sRGB."""
    values = vips_srgb(image.autorot(), 16)  # in one go: the file is read once, from top to bottom
    array = np.ascontiguousarray(values.numpy())
    both = torch.from_numpy(array).view(1, values.height, values.width, -1).permute(0, 3, 1, 2)
    return Picture(both[:, :3], both[:, 3:] if values.bands == 4 else None, metadata)


# Writing


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse a place that cannot be written, before any work is done.

    Raises:
        OptionError: for a suffix of an unknown format.
        ImageError: if the folder is missing or not writable, or the file exists and may not be replaced.
    """
    _format_of(path)
    check_place(path, overwrite)


def check_place(path: Path, overwrite: bool = False) -> None:
    """The same for a file of any format."""
    if path.is_dir():
        raise ImageError(f"{path}: is a folder, not a file to write")
    if path.exists() and not overwrite:
        raise ImageError(f"{path}: exists already; --overwrite replaces it")
    if not path.parent.is_dir():
        raise ImageError(f"{path.parent}: the output folder does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ImageError(f"{path.parent}: the output folder is not writable")


def check_size(path: Path, size: tuple[int, int]) -> None:
    """Refuse a format that holds no picture of this (height, width), before any work is done.

    Raises:
        ImageError: with the sides that it can hold.
    """
    fmt = _format_of(path)
    most = _LONGEST.get(fmt, max(size))
    if max(size) > most:
        result = f"the result has {size[1]}x{size[0]}; PNG and TIFF hold it"
        raise ImageError(f"{path}: {fmt} holds sides of at most {most} pixels, {result}")


def save_picture(picture: Picture | Image.Image, path: Path, *, quality: int = 95) -> str:
    """Write by the suffix of ``path``, whole or not at all, in sRGB with its profile, EXIF and resolution.

    A 16-bit picture stays one in PNG and TIFF. Where a format has no alpha, white shows through.

    Args:
        quality: 1 to 100, of JPEG, WebP, AVIF and HEIC. JPEG and AVIF keep colours at full resolution (4:4:4).

    Returns:
        What was lost, for the user to know; mostly "".

    Raises:
        OptionError: for a suffix of an unknown format, or a quality outside 1 to 100.
        ImageError: if it cannot be written.
    """
    fmt = _format_of(path)
    if not 1 <= quality <= 100:
        raise OptionError(f"quality must be from 1 to 100, got {quality}")
    note = ""
    if isinstance(picture, Picture) and picture.pixels.dtype == torch.uint16 and fmt in ("PNG", "TIFF"):
        try:
            import pyvips
        except ImportError:
            note = "written in 8 bits a channel; pip install 'styleapp[deep]' keeps 16"
        else:
            with writing(path, picture.pixels.numel() * 2) as temporary:
                _save_vips(pyvips, picture, temporary)
            return note
    image = to_pil(picture) if isinstance(picture, Picture) else picture
    if image.mode == "RGBA" and fmt not in _HOLDS_ALPHA:
        info = image.info
        image = on_white(image)
        image.info = info
    with writing(path, image.width * image.height * len(image.getbands())) as temporary:
        image.save(temporary, format=fmt, **_save_options(image, fmt, quality))
    return note


def save_animation(animation: Animation, path: Path, *, quality: int = 95) -> None:
    """Write every frame to a GIF, WebP, PNG or AVIF, with the durations and the loop of the animation.

    Raises:
        OptionError: for another format.
        ImageError: if it cannot be written.
    """
    if path.suffix.lower() not in ANIMATED:
        raise OptionError(f"{path}: an animation is written as {', '.join(ANIMATED)}")
    first, *rest = (to_pil(frame) for frame in animation.frames)
    options: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": list(animation.durations)}
    if animation.loop is not None:
        options["loop"] = animation.loop
    fmt = _FORMATS[path.suffix.lower()]
    if fmt == "GIF":
        options |= {"disposal": 2} if first.mode == "RGBA" else {}
    else:
        options |= _save_options(first, fmt, quality)
    with writing(path, len(animation.frames) * first.width * first.height) as temporary:
        first.save(temporary, format=fmt, **options)


def save_rgb(rgb: torch.Tensor, path: Path) -> None:
    """Write a (1, 3, H, W) tensor, making the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(to_pil(Picture(rgb)), path)


def _format_of(path: Path) -> str:
    fmt = _FORMATS.get(path.suffix.lower())
    if not path.suffix:
        raise OptionError(f"{path}: no folder, and no file with a format in its name ({', '.join(SUFFIXES)})")
    if fmt is None:
        raise OptionError(f"{path}: unknown image format {path.suffix!r}; choices: {', '.join(SUFFIXES)}")
    if fmt == "HEIF" and not _register_heif():
        raise OptionError(f"{path}: HEIC needs pip install 'styleapp[heif]'")
    return fmt


def _save_options(image: Image.Image, fmt: str, quality: int) -> dict[str, Any]:
    options = dict(_SAVE.get(fmt, {}))
    if fmt in _LOSSY:
        options["quality"] = quality
    if fmt in _HOLDS_METADATA:
        options["icc_profile"] = image.info.get("icc_profile") or srgb_profile()
        if exif := image.info.get("exif"):
            options["exif"] = _fitting(exif) if fmt == "JPEG" else exif
            if fmt == "TIFF":  # Pillow cannot write the tables within EXIF together with a compression
                del options["compression"]
    if image.info.get("dpi") and fmt in ("JPEG", "PNG", "TIFF", "BMP"):
        options["dpi"] = image.info["dpi"]
    return options


def _fitting(exif: bytes) -> bytes:
    """Without its longest entries, mostly the notes of a camera's maker, where a JPEG cannot hold it."""
    if len(exif) <= _MARKER:
        return exif
    found = Image.Exif()
    found.load(exif)
    tables = [found, *(found.get_ifd(table) for table in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo))]
    lengths = {(tag, i): len(str(t[tag])) for i, t in enumerate(tables) for tag in t}
    for tag, i in sorted(lengths, key=lengths.__getitem__, reverse=True):
        del tables[i][tag]
        if len(exif := found.tobytes()) <= _MARKER:
            return exif
    return b""


def _save_vips(pyvips: Any, picture: Picture, path: Path) -> None:
    """16 bits a channel, as PNG or TIFF."""
    layers = [picture.pixels]
    if picture.alpha is not None:
        alpha = picture.alpha
        if alpha.dtype != torch.uint16:
            alpha = (unit(alpha) * 65535).round().to(torch.uint16)
        layers.append(alpha)
    array = torch.cat(layers, 1)[0].permute(1, 2, 0).contiguous().cpu().numpy()
    image = vips_about(pyvips, pyvips.Image.new_from_array(array, interpretation="rgb16"), picture.metadata)
    if path.suffix.lower() == ".png":
        image.pngsave(str(path), compression=PNG_LEVEL)
    else:
        image.tiffsave(str(path), compression="deflate", predictor="horizontal", resunit="inch")


def vips_about(pyvips: Any, image: Any, metadata: Metadata) -> Any:
    """A libvips image in sRGB with what its file is to say besides the pixels."""
    image = image.copy()
    blob = pyvips.GValue.blob_type
    image.set_type(blob, "icc-profile-data", srgb_profile())
    if metadata.exif:
        image.set_type(blob, "exif-data", metadata.exif)
    dpi = metadata.dpi or _DPI
    return image.copy(xres=dpi[0] / 25.4, yres=dpi[1] / 25.4)


@contextmanager
def writing(path: Path, raw_bytes: int) -> Iterator[Path]:
    """:func:`atomic_path` with failures as an ImageError."""
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno == errno.ENOSPC:
            need = f"up to {raw_bytes / 1e6:.1f} MB were needed"
            raise ImageError(f"{path}: cannot be written, the disk is full ({need})") from None
        raise ImageError(f"{path}: cannot be written ({error})") from None
    except StyleError:
        raise
    except Exception as error:  # encoders raise ValueError, pyvips.Error, …
        raise ImageError(f"{path}: cannot be written ({error})") from None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its name if the block succeeds and vanishes if not.

    Where ``path`` is in a store (s3://…), a local one that is then put there, which stores do whole or not at all.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory(prefix="styleapp-") as folder:
            local = Path(folder) / f"picture{path.suffix}"
            yield local
            path.write_bytes(local.read_bytes())
        return
    temporary = path.with_name(f".styleapp-{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, whole or not at all.

    safetensors' own saving makes files that only their owner may read; this one goes by the umask, as pictures do.

    Raises:
        OSError: if it cannot be written.
    """
    stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    data = save(stored, dict(metadata) if metadata else None)  # an empty dict makes a file that cannot be read
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def example_photos() -> list[Path]:
    """The photos of the demo, in the installed package or the source tree."""
    here = Path(str(resources.files("styleapp")))
    for folder in (here / "_examples", here.parent / "examples"):
        if folder.is_dir():
            return sorted(folder.glob("*.jpg"))
    return []
