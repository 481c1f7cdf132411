"""Pictures on disk: the same picture as in memory, in less of it."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image, ImageCms

from styleapp import large
from styleapp.errors import ImageError
from styleapp.files import read_image, save_picture
from styleapp.images import Picture
from styleapp.large import LargePicture, is_large, read_large, save_large
from styleapp.options import Options

pytest.importorskip("pyvips")


def deep(height: int, width: int, bands: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, (height, width, bands), dtype=np.uint16)


def written(tmp_path, name: str, mode: str = "RGB", **options):
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "P": 3, "CMYK": 3}[mode]
    image = noise(60, 90, channels=channels).convert(mode)
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_the_pixels_are_those_in_memory(tmp_path, mode, suffix):
    if suffix == "webp" and mode in ("L", "P"):
        pytest.skip("WebP has no such kind")
    options = {"lossless": True} if suffix == "webp" else {}
    path = written(tmp_path, f"p.{suffix}", mode, **options)
    here, there = read_image(path), read_large(path)
    assert (
        torch.equal(there.pixels, here.pixels) and there.pixels.is_contiguous(memory_format=torch.channels_last)
    ) or (mode == "RGBA")
    assert (here.alpha is None) == (there.alpha is None)
    if here.alpha is not None:
        assert torch.equal(there.alpha, here.alpha)


def test_jpeg_orientation_exif_and_dpi(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a wave"
    path = written(tmp_path, "p.jpg", quality=95, subsampling=0, exif=exif, dpi=(300, 300))
    here, there = read_image(path), read_large(path)
    assert there.size == here.size == (90, 60)
    assert (there.pixels.int() - here.pixels.int()).abs().max() <= 2  # two decoders
    assert there.metadata == here.metadata
    save_large(there, tmp_path / "out.jpg", quality=100)
    with Image.open(tmp_path / "out.jpg") as out:
        assert out.size == (60, 90) and out.getexif()[0x010E] == "a wave" and out.info["dpi"] == (300, 300)
        assert out.getexif().get(0x0112, 1) == 1 and out.layer[0][1:3] == (1, 1)  # 4:4:4
        assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(__import__("io").BytesIO(
            out.info["icc_profile"])))  # fmt: skip
    assert (read_image(tmp_path / "out.jpg").pixels.int() - here.pixels.int()).abs().max() <= 3


def test_profiles_are_converted(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert profile  # a profile of another kind of image is ignored by both
    other = tmp_path / "p3.png"
    import pyvips

    image = pyvips.Image.new_from_array(np.asarray(noise(60, 90)), interpretation="srgb")
    image.icc_transform("p3", input_profile="srgb").pngsave(str(other))
    here, there = read_image(other), read_large(other)
    assert (there.pixels.int() - here.pixels.int()).abs().max() <= 2
    plain = torch.from_numpy(np.asarray(noise(60, 90)).copy()).permute(2, 0, 1)[None]
    assert (there.pixels.int() - plain.int()).abs().float().mean() < 1


@pytest.mark.parametrize("bands", [3, 4])
def test_16_bits(tmp_path, bands):
    import pyvips

    pyvips.Image.new_from_array(deep(40, 50, bands), interpretation="rgb16").tiffsave(str(tmp_path / "d.tif"))
    here, there = read_image(tmp_path / "d.tif"), read_large(tmp_path / "d.tif")
    assert there.pixels.dtype == torch.uint16 and torch.equal(there.pixels, here.pixels)
    for name in ("out.png", "out.tif"):
        save_large(there, tmp_path / name)
        again = read_image(tmp_path / name)
        assert torch.equal(again.pixels, here.pixels)
        assert (again.alpha is None) == (bands == 3)
    save_large(there, tmp_path / "out.jpg")  # eight bits, through memory
    assert read_image(tmp_path / "out.jpg").pixels.dtype == torch.uint8


@pytest.mark.parametrize("name", ["out.png", "out.tif", "out.webp", "out.jpg", "out.bmp"])
def test_what_is_saved_is_what_memory_saves(tmp_path, name):
    path = written(tmp_path, "p.png", "RGBA")
    picture = read_large(path)
    save_large(picture, tmp_path / name, quality=100)
    save_picture(Picture(picture.pixels, picture.alpha), tmp_path / f"plain-{name}", quality=100)
    here, there = read_image(tmp_path / f"plain-{name}"), read_image(tmp_path / name)
    assert (here.alpha is None) == (there.alpha is None)
    limit = 0 if name in ("out.png", "out.tif", "out.bmp") else 12
    assert (there.pixels.int() - here.pixels.int()).abs().max() <= limit


@pytest.mark.parametrize("tile", ["off", "48"])
@pytest.mark.parametrize("norm", ["adain", "cin"])
def test_stylized_on_disk_is_stylized_in_memory(transfer, tmp_path, tile, norm):
    path = written(tmp_path, "p.png", "RGBA")
    options = Options(style_size=64, tile=tile, norm=norm)
    here = transfer.picture(read_image(path), "great-wave", options)
    there = transfer.picture(read_large(path), "great-wave", options)
    assert isinstance(there, LargePicture) and torch.equal(there.pixels, here.pixels)
    assert torch.equal(there.alpha, here.alpha)


def test_files_go_with_the_picture_and_memory_is_handed_back(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    noise(3000, 3000).save(tmp_path / "p.png", compress_level=1)
    picture = read_large(tmp_path / "p.png")
    assert sum(f.stat().st_size for f in (tmp_path / "scratch").rglob("*.raw")) == 3 * 3000 * 3000

    def mapped() -> int:
        """Bytes of the file that this process holds."""
        lines = Path("/proc/self/smaps").read_text().split("\n")
        at = next(i for i, line in enumerate(lines) if "styleapp-large" in line)
        return 1024 * int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1])

    total = int(picture.pixels.int().sum())
    assert mapped() > 20_000_000
    picture.forget()
    assert mapped() < 1_000_000 and int(picture.pixels.int().sum()) == total
    result = picture.empty()
    result.fill_(7)
    picture.forget()
    assert int(result.min()) == int(result.max()) == 7
    del picture, result
    gc.collect()
    assert not list((tmp_path / "scratch").rglob("*.raw"))


def test_no_room_on_the_disk_is_told(tmp_path, monkeypatch):
    path = written(tmp_path, "p.png")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ImageError, match=r"MB are needed there.*No space left.*TMPDIR"):
        read_large(path)


def test_bad_files_are_told_as_elsewhere(tmp_path):
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ImageError, match="not an image"):
        read_large(tmp_path / "text.png")
    path = written(tmp_path, "p.png")
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ImageError, match=r"cut\.png: damaged or cut off"):
        read_large(tmp_path / "cut.png")
    with pytest.raises(ImageError, match="more than the 0.001 allowed"):
        read_large(path, max_pixels=1000)
    assert is_large(path, 1000) and not is_large(path, 10**9)
    assert not is_large(written(tmp_path, "c.jpg", "CMYK"), 1000) and not is_large(written(tmp_path, "p.bmp"), 1000)
    assert not is_large(tmp_path / "gone.png", 1) and not is_large(tmp_path / "text.png", 1)
    with pytest.raises(ImageError, match="cannot be written"):
        save_large(read_large(path), tmp_path / "no" / "such.png")


def test_the_command_takes_the_disk_for_what_is_large(run, tmp_path, monkeypatch):
    path = written(tmp_path, "p.png", "RGBA")
    assert run("stylize", path, "-s", "great-wave", "--style-size", 64, "-o", "a.png", "--max-memory", "4GB")[0] == 0
    monkeypatch.setattr(large, "SHARE", 10**6)
    seen = []
    read = large.read_large
    monkeypatch.setattr("styleapp.pipeline.read_large", lambda *a: seen.append(1) or read(*a))
    assert run("stylize", path, "-s", "great-wave", "--style-size", 64, "-o", "b.png", "--max-memory", "4GB")[0] == 0
    assert seen and torch.equal(read_image(tmp_path / "a.png").pixels, read_image(tmp_path / "b.png").pixels)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not is_large(path, 1)
