"""Large photos: reduced for the network, and the result enlarged along their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image
from torch.nn import functional as F

from styleapp import enlarge, pipeline
from styleapp.enlarge import enlarged, reduced, slopes
from styleapp.errors import OptionError
from styleapp.files import Animation, read_image
from styleapp.images import Picture, from_pil, to_pil
from styleapp.large import read_large
from styleapp.options import Options
from styleapp.video import Smoother, stylize_frames

CPU = torch.device("cpu")
LARGE = {"style_size": 64, "work_size": 40, "norm": "adain"}


def deep(height: int, width: int) -> Picture:
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).mul(65535).to(torch.uint16)
    return Picture(pixels.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("size", [(90, 130), (300, 77), (64, 64)])
def test_reduced_in_strips_is_reduced_at_once(size):
    picture = from_pil(noise(*size))
    small = reduced(picture, 32)
    wanted = F.interpolate(picture.rgb, small.size, mode="bicubic", antialias=True).clamp(0, 1)
    assert min(small.size) == 32 and small.pixels.dtype == torch.uint8
    assert (small.rgb - wanted).abs().max() < 0.51 / 255


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_rows_are_those_of_torch(mode):
    x = torch.rand(1, 3, 40, 50)
    wanted = F.interpolate(x, (133, 170), mode=mode)
    down, columns = enlarge._taps(40, 133, mode), enlarge._bands(enlarge._taps(50, 170, mode), 0, 170)
    parts = [
        enlarge._enlarged(x, 0, enlarge._bands(down, top, min(top + step, 133)), columns, mode)
        for step in (30, 133)
        for top in range(0, 133, step)
    ]
    for found in (torch.cat(parts[:-1], 2), parts[-1]):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_inverses_of_symmetric_matrices():
    root = torch.rand(4, 5, 3, 3, dtype=torch.float64)
    m = (root @ root.mT + 1e-3 * torch.eye(3)).permute(2, 3, 0, 1)[None]
    assert torch.allclose(enlarge._inverse(m), m.permute(0, 3, 4, 1, 2).inverse().permute(0, 3, 4, 1, 2))


@pytest.mark.parametrize("picture", [from_pil(noise(90, 130)), deep(90, 130)], ids=["8 bits", "16 bits"])
def test_a_photo_that_was_not_changed_comes_back(picture):
    small = reduced(picture, 32)
    found = enlarged(picture, small, small, 1.0, CPU).pixels.int()
    assert (found - picture.pixels.int()).abs().max() <= (0 if picture.pixels.dtype == torch.uint8 else 2)


def test_strips_make_no_difference(monkeypatch):
    picture, kept = from_pil(noise(300, 100)), torch.rand(1, 1, 96, 32)
    small = reduced(picture, 32)
    result = from_pil(noise(*small.size, seed=3))
    whole = enlarged(picture, small, result, kept, CPU)
    monkeypatch.setattr(enlarge, "STRIP", 1)
    assert (enlarged(picture, small, result, kept, CPU).pixels.int() - whole.pixels.int()).abs().max() <= 1


def test_what_is_a_function_of_the_photo_is_one_of_the_large_photo():
    """Edges of the photo come out as sharp as they are, where enlarging alone would blur them."""
    edges = (torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    large = F.interpolate(edges, scale_factor=8, mode="nearest")
    picture = Picture((large * 255).to(torch.uint8))
    matrix = torch.tensor([[0.1, 0.6, 0.0], [0.5, -0.3, 0.2], [-0.2, 0.1, 0.7]])
    map_of = lambda x: torch.einsum("ij,njhw->nihw", matrix, x) + 0.3  # noqa: E731
    small = reduced(picture, 64)
    result = Picture(map_of(small.rgb).clamp(0, 1))
    found = enlarged(picture, small, result, 0.0, CPU).rgb
    plain = F.interpolate(result.rgb, picture.size, mode="bicubic").clamp(0, 1)
    error, without = ((y - map_of(picture.rgb).clamp(0, 1)).abs().mean() for y in (found, plain))
    assert error < 0.2 * without


def test_where_the_photo_is_even_its_noise_counts_as_it_is_kept():
    even = 0.5 + 1e-4 * torch.randn(1, 3, 20, 20)
    painted = torch.rand(1, 3, 20, 20)
    kept = torch.linspace(0, 1, 20).expand(1, 1, 20, 20)
    found = slopes(even, painted, kept).unflatten(1, (3, 3))[0, ..., 5:-5, 5:-5]
    wanted = torch.eye(3)[..., None, None] * kept[0, :, 5:-5, 5:-5]
    assert (found - wanted).abs().max() < 0.2
    assert (slopes(even, even, 1.0).unflatten(1, (3, 3))[0] - torch.eye(3)[..., None, None]).abs().max() < 1e-3


def test_as_it_is_done_by_hand(transfer):
    photo = noise(100, 140)
    found = transfer.stylize(photo, "great-wave", **LARGE)
    assert found.size == photo.size
    picture = from_pil(photo)
    small = reduced(picture, 40)
    options = Options(style_size=64, norm="adain")
    result = transfer.picture(small, "great-wave", options)
    assert np.array_equal(np.asarray(found), np.asarray(to_pil(enlarged(picture, small, result, 0.0, CPU))))
    for enough in (0, 100, 1080):
        whole = transfer.stylize(photo, "great-wave", **{**LARGE, "work_size": enough})
        assert np.array_equal(np.asarray(whole), np.asarray(to_pil(transfer.picture(picture, "great-wave", options))))


@pytest.mark.parametrize("norm", ["adain", "cin", "in", "wct"])
def test_tiles_make_no_difference(transfer, norm, tmp_path):
    style = noise(64, 64, seed=7) if norm == "wct" else "great-wave"
    more = {**LARGE, "norm": norm, "work_size": 64}
    whole = transfer.stylize(noise(160, 200), style, tile="off", **more)
    tiles = transfer.stylize(noise(160, 200), style, tile="32", **more)
    assert np.abs(np.asarray(whole).astype(int) - np.asarray(tiles)).max() <= 2


@pytest.mark.parametrize("norm", ["adain", "cin"])
def test_beside_a_region_and_at_no_strength_the_photo_stays(transfer, norm):
    photo = noise(160, 480)
    mask = Image.new("L", photo.size, 0)
    mask.paste(255, (0, 0, 100, 160))
    more = {**LARGE, "norm": norm}
    region = np.asarray(transfer.stylize(photo, regions=[(mask, "great-wave", 1.0)], **more))
    partly = np.asarray(transfer.stylize(photo, "great-wave", alpha_map=mask, **more))
    for found in (region, partly):  # as far away as AdaIN's decoder sees
        assert np.array_equal(found[:, 360:], np.asarray(photo)[:, 360:])
        assert not np.array_equal(found[:, :60], np.asarray(photo)[:, :60])
    assert np.array_equal(np.asarray(transfer.stylize(photo, "great-wave", alpha=0, **more)), np.asarray(photo))


def test_transparency_and_depth_stay(transfer):
    photo = noise(100, 140, channels=4)
    found = transfer.stylize(photo, "great-wave", **LARGE)
    assert found.mode == "RGBA" and np.array_equal(np.asarray(found)[..., 3], np.asarray(photo)[..., 3])
    result = transfer.picture(deep(100, 140), "great-wave", Options(**LARGE))
    assert result.pixels.dtype == torch.uint16 and result.size == (100, 140)


@pytest.mark.parametrize("norm", ["adain", "cin"])
def test_frames_of_a_film(transfer, norm):
    frame = from_pil(noise(100, 140))
    options = Options(**{**LARGE, "norm": norm})
    one, other = transfer.animate(Animation([frame, frame], [40, 40], 0), "great-wave", options).frames
    assert torch.equal(one.pixels, other.pixels) and one.size == (100, 140)
    alone = transfer.picture(frame, "great-wave", options).pixels
    assert (one.pixels.int() - alone.int()).abs().max() <= 1


@pytest.mark.parametrize("norm", ["adain", "cin"])
def test_a_film_that_stands_still_stands_still(transfer, norm, monkeypatch):
    frame, options = from_pil(noise(100, 140)), Options(**{**LARGE, "norm": norm})
    calls: list[int] = []
    monkeypatch.setattr(pipeline, "reduced", lambda *given: calls.append(1) or reduced(*given))
    found = list(stylize_frames(transfer, [(t / 25, frame) for t in range(3)], "great-wave", options, Smoother(0.5)))
    assert all(torch.equal(picture.pixels, found[0].pixels) for picture in found) and found[0].size == (100, 140)
    assert len(calls) == 3  # each frame once


def test_several_at_once(transfer):
    photos = [from_pil(noise(100, 140, seed=s)) for s in range(3)]
    found = transfer.pictures(photos, ["great-wave"] * 3, Options(**LARGE))
    for photo, result in zip(photos, found, strict=True):
        assert torch.equal(result.pixels, transfer.picture(photo, "great-wave", Options(**LARGE)).pixels)


def test_a_picture_on_disk(transfer, tmp_path):
    pytest.importorskip("pyvips")
    noise(300, 260).save(tmp_path / "photo.png")
    options = Options(**LARGE)
    here, there = (transfer.picture(read(tmp_path / "photo.png"), "great-wave", options)
                   for read in (read_image, read_large))  # fmt: skip
    assert torch.equal(here.pixels, there.pixels)


def test_on_the_command_line(run, tmp_path):
    noise(100, 140).save(tmp_path / "photo.png")
    common = ("stylize", tmp_path / "photo.png", "--style", "great-wave", "--style-size", 64)
    for name, size in (("fine", 0), ("broad", 40), ("same", 1080)):
        code, _, error = run(*common, "-o", tmp_path / f"{name}.png", "--work-size", size)
        assert code == 0, error
    fine, broad, same = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("fine", "broad", "same"))
    assert np.array_equal(fine, same) and broad.shape == fine.shape and not np.array_equal(fine, broad)
    code, _, error = run(*common, "-o", tmp_path / "bad.png", "--work-size", 5)
    assert code == 2 and "work_size must be 0 (the photo's own) or at least 16 pixels, got 5" in error.replace(
        "\n", " "
    )


def test_bad_sizes():
    with pytest.raises(OptionError, match="at least 16 pixels, got -1"):
        Options(work_size=-1)
