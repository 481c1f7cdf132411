import io
import os
import time

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image, ImageCms

from styleapp.errors import ImageError, OptionError
from styleapp.files import atomic_path, check_output, read_image, save_picture, save_tensors
from styleapp.images import Picture, from_pil, srgb_profile, to_pil


def pixels(picture: Picture) -> np.ndarray:
    return (picture.rgb[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".jpg", ".gif"])
def test_formats_come_back(tmp_path, suffix):
    image = noise(30, 40)
    path = tmp_path / f"a{suffix}"
    image.save(path, **({"lossless": True} if suffix == ".webp" else {}))
    with Image.open(path) as stored:
        wanted = np.asarray(stored.convert("RGB"))
    assert np.array_equal(pixels(read_image(path)), wanted)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGB"])
def test_modes_are_converted_as_pillow_does(mode):
    image = ImageCms.profileToProfile(
        noise(20, 30), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    ) if mode == "LAB" else noise(20, 30).convert(mode)  # fmt: skip
    picture = from_pil(image)
    assert picture.alpha is None
    if mode == "LAB":  # Pillow has no plain conversion: only that the size and the range are right
        assert picture.size == (20, 30)
    else:
        assert np.array_equal(pixels(picture), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_kept(mode, tmp_path):
    image = noise(20, 30, channels=4)
    image = image.convert(mode) if mode != "PA" else image.convert("RGB").convert("P").convert("PA")
    picture = from_pil(image)
    assert picture.alpha is not None and picture.alpha.shape == (1, 1, 20, 30)
    assert np.array_equal(
        np.asarray(to_pil(picture).getchannel("A")), np.asarray(image.convert("RGBA").getchannel("A"))
    )


def test_transparent_colour_of_a_palette(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "p.png", transparency=0)
    picture = read_image(tmp_path / "p.png")
    assert picture.alpha is not None
    assert picture.alpha[0, 0, 0, 0] == 0 and picture.alpha[0, 0, 1, 1] == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = noise(20, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "o.png"
    image.save(path, exif=exif)
    size = read_image(path).size
    assert size == ((20, 30) if orientation < 5 else (30, 20))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_keeps_its_depth(tmp_path, suffix):
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / f"deep{suffix}")
    found = read_image(tmp_path / f"deep{suffix}").rgb
    assert torch.allclose(found[0, 0], torch.from_numpy(values.astype(np.float32) / 65535), atol=1e-6)
    assert torch.equal(found[:, 0], found[:, 2])


def test_float_tiff(tmp_path):
    values = np.random.default_rng(0).random((8, 8), dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert torch.allclose(read_image(tmp_path / "f.tif").rgb[0, 0], torch.from_numpy(values))
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "n.tif")
    with pytest.raises(ImageError, match=r"n\.tif.*not a number"):
        read_image(tmp_path / "n.tif")


def test_icc_profile_is_converted(tmp_path):
    """A profile whose red and green are swapped must swap them back."""
    from PIL.ImageCms import ImageCmsProfile, createProfile

    srgb = ImageCmsProfile(createProfile("sRGB")).tobytes()
    red, green = srgb.find(b"rXYZ"), srgb.find(b"gXYZ")
    swapped = bytearray(srgb)
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    image = Image.new("RGB", (4, 4), (255, 0, 0))
    image.save(tmp_path / "icc.png", icc_profile=bytes(swapped))
    r, g, _ = read_image(tmp_path / "icc.png").rgb[0, :, 0, 0]
    assert g > 0.9 and r < 0.1


def test_broken_profile_is_ignored(tmp_path):
    noise(8, 8).save(tmp_path / "bad.png", icc_profile=b"no profile at all")
    assert np.array_equal(pixels(read_image(tmp_path / "bad.png")), np.asarray(noise(8, 8)))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(read_image(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


def test_bytes_are_read_like_a_file():
    buffer = io.BytesIO()
    noise(9, 9).save(buffer, "PNG")
    assert np.array_equal(pixels(read_image(buffer.getvalue())), np.asarray(noise(9, 9)))


class TestBadInput:
    def test_missing(self, tmp_path):
        with pytest.raises(ImageError, match=r"nothing\.png: no such file"):
            read_image(tmp_path / "nothing.png")

    def test_folder(self, tmp_path):
        with pytest.raises(ImageError, match="is a folder"):
            read_image(tmp_path)

    def test_empty(self, tmp_path):
        (tmp_path / "empty.jpg").touch()
        with pytest.raises(ImageError, match=r"empty\.jpg: the file is empty"):
            read_image(tmp_path / "empty.jpg")

    def test_text(self, tmp_path):
        (tmp_path / "text.jpg").write_text("I am no picture")
        with pytest.raises(ImageError, match=r"text\.jpg: not an image"):
            read_image(tmp_path / "text.jpg")

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".gif"])
    def test_cut_off(self, tmp_path, suffix):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        image.save(tmp_path / f"whole{suffix}")
        data = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"half{suffix}").write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageError, match=f"half\\{suffix}"):
            read_image(tmp_path / f"half{suffix}")

    def test_garbled(self, tmp_path):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        image.save(tmp_path / "a.png")
        data = bytearray((tmp_path / "a.png").read_bytes())
        data[200:260] = b"\0" * 60
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(ImageError, match=r"a\.png: damaged"):
            read_image(tmp_path / "a.png")

    def test_too_many_pixels_are_refused_before_decoding(self, tmp_path):
        Image.new("1", (2000, 1000)).save(tmp_path / "big.png")
        with pytest.raises(ImageError, match=r"2000x1000 is 2\.0 megapixels, more than the 1\.5 allowed"):
            read_image(tmp_path / "big.png", max_pixels=1_500_000)

    def test_what_is_allowed_is_read_though_pillow_refuses_it(self, tmp_path, monkeypatch):
        """Pillow's own limit is at 179 megapixels, below ours."""
        noise(600, 50).save(tmp_path / "big.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 14_000)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(tmp_path / "big.png")
        assert read_image(tmp_path / "big.png").size == (600, 50)
        assert read_image((tmp_path / "big.png").read_bytes(), max_pixels=30_000).size == (600, 50)
        assert Image.MAX_IMAGE_PIXELS == 14_000  # others' pictures are checked as before

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, tmp_path):
        noise(8, 8).save(tmp_path / "secret.png")
        (tmp_path / "secret.png").chmod(0)
        with pytest.raises(ImageError, match="cannot be read"):
            read_image(tmp_path / "secret.png")


