"""Photos that are too large for memory: pixels on disk, looked at through a window.

libvips decodes and encodes them from top to bottom (the extra "deep"); between the two they lie uncompressed in
temporary files, mapped into memory, of which :meth:`LargePicture.forget` hands back what has been looked at. So the
peak is that of a tile, whatever the size of the photo.
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from styleapp.disk import MappedArray, can_map, map_array, scratch_folder
from styleapp.errors import ImageError
from styleapp.files import PNG_LEVEL, header, opened, save_picture, vips_about, vips_srgb, writing
from styleapp.images import MAX_PIXELS, Picture, header_metadata
from styleapp.memory import release_freed_memory

__all__ = ["LargePicture", "is_large", "read_large", "save_large"]

SHARE = 4
"""A photo is large where it and its result take more than one of so many parts of the memory that is allowed."""

_FORMATS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


class _Store:
    """Arrays in temporary files, which go with the last picture that uses them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="styleapp-large-", dir=scratch_folder())
        self._arrays: list[tuple[Path, MappedArray]] = []

    @property
    def next_path(self) -> Path:
        """Where the next array goes."""
        return Path(self._folder.name) / f"{len(self._arrays)}.raw"

    def array(self, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
        """The file at :attr:`next_path`, made where it is not there, as (1, C, H, W) of this (H, W, C).

        Raises:
            ImageError: if there is too little room on the disk.
        """
        path, size = self.next_path, math.prod(shape) * dtype.itemsize
        with path.open("r+b" if path.exists() else "w+b") as file:
            try:
                array = map_array(file, shape, dtype)
            except OSError as error:
                raise ImageError(
                    f"{path.parent}: {size / 1e6:.0f} MB are needed there for the pixels of this photo "
                    f"({error.strerror}); TMPDIR chooses another place"
                ) from None
        self._arrays.append((path, array))
        return array.tensor

    def image(self, pyvips: Any, tensor: Tensor) -> Any:
        """The channels of an array as libvips reads them from the file."""
        for path, array in self._arrays:
            whole = array.tensor
            first = (tensor.data_ptr() - whole.data_ptr()) // whole.element_size()
            if 0 <= first < whole.shape[1]:
                deep = whole.dtype == torch.uint16
                kind = {"format": "ushort", "interpretation": "rgb16"} if deep else {"interpretation": "srgb"}
                image = pyvips.Image.rawload(str(path), whole.shape[3], whole.shape[2], whole.shape[1], **kind)
                return image[first : first + tensor.shape[1]]
        raise ValueError("the tensor is in no file of this store")

    def forget(self) -> None:
        """Take pages out of this process's memory; what was written to them stays in the file."""
        for _, array in self._arrays:
            array.forget()


@dataclass(frozen=True)
class LargePicture(Picture):
    """A picture whose pixels lie in a file. Its result gets a file of its own."""

    store: _Store = field(default_factory=_Store, repr=False)

    def empty(self) -> Tensor:
        """Room for a result, on disk."""
        height, width = self.size
        return self.store.array((height, width, 3), self.pixels.dtype)

    def forget(self) -> None:
        """Hand back the memory of what has been looked at."""
        self.store.forget()


def is_large(path: Path, budget: int) -> bool:
    """Whether a photo, told from its header, is better kept on disk; never without libvips or on other systems."""
    if importlib.util.find_spec("pyvips") is None or not can_map():
        return False
    try:
        with header(path) as image:
            size, kind, mode = image.size, image.format, image.mode
        known = kind in ("JPEG", "PNG", "WEBP", "TIFF") and mode in ("L", "LA", "P", "RGB", "RGBA")
        return known and 6 * size[0] * size[1] > budget / SHARE
    except (OSError, ValueError, SyntaxError):
        return False  # what is wrong with it is told where it is read


def read_large(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> LargePicture:
    """As :func:`styleapp.files.read_image`, with the pixels on disk.

    Raises:
        ImageError: as that function, and if there is too little room on the disk.
    """
    import pyvips

    with opened(path, max_pixels) as (about, _):
        file = os.fspath(path)
        image = pyvips.Image.new_from_file(file, access="sequential", fail_on="error")
        metadata = header_metadata(about, image.get("exif-data") if image.get_typeof("exif-data") else b"")
        if image.get_typeof("orientation") and image.get("orientation") > 1:  # needs its pixels in another order
            image = pyvips.Image.new_from_file(file, access="random", fail_on="error").autorot()
        deep = image.format == "ushort"
        image = vips_srgb(image, 16 if deep else 8)
        store = _Store()
        image.write_to_file(str(store.next_path))
        pixels = store.array((image.height, image.width, image.bands), torch.uint16 if deep else torch.uint8)
        store.forget()
    return LargePicture(pixels[:, :3], pixels[:, 3:] if image.bands == 4 else None, metadata, store)


def save_large(picture: LargePicture, path: Path, *, quality: int = 95) -> str:
    """As :func:`styleapp.files.save_picture`, from disk to disk for JPEG, PNG, TIFF and WebP.

    Raises:
        ImageError: if it cannot be written.
    """
    import pyvips

    suffix = path.suffix.lower()
    deep = picture.pixels.dtype == torch.uint16
    if suffix not in _FORMATS or (deep and suffix not in (".png", ".tif", ".tiff")):
        return save_picture(picture, path, quality=quality)
    release_freed_memory()  # what the network has left behind; libvips brings memory of its own
    image = picture.store.image(pyvips, picture.pixels)
    if picture.alpha is not None:
        image = image.bandjoin(picture.store.image(pyvips, picture.alpha))
    picture.forget()
    with writing(path, picture.pixels.numel() * picture.pixels.element_size()) as temporary:
        image = vips_about(pyvips, image, picture.metadata)
        if suffix in (".jpg", ".jpeg"):
            flat = image.flatten(background=255) if picture.alpha is not None else image
            flat.jpegsave(str(temporary), Q=quality, subsample_mode="off")
        elif suffix == ".png":
            image.pngsave(str(temporary), compression=PNG_LEVEL)
        elif suffix == ".webp":
            image.webpsave(str(temporary), Q=quality)
        else:
            options = {"compression": "deflate", "predictor": "horizontal", "resunit": "inch"}
            image.tiffsave(str(temporary), bigtiff=picture.pixels.numel() > 10**9, **options)
    return ""
