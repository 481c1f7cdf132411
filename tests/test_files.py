"""What a file holds besides 8-bit RGB comes through: 16 bits, EXIF, profile, resolution, frames."""

import builtins
import errno
import io
import warnings

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image, ImageCms, TiffImagePlugin

from styleapp import files
from styleapp.errors import ImageError, OptionError
from styleapp.files import Animation, read_animation, read_image, save_animation, save_picture
from styleapp.images import Picture
from styleapp.norms import merge, moments
from styleapp.pipeline import Options

pyvips = pytest.importorskip("pyvips")
DEEP = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)


def deep_file(path, array=DEEP, **options):
    pyvips.Image.new_from_array(array, interpretation="rgb16").write_to_file(str(path), **options)
    return path


class TestDeep:
    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_every_bit_there_and_back(self, tmp_path, suffix):
        picture = read_image(deep_file(tmp_path / f"a{suffix}"))
        assert picture.pixels.dtype == torch.uint16
        assert np.array_equal(picture.pixels[0].permute(1, 2, 0).numpy(), DEEP)
        save_picture(picture, tmp_path / f"b{suffix}")
        assert np.array_equal(pyvips.Image.new_from_file(str(tmp_path / f"b{suffix}")).numpy(), DEEP)

    def test_alpha(self, tmp_path):
        rgba = np.dstack([DEEP, np.full((20, 30), 1234, np.uint16)])
        picture = read_image(deep_file(tmp_path / "a.png", rgba).read_bytes())
        assert torch.equal(picture.alpha, torch.full((1, 1, 20, 30), 1234, dtype=torch.uint16))
        save_picture(picture, tmp_path / "b.png")
        assert np.array_equal(pyvips.Image.new_from_file(str(tmp_path / "b.png")).numpy(), rgba)

    def test_grey_png_of_16_bits(self, tmp_path):
        values = DEEP[..., 0]
        Image.fromarray(values).save(tmp_path / "a.png")
        picture = read_image(tmp_path / "a.png")
        assert np.array_equal(picture.pixels[0, 2].numpy(), values)
        save_picture(picture, tmp_path / "b.png")
        assert np.array_equal(pyvips.Image.new_from_file(str(tmp_path / "b.png")).numpy()[..., 1], values)

    def test_through_the_network(self, transfer, tmp_path):
        picture = read_image(deep_file(tmp_path / "a.png", np.kron(DEEP, np.ones((4, 4, 1), np.uint16))))
        done = transfer.picture(picture, "great-wave", Options(alpha=0.5, style_size=64))
        assert done.pixels.dtype == torch.uint16
        assert len(done.pixels.unique()) > 2000

    def test_without_the_extra_it_is_read_in_8_bits_and_says_so(self, tmp_path, monkeypatch):
        deep_file(tmp_path / "a.png")
        real = builtins.__import__

        def fake(name, *args, **kwargs):
            if name == "pyvips":
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", fake)
        picture = read_image(tmp_path / "a.png")
        assert picture.pixels.dtype == torch.uint8 and "16 bits a channel, read in 8" in picture.metadata.note
        assert np.abs(picture.pixels[0].permute(1, 2, 0).numpy() - DEEP / 257).max() <= 1
        wide = Picture(torch.zeros(1, 3, 4, 4, dtype=torch.uint16))
        assert "written in 8 bits" in save_picture(wide, tmp_path / "b.png")

    def test_profile_of_16_bit_files_is_applied(self, tmp_path):
        linear = _linear_srgb_profile()
        image = pyvips.Image.new_from_array(np.full((16, 16, 3), 14000, np.uint16), interpretation="rgb16").copy()
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", linear)
        image.pngsave(str(tmp_path / "a.png"))
        value = int(read_image(tmp_path / "a.png").pixels[0, 0, 8, 8])
        wanted = 65535 * (1.055 * (14000 / 65535) ** (1 / 2.4) - 0.055)
        assert abs(value - wanted) < 700

    def test_cut_off(self, tmp_path):
        whole = deep_file(tmp_path / "a.png").read_bytes()
        with pytest.raises(ImageError, match="damaged or cut off"):
            read_image(whole[: len(whole) // 2])

    def test_too_many_pixels_are_refused_before_decoding(self, tmp_path):
        with pytest.raises(ImageError, match="megapixels"):
            read_image(deep_file(tmp_path / "a.png"), max_pixels=100)


def _linear_srgb_profile() -> bytes:
    """sRGB's primaries with a linear curve, made by editing the curves of Pillow's own sRGB profile."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for k in range(count):
        entry = data[132 + 12 * k : 144 + 12 * k]
        if entry[:4] in (b"rTRC", b"gTRC", b"bTRC"):
            at, size = int.from_bytes(entry[4:8], "big"), int.from_bytes(entry[8:12], "big")
            data[at : at + size] = b"curv" + bytes(size - 4)  # no entries: the identity
    return bytes(data)


class TestMetadata:
    def photo(self, path, **options):
        exif = Image.Exif()
        exif[0x010F], exif[0x8298], exif[0x0112] = "Maker", "Somebody", 6
        exif.get_ifd(0x8769)[0x829A] = 0.01
        noise(40, 60).save(path, exif=exif, dpi=(300, 300), **options)
        return path

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
    def test_exif_and_resolution_are_kept_but_for_the_orientation(self, tmp_path, suffix):
        picture = read_image(self.photo(tmp_path / "a.jpg"))
        assert picture.size == (60, 40)  # turned
        save_picture(picture, tmp_path / f"b{suffix}")
        with Image.open(tmp_path / f"b{suffix}") as stored:
            exif = stored.getexif()
            assert exif[0x010F] == "Maker" and exif[0x8298] == "Somebody"
            assert exif.get(0x0112, 1) == 1
            assert float(exif.get_ifd(0x8769)[0x829A]) == 0.01
            if suffix in (".jpg", ".png", ".tif"):
                assert [round(v) for v in stored.info["dpi"]] == [300, 300]
            assert "sRGB" in ImageCms.getProfileDescription(io.BytesIO(stored.info["icc_profile"]))
            assert stored.size == (40, 60)

    def test_tags_of_tiff_storage_do_not_leak(self, tmp_path):
        self.photo(tmp_path / "a.tif", compression="tiff_lzw")
        save_picture(read_image(tmp_path / "a.tif"), tmp_path / "b.jpg")
        assert set(Image.open(tmp_path / "b.jpg").getexif()) <= {0x010F, 0x8298, 0x8769, 0x0112}

    def test_exif_that_a_jpeg_cannot_hold_loses_its_longest_entries_alone(self, tmp_path):
        exif = Image.Exif()
        exif[0x8298] = "Somebody"
        exif.get_ifd(0x8769)[0x829A] = 0.01
        exif.get_ifd(0x8769)[0x927C] = bytes(70_000)
        noise(40, 60).save(tmp_path / "a.webp", exif=exif)
        picture = read_image(tmp_path / "a.webp")
        save_picture(picture, tmp_path / "b.jpg")
        save_picture(picture, tmp_path / "b.png")
        with Image.open(tmp_path / "b.jpg") as stored:
            found = stored.getexif()
            details = found.get_ifd(0x8769)
            assert found[0x8298] == "Somebody" and float(details[0x829A]) == 0.01 and 0x927C not in details
        with Image.open(tmp_path / "b.png") as stored:
            assert len(stored.getexif().get_ifd(0x8769)[0x927C]) == 70_000

    @pytest.mark.parametrize("dpi", [(0, 0), (1, 0), (4_000_000_000, 1), (1, 1000)])
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
    def test_resolution_that_is_none_is_left_out(self, tmp_path, dpi, suffix):
        resolution = TiffImagePlugin.IFDRational(*dpi)
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[282], tags[283], tags[296] = resolution, resolution, 2
        noise(20, 20).save(tmp_path / "a.tif", tiffinfo=tags)
        picture = read_image(tmp_path / "a.tif")
        assert picture.metadata.dpi is None
        save_picture(picture, tmp_path / f"b{suffix}")

    def test_file_of_16_bits_without_a_resolution_has_that_of_others(self, tmp_path):
        save_picture(Picture(torch.zeros(1, 3, 20, 20, dtype=torch.uint16)), tmp_path / "a.png")
        assert [round(v) for v in Image.open(tmp_path / "a.png").info["dpi"]] == [72, 72]

    def test_damaged_exif_is_left_out(self, tmp_path):
        noise(20, 20).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert read_image(tmp_path / "a.jpg").metadata.exif == b""

    def test_quality(self, tmp_path):
        for quality in (30, 95):
            save_picture(noise(200, 200), tmp_path / f"{quality}.jpg", quality=quality)
        assert (tmp_path / "30.jpg").stat().st_size < (tmp_path / "95.jpg").stat().st_size
        with pytest.raises(OptionError, match="quality must be from 1 to 100, got 0"):
            save_picture(noise(8, 8), tmp_path / "a.jpg", quality=0)

    @pytest.mark.parametrize("suffix", [".heic", ".avif"])
    def test_phone_formats(self, tmp_path, suffix):
        if suffix == ".heic":
            pytest.importorskip("pillow_heif")
        save_picture(noise(64, 48), tmp_path / f"a{suffix}")
        found = read_image(tmp_path / f"a{suffix}")
        wanted = np.asarray(noise(64, 48)).astype(int)
        assert np.abs(found.pixels[0].permute(1, 2, 0).numpy() - wanted).mean() < 4


def test_a_full_disk_is_told_with_what_was_needed(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ImageError, match=r"the disk is full \(up to 3.0 MB were needed\)"):
        save_picture(noise(1000, 1000), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("suffix", "most"), [(".webp", 16383), (".jpg", 65500), (".avif", 65536), (".gif", 65535)])
def test_sides_that_a_format_can_hold(tmp_path, suffix, most):
    """What is refused could not be written, and what is not can be."""
    path = tmp_path / f"a{suffix}"
    files.check_size(path, (16, most))
    with pytest.raises(ImageError, match=f"at most {most} pixels, the result has {most + 1}x16; PNG and TIFF"):
        files.check_size(path, (16, most + 1))
    save_picture(Image.new("RGB", (most, 16)), path)
    with pytest.raises(ImageError, match="cannot be written"):
        save_picture(Image.new("RGB", (most + 1, 16)), path)
    files.check_size(path.with_suffix(".png"), (16, 10**6))


class TestAnimation:
    def film(self, path, frames=4, **options):
        images = [noise(40, 56, seed=i) for i in range(frames)]
        save = {"lossless": True} if path.suffix == ".webp" else {}
        images[0].save(path, save_all=True, append_images=images[1:], duration=[50, 120, 80, 200], loop=3, **save)
        return path

    @pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".avif"])
    def test_frames_durations_and_loop(self, tmp_path, suffix):
        film = read_animation(self.film(tmp_path / f"a{suffix}"))
        loop = None if suffix == ".avif" else 3  # which knows none
        assert len(film.frames) == 4 and list(film.durations) == [50, 120, 80, 200] and film.loop == loop
        assert all(f.alpha is None and f.size == (40, 56) for f in film.frames)
        save_animation(film, tmp_path / f"b{suffix}")
        again = read_animation(tmp_path / f"b{suffix}")
        assert len(again.frames) == 4 and list(again.durations) == list(film.durations) and again.loop == loop

    def test_a_still_is_no_animation(self, tmp_path):
        noise(20, 20).save(tmp_path / "a.gif")
        assert read_animation(tmp_path / "a.gif") is None

    def test_pixels_of_all_frames_count(self, tmp_path):
        with pytest.raises(ImageError, match=r"4 frames of 56x40 are 0\.0 megapixels"):
            read_animation(self.film(tmp_path / "a.gif"), max_pixels=5000)

    @pytest.mark.parametrize("norm", ["adain", "cin"])
    def test_equal_frames_stay_equal_and_moments_are_shared(self, transfer, norm):
        still, other = (files.from_pil(noise(40, 56, seed=i)) for i in (0, 9))
        film, options = Animation([still, other, still], [10, 10, 10], 0), Options(norm=norm, style_size=64)
        done = transfer.animate(film, "great-wave", options)
        assert torch.equal(done.frames[0].pixels, done.frames[2].pixels)
        assert done.durations == film.durations and done.loop == 0
        alone = transfer.picture(still, "great-wave", options).rgb
        assert (done.frames[0].rgb - alone).abs().mean() > 2 / 255
        single = transfer.animate(Animation([still], [10], 0), "great-wave", options).frames[0]
        assert (single.rgb - alone).abs().max() <= 1 / 255

    @pytest.mark.parametrize("tile", ["auto", "24"])
    def test_moments_inside_the_decoder_are_those_of_all_frames(self, transfer, tile):
        """Of each style apart, where there are regions; the frames side by side have the moments of both."""
        frames = [files.from_pil(noise(40, 56, seed=i)) for i in (0, 9)]
        mask = Image.new("L", (56, 40), 255)
        options = Options(norm="cin", style_size=64, tile=tile)
        found = transfer.animate(Animation(frames, [10, 10], 0), "great-wave", options).frames
        network, code = transfer.networks.of("cin"), transfer.styles.code("great-wave", 64, "cin")
        image = torch.cat([frame.rgb for frame in frames])
        wanted = network(image, code, 1.0, lambda name, x: merge(*map(moments, x.split(1)))).clamp(0, 1)
        for one, other in zip(found, wanted.split(1), strict=True):
            assert (one.rgb - other).abs().max() <= 1.01 / 255
        regions = transfer.animate(
            Animation(frames, [10, 10], 0), "the-visit", options, regions=[(mask, "great-wave", 1.0)]
        )
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(regions.frames, found, strict=True))

    def test_what_cannot_be_shared_is_refused(self, transfer):
        film = Animation([files.from_pil(noise(40, 56))], [10], 0)
        with pytest.raises(OptionError, match="an animation takes the norms cin, adain"):
            transfer.animate(film, noise(40, 40), Options(norm="wct"))

    def test_cli(self, run, tmp_path):
        self.film(tmp_path / "a.gif")
        assert run("stylize", "a.gif", "-s", "great-wave", "-o", "b.gif", "--style-size", 64)[0] == 0
        with Image.open(tmp_path / "b.gif") as stored:
            assert stored.n_frames == 4 and stored.info["loop"] == 3
        assert run("stylize", "a.gif", "-s", "great-wave", "-o", "b.png", "--style-size", 64)[0] == 0
        assert Image.open(tmp_path / "b.png").size == (56, 40)


class TestControlsOfTheCommandLine:
    SIZE = ("--style-size", 64)

    def mask(self, path, size=(56, 40), box=(0, 0, 20, 40)):
        image = Image.new("L", size)
        image.paste(255, box)
        image.save(path)

    def test_regions(self, run, photo, tmp_path):
        self.mask(tmp_path / "m.png")
        code, _, err = run("stylize", photo, "--region", "m.png=the-visit@0.8", "-o", "a.png", "--json", *self.SIZE)
        assert code == 0, err
        a, b = (np.asarray(Image.open(f)).astype(int) for f in ("a.png", photo))
        assert np.abs(a - b)[:, :8].mean() > 2

    def test_a_mask_of_another_size_is_resized_and_told(self, run, photo, tmp_path):
        self.mask(tmp_path / "m.png", (28, 20), (0, 0, 10, 20))
        args = ("stylize", photo, "-s", "great-wave", "--region", "m.png=the-visit", "--feather", 2, "-o", "a.png")
        code, _, err = run(*args, *self.SIZE)
        assert code == 0 and "the mask is 28x20, resized to the photo's 56x40" in err

    def test_alpha_map_norm_color_tile(self, run, photo, tmp_path):
        self.mask(tmp_path / "m.png")
        noise(64, 70, seed=8).save(tmp_path / "painting.png")
        more = ("--alpha-map", "m.png", "--norm", "adagn:4", "--color", "coral", "--tile", 32, "--max-memory", "30GB")
        assert run("stylize", photo, "-s", "painting.png", *more, "-o", "a.png", *self.SIZE)[0] == 0

    def test_transparency_as_a_mask(self, run, tmp_path):
        noise(40, 56, channels=4).save(tmp_path / "t.png")
        assert run("stylize", "t.png", "--region", "alpha=great-wave", "-o", "a.png", *self.SIZE)[0] == 0

    @pytest.mark.parametrize(
        ("args", "exit_code", "message"),
        [
            ((), 2, "a --style is needed, or a --region with one"),
            (("--region", "m.png"), 2, "--region takes MASK=STYLE"),
            (("--region", "m.png="), 2, "--region takes MASK=STYLE"),
            (("--region", "m.png=great-wave@2"), 2, "must be from 0 to 1"),
            (("--region", "m.png=great-wave@x"), 2, "must be a number"),
            (("--region", "empty.png=great-wave"), 1, "empty.png: the mask is empty"),
            (("--region", "no.png=great-wave"), 1, "no.png: no such file"),
            (("--region", "alpha=great-wave"), 1, "this photo has none"),
            (("--region", "m.png=grat-wave"), 2, "did you mean 'great-wave'"),
            (("-s", "great-wave", "--max-memory", "1MB"), 2, "MB are needed, --max-memory allows 1 MB"),
            (("-s", "great-wave", "--format", "xyz"), 2, "unknown format 'xyz'"),
            (("-s", "great-wave", "--norm", "wct"), 2, "wct needs a painting"),
            (("-s", "great-wave", "--color", "sepia"), 2, "unknown color 'sepia'"),
        ],
    )
    def test_bad_input(self, run, photo, tmp_path, args, exit_code, message):
        self.mask(tmp_path / "m.png")
        Image.new("L", (56, 40)).save(tmp_path / "empty.png")
        code, _, err = run("stylize", photo, *args, "-o", "out.png", *self.SIZE)
        assert message in err and code == exit_code
        assert "Traceback" not in err and not (tmp_path / "out.png").exists()

    def test_formats_of_results(self, run, photo, tmp_path):
        (tmp_path / "f").mkdir()
        assert (
            run("stylize", photo, "-s", "great-wave", "-o", "f", "--format", "jpg", "--quality", 60, *self.SIZE)[0] == 0
        )
        assert [p.name for p in (tmp_path / "f").iterdir()] == ["photo-great-wave.jpg"]
