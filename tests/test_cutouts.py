"""Photos and paintings with transparency: what does not show has no say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from styleapp.compare import compare
from styleapp.controls import colour_statistics
from styleapp.images import Picture, filled, from_pil, unit
from styleapp.options import Options

SIZE = {"style_size": 64}


def disc(height: int = 72, width: int = 90, hidden: int = 0, seed: int = 1) -> Image.Image:
    """Noise in a disc with a soft edge; outside, where nothing shows, one grey."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    alpha = np.clip((0.6 - np.hypot(x, y)) * 8, 0, 1)
    coarse = generator.integers(0, 256, (6, 6, 3), np.uint8)
    rgb = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    rgb[alpha == 0] = hidden
    return Image.fromarray(np.dstack([rgb, (alpha * 255).round().astype(np.uint8)]), "RGBA")


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def shown(image: Image.Image) -> np.ndarray:
    """The pixels of which anything shows."""
    return array(image)[array(image)[..., 3] > 0]


class TestFilled:
    def test_what_shows_stays_and_the_rest_does_not_depend_on_what_was_there(self):
        black, white = (from_pil(disc(hidden=value)) for value in (0, 255))
        found = filled(black)
        visible = (black.alpha > 0).expand_as(black.pixels)
        assert torch.equal(found.pixels[visible], black.pixels[visible])
        assert torch.equal(found.pixels, filled(white).pixels)
        assert not torch.equal(black.pixels, white.pixels)

    def test_the_colours_around_go_on(self):
        """Left half red, right half blue, a hidden band across: its ends take the colour above and below them."""
        pixels = torch.zeros(1, 3, 64, 80, dtype=torch.uint8)
        pixels[:, 0, :, :40], pixels[:, 2, :, 40:] = 200, 100
        alpha = torch.full((1, 1, 64, 80), 255, dtype=torch.uint8)
        alpha[..., 16:48, :] = 0
        found = filled(Picture(torch.where(alpha > 0, pixels, 77), alpha)).pixels
        red, _, blue = found[0].float()
        assert (red[:, :16] > 180).all() and (blue[:, :16] < 20).all()
        assert (red[:, 64:] < 40).all() and (blue[:, 64:] > 80).all()

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
    def test_strips_meet(self, dtype):
        """A ramp from top to bottom, hidden at the left: the filling has no step where one strip ends."""
        full = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
        ramp = (torch.linspace(0, 1, 600).view(1, 1, -1, 1).expand(1, 3, 600, 64) * full).to(dtype)
        alpha = torch.full((1, 1, 600, 64), 255, dtype=torch.uint8)
        alpha[..., :32] = 0
        found = filled(Picture(ramp.contiguous(), alpha))
        assert found.pixels.dtype == dtype
        steps = unit(found.pixels)[..., 16].diff(dim=-1)
        assert steps.min() > -1e-6 and steps.max() < 0.006

    def test_nothing_to_fill(self):
        p = from_pil(disc())
        for alpha in (None, torch.full_like(p.alpha, 128), torch.zeros_like(p.alpha)):
            one = replace(p, alpha=alpha)
            assert filled(one) is one and one.weight is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alpha": 0.5},
        {"size": 50},
        {"size": 120},
        {"tile": "32"},
        {"norm": "cin"},
        {"norm": "cin", "tile": "32"},
        {"norm": "adagn:4"},
        {"norm": "wct"},
        {"norm": "ot"},
        {"norm": "efdm"},
        {"norm": "decoder:bn"},
        {"color": "luma"},
        {"color": "coral"},
        {"color": "histogram"},
        {"color": "palette"},
    ],
    ids=str,
)
def test_hidden_colours_have_no_say(transfer, options):
    needs_painting = {*options.values()} & {"wct", "ot", "efdm", "coral", "histogram", "palette"}
    painting = disc(80, 64, seed=2).convert("RGB")
    found = [
        transfer.stylize(disc(hidden=h), painting if needs_painting else "great-wave", **SIZE, **options)
        for h in (0, 255)
    ]
    assert np.array_equal(shown(found[0]), shown(found[1]))
    assert array(found[0])[..., :3].std() > 2, "a picture of one colour would always be equal"


@pytest.mark.parametrize(
    "options", [{}, {"norm": "cin"}, {"norm": "wct"}, {"norm": "efdm"}, {"color": "coral"}], ids=str
)
def test_hidden_colours_of_a_painting_have_no_say(transfer, options):
    photo = disc().convert("RGB")
    found = [transfer.stylize(photo, disc(80, 64, hidden=h, seed=2), **SIZE, **options) for h in (0, 255)]
    assert np.array_equal(*map(array, found))
    other = transfer.stylize(photo, disc(80, 64, seed=3), **SIZE, **options)
    assert not np.array_equal(array(found[0]), array(other))


def test_the_statistics_are_those_of_what_shows(transfer):
    """A photo with a hidden half against that half alone; only features near the cut see any difference."""
    half = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))
    both = Image.new("RGBA", (512, 256))
    both.paste(half, (0, 0))
    options = Options()
    found = transfer.measure_content(from_pil(both), options).moments
    wanted = transfer.measure_content(from_pil(half), options).moments
    opaque = transfer.measure_content(from_pil(both.convert("RGB")), options).moments
    assert found.count == wanted.count == 32 * 32
    near, far = ((m.mean - wanted.mean).abs().max() / wanted.std().max() for m in (found, opaque))
    assert near < 0.1 < far


def test_colours_of_what_shows():
    mean, covariance = colour_statistics(from_pil(disc(hidden=0)))
    pixels = array(disc(hidden=0)).reshape(-1, 4) / 255
    weight = pixels[:, 3]
    assert mean.flatten().numpy() == pytest.approx(np.average(pixels[:, :3], 0, weight))
    assert covariance[0].numpy() == pytest.approx(np.cov(pixels[:, :3].T, aweights=weight, ddof=0), abs=1e-7)


def test_one_opacity_everywhere_is_as_opaque(transfer):
    image = disc().convert("RGB")
    glass = image.copy()
    glass.putalpha(100)
    a, b = (transfer.stylize(x, "great-wave", **SIZE) for x in (image, glass))
    assert np.array_equal(array(a), array(b)[..., :3])


def test_strength_zero_gives_the_file_back_hidden_colours_and_all(transfer):
    image = disc(hidden=40)
    assert np.array_equal(array(transfer.stylize(image, "great-wave", alpha=0, **SIZE)), array(image))


def test_no_fringe_when_a_cutout_is_scaled(transfer):
    """A white disc among hidden black stays white to its edge."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (16, 16, 48, 48))
    small = transfer.fit(image, Options(size=40))
    assert small.pixels[(small.alpha > 0).expand_as(small.pixels)].min() >= 254


def test_cutouts_of_one_size_are_not_one_batch(transfer):
    photos = [from_pil(disc(hidden=h)) for h in (0, 255)]
    assert not transfer.fits_at_once(photos, Options(style_size=64))
    a, b = transfer.pictures(photos, ["great-wave"] * 2, Options(style_size=64))
    visible = (a.alpha > 0).expand_as(a.pixels)
    assert torch.equal(a.pixels[visible], b.pixels[visible])


def test_comparisons_show_it_on_white(transfer):
    photo = from_pil(disc(hidden=0))
    found = compare(transfer, photo, ["great-wave"], ["adain", "cin"], Options(style_size=64))
    hidden = array(disc())[..., 3] == 0
    for picture in (found.photo, *(cell.picture for cell in found.cells[0])):
        assert (array(picture)[hidden] == 255).all()