class TestSaving:
    def test_values_are_rounded_not_cut(self):
        picture = Picture(torch.tensor([-0.1, 0.4 / 255, 0.6 / 255, 1.2]).view(1, 1, 2, 2).expand(1, 3, 2, 2))
        assert np.asarray(to_pil(picture))[..., 0].flatten().tolist() == [0, 0, 1, 255]

    @pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
    def test_alpha_is_written_where_it_can_be(self, tmp_path, suffix):
        image = noise(10, 10, channels=4)
        save_picture(image, tmp_path / f"a{suffix}")
        with Image.open(tmp_path / f"a{suffix}") as stored:
            assert np.array_equal(np.asarray(stored.getchannel("A")), np.asarray(image.getchannel("A")))

    def test_elsewhere_white_shows_through(self, tmp_path):
        save_picture(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), tmp_path / "a.jpg")
        assert Image.open(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 255, 255)

    def test_jpeg_keeps_colours_at_full_resolution(self, tmp_path):
        save_picture(noise(16, 16), tmp_path / "a.jpg")
        with Image.open(tmp_path / "a.jpg") as stored:
            assert [layer[1:3] for layer in stored.layer] == [(1, 1)] * 3

    def test_unknown_format(self, tmp_path):
        with pytest.raises(OptionError, match=r"unknown image format '\.xyz'; choices: \.jpg"):
            save_picture(noise(8, 8), tmp_path / "a.xyz")

    def test_failure_leaves_the_old_file_and_nothing_else(self, tmp_path):
        (tmp_path / "a.png").write_text("old")

        def fail():
            with atomic_path(tmp_path / "a.png") as temporary:
                temporary.write_text("half")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
        assert (tmp_path / "a.png").read_text() == "old"

    def test_permissions_follow_the_umask(self, tmp_path):
        save_picture(noise(8, 8), tmp_path / "a.png")
        save_tensors({"a": torch.rand(4, 3).T}, tmp_path / "a.safetensors", {"name": "a"})
        (tmp_path / "plain").touch()
        plain = (tmp_path / "plain").stat().st_mode
        assert [(tmp_path / name).stat().st_mode for name in ("a.png", "a.safetensors")] == [plain, plain]

    def test_a_place_is_checked_before_work(self, tmp_path):
        (tmp_path / "there.png").touch()
        with pytest.raises(ImageError, match="exists already; --overwrite"):
            check_output(tmp_path / "there.png")
        check_output(tmp_path / "there.png", overwrite=True)
        with pytest.raises(ImageError, match="output folder does not exist"):
            check_output(tmp_path / "no" / "a.png")
        with pytest.raises(OptionError, match=r"no folder, and no file with a format in its name"):
            check_output(tmp_path / "a")


def test_the_profile_does_not_depend_on_the_time():
    first = srgb_profile.__wrapped__()
    time.sleep(1.1)  # the time in it has seconds
    assert srgb_profile.__wrapped__() == first
    ImageCms.ImageCmsProfile(io.BytesIO(first))
    assert first[24:36] == bytes([7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0])
