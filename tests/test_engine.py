"""Tiles: the same picture, whatever the tile, the controls and the memory."""

from collections import Counter
from copy import deepcopy
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY_VGG, alive
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from styleapp import tiles
from styleapp.controls import Layer, Mask, Matching
from styleapp.engine import measure_content, render
from styleapp.errors import OptionError
from styleapp.images import Picture, filled, to_pil
from styleapp.models import Decoder, Encoder, ShiftPredictor, StyleCode, Stylizer
from styleapp.models.layers import ReflectConv2d
from styleapp.norms import adain
from styleapp.pipeline import StyleTransfer
from styleapp.tiles import Plan, even, make_plan, one_piece


def network(upsampling: str = "nearest") -> Stylizer:
    torch.manual_seed(3)
    return alive(Stylizer(Encoder(TINY_VGG), Decoder(16, upsampling=upsampling)))


NETWORK = network()
BILINEAR = Stylizer(NETWORK.encoder, network("bilinear").decoder)
TOLD = Stylizer(
    NETWORK.encoder, BILINEAR.decoder, shifts=ShiftPredictor(4 + 6 + 8, sum(BILINEAR.decoder.hidden.values()))
)
torch.nn.init.normal_(TOLD.shifts.last.weight, std=0.1)
TOLD.eval().requires_grad_(False)
SHOWN = Stylizer(
    NETWORK.encoder,
    Decoder(16, upsampling="bilinear", skips={"relu1_1": 4, "relu2_1": 6, "relu3_1": 8}),
    shifts=TOLD.shifts,
)
SHOWN.decoder.load_state_dict(BILINEAR.decoder.state_dict(), strict=False)
SHOWN.eval().requires_grad_(False)
MATCHINGS = [
    Matching(),
    Matching(over="layer"),
    Matching(over="batch"),
    Matching(over="group", num_groups=4),
    Matching("wct"),
    Matching("ot"),
    Matching("efdm"),
]


def cutout(p: Picture) -> Picture:
    """With a soft disc of opacity around the middle, and black where nothing shows."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in p.size), indexing="ij")
    alpha = ((0.7 - torch.hypot(x, y)) * 5).clamp(0, 1)[None, None]
    return filled(Picture(torch.where(alpha > 0, p.pixels, 0.0), (alpha * 255).round().to(torch.uint8)))


def picture(height: int, width: int, seed: int = 0) -> Picture:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return Picture((smooth + 0.1 * torch.rand(1, 3, height, width, generator=generator)).clamp(0, 1))


def style(seed: int, network: Stylizer = NETWORK) -> dict[str, StyleCode | torch.Tensor]:
    """What matches more than moments takes: all features in place of their code."""
    painting = picture(40, 56, seed).rgb
    return {**network.measure(painting).split(network.parts), "relu4_1": network.encoder(painting)}


def code(seed: int, network: Stylizer = NETWORK) -> StyleCode:
    return network.measure(picture(40, 56, seed).rgb)


def whole(p: Picture) -> Plan:
    return one_piece(p.size)


def difference(a: Picture, b: Picture) -> float:
    return float((a.rgb - b.rgb).abs().max())


def test_the_network_of_these_tests_is_alive():
    """Otherwise every picture would be equal to every other."""
    found = render(NETWORK, picture(64, 64), [Layer(code(1))], one_piece((64, 64))).rgb
    other = render(NETWORK, picture(64, 64), [Layer(code(2))], one_piece((64, 64))).rgb
    assert found.std() > 0.1 and (found - other).abs().mean() > 0.02
    assert ((found > 0) & (found < 1)).float().mean() > 0.8


@pytest.mark.parametrize("network", [NETWORK, TOLD, SHOWN], ids=["as in the paper", "told", "shown"])
def test_one_tile_is_the_plain_network(network):
    p = picture(50, 61)
    for alpha in (1.0, 0.6):
        found = render(network, p, [Layer(code(1, network), alpha)], whole(p))
        assert torch.allclose(found.rgb, network(p.rgb, code(1, network), alpha).clamp(0, 1), atol=1e-4)


class TestShifts:
    """What is told of a painting, beside its moments at relu4_1."""

    p = picture(72, 90)

    def test_they_are_added_to_what_each_hidden_convolution_gives(self):
        parts = code(1, TOLD).split(TOLD.parts)
        assert list(parts) == ["relu4_1", *TOLD.decoder.hidden]
        told = TOLD.told(parts)
        seen = TOLD.encoder.features(picture(40, 56, 1).rgb)
        logs = [torch.cat([t(f) for f in seen[:3]], 1) for t in (_log_std, lambda f: (f.mean((2, 3)) + 0.01).log())]
        wanted = torch.cat(logs, 1).clamp(-1, 1) @ TOLD.shifts.last.weight.T
        found = torch.cat([told[name] for name in TOLD.decoder.hidden], 1).flatten(1)
        assert torch.allclose(found, wanted, atol=1e-4) and found.std() > 0.1

        own = TOLD.apply_code(TOLD.encoder(self.p.rgb), parts["relu4_1"])
        expected = TOLD.decoder(own, lambda name, x: x + told[name])[..., :72, :90].clamp(0, 1)
        assert torch.allclose(render(TOLD, self.p, [Layer(code(1, TOLD))], Plan((32, 24))).rgb, expected, atol=1e-4)
        assert (expected - render(BILINEAR, self.p, [Layer(code(1))], whole(self.p)).rgb).abs().mean() > 0.02

    def test_of_several_paintings_at_once(self):
        """They cannot lie in one bias then."""
        codes = [code(k, TOLD) for k in (1, 2)]
        both = StyleCode(torch.cat([c.gamma for c in codes]), torch.cat([c.beta for c in codes]))
        found = TOLD(self.p.rgb.repeat(2, 1, 1, 1), both, 0.7)
        for one, c in zip(found, codes, strict=True):
            assert torch.allclose(one, TOLD(self.p.rgb, c, 0.7)[0], atol=1e-4)

    def test_a_predictor_of_zeros_tells_nothing(self):
        silent = Stylizer(BILINEAR.encoder, BILINEAR.decoder, shifts=ShiftPredictor(18, _hidden()))
        found = render(silent, self.p, [Layer(code(1, silent))], whole(self.p))
        assert difference(found, render(BILINEAR, self.p, [Layer(code(1))], whole(self.p))) < 1e-6


class TestBesides:
    """Further layers of the encoder, each with an AdaIN of its own."""

    p = picture(72, 90)

    def test_each_comes_to_the_decoder_with_the_moments_of_the_painting(self):
        seen = SHOWN.encoder.features(self.p.rgb)
        painting = SHOWN.encoder.features(picture(40, 56, 1).rgb)
        *above, own = (adain(f, s) for f, s in zip(seen, painting, strict=True))
        skips = dict(zip(SHOWN.besides, above, strict=True))
        told = SHOWN.told(code(1, SHOWN).split(SHOWN.parts))
        expected = SHOWN.decoder(own, skips=skips, shifts=told)[..., :72, :90].clamp(0, 1)
        for plan in (whole(self.p), Plan((32, 24)), Plan((32, 24), keep=False)):
            found = render(SHOWN, self.p, [Layer(code(1, SHOWN))], plan)
            assert torch.allclose(found.rgb, expected, atol=1e-4)
        assert difference(found, render(TOLD, self.p, [Layer(code(1, TOLD))], whole(self.p))) > 0.1

    def test_the_parts_of_a_code(self):
        channels = {"relu4_1": 16, "relu1_1": 4, "relu2_1": 6, "relu3_1": 8}
        assert SHOWN.parts == channels | SHOWN.decoder.hidden
        assert SHOWN.takes(code(1, SHOWN)) and not SHOWN.takes(code(1, TOLD)) and not TOLD.takes(code(1, SHOWN))
        parts = code(1, SHOWN).split(SHOWN.parts)
        assert all(bool((parts[name].gamma > 0).all()) == (name in channels) for name in parts)

    def test_a_norm_over_groups_takes_as_many_as_divide_the_channels(self):
        """16 groups of 16 channels are as many norms as channels, above too."""
        layers = [Layer(code(1, SHOWN))]
        wanted = render(SHOWN, self.p, layers, whole(self.p))
        each = render(SHOWN, self.p, layers, whole(self.p), matching=Matching(over="group", num_groups=16))
        together = render(SHOWN, self.p, layers, whole(self.p), matching=Matching(over="group", num_groups=1))
        layer = render(SHOWN, self.p, layers, whole(self.p), matching=Matching(over="layer"))
        assert difference(each, wanted) < 1e-4 and difference(together, layer) < 1e-4
        assert difference(layer, wanted) > 0.05

    def test_a_photo_in_one_piece_is_encoded_once(self, monkeypatch):
        shapes: list[tuple[int, ...]] = []
        features = Encoder.features

        def counted(encoder, image, *more):
            shapes.append(tuple(image.shape[-2:]))
            return features(encoder, image, *more)

        of_style = code(1, SHOWN)
        monkeypatch.setattr(Encoder, "features", counted)
        render(SHOWN, self.p, [Layer(of_style, 0.5)], whole(self.p))
        assert shapes == [(72, 90)]

    def test_in_bfloat16_and_of_several_photos_at_once(self):
        half = deepcopy(SHOWN)
        half.encoder.bfloat16(), half.decoder.bfloat16()
        photos = [picture(72, 90, seed) for seed in (1, 2)]
        both = half(torch.cat([p.rgb for p in photos]), code(1, SHOWN)).clamp(0, 1)
        for p, one in zip(photos, both.split(1), strict=True):
            alone = render(half, p, [Layer(code(1, SHOWN))], whole(p)).rgb
            assert -10 * (one - alone).square().mean().log10() > 45


def _hidden() -> int:
    return sum(BILINEAR.decoder.hidden.values())


def _log_std(features: torch.Tensor) -> torch.Tensor:
    return (features.var((2, 3), correction=0) + 1e-5).sqrt().log()


@pytest.mark.parametrize("stride", [1, 3])
def test_radius_of_the_encoder(stride):
    """Change one pixel: features further away than the radius keep every bit, the farthest within it change."""
    p = torch.rand(1, 3, 160, 160, dtype=torch.float64)
    encoder = NETWORK.encoder.double()
    try:
        at = 80 + stride
        moved = p.clone()
        moved[0, :, at, at] += 0.5
        changed = (encoder(p) != encoder(moved)).any(1)[0].any(1).nonzero().flatten()
        first, last = 8 * int(changed[0]), 8 * int(changed[-1]) + 7
        assert first - encoder.radius <= at <= last + encoder.radius
        assert encoder.radius == 30
    finally:
        NETWORK.float()


def positive(module: torch.nn.Module) -> torch.nn.Module:
    """Filters that let every change through."""
    for name, parameter in module.double().requires_grad_(False).named_parameters():
        parameter.fill_(0.1 if name.endswith("weight") else 0.0)
    return module


def test_radius_is_tight():
    encoder = positive(Encoder((1, 1, "M", 1, 1, "M", 1, 1, 1, 1, "M", 1)))
    for distance, seen in ((30, True), (31, False)):
        p = torch.zeros(1, 3, 160, 160, dtype=torch.float64)
        p[0, :, 80 - distance, 80 - distance] = 1e6
        assert bool(encoder(p)[0, 0, 10, 10] != 0) is seen


@pytest.mark.parametrize(("upsampling", "radius"), [("nearest", 30), ("bilinear", 37)])
def test_radius_of_the_decoder(upsampling, radius):
    decoder = positive(Decoder(16, upsampling=upsampling))
    assert decoder.radius == radius
    x = torch.zeros(1, 16, 20, 20, dtype=torch.float64)
    x[..., 10, 10] = 1e6
    rows = decoder(x)[0, 0].any(1).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (80 - decoder.radius, 87 + decoder.radius)


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_radius_between_two_layers(upsampling):
    """Change one element of each layer: what changes of each later one is just what lies within the radius."""
    decoder = positive(Decoder(16, upsampling=upsampling))
    channels, stride = {None: 16, **decoder.hidden}, {None: 8, **decoder.strides}
    layers = list(channels)
    for i, after in enumerate(layers):
        x = torch.zeros(1, channels[after], 160 // stride[after], 160 // stride[after], dtype=torch.float64)
        x[..., 80 // stride[after], 80 // stride[after]] = 1e6
        for until in [*layers[i + 1 :], None]:
            rows = decoder(x, after=after, until=until)[0, 0].any(1).nonzero().flatten()
            pixels, radius = 1 if until is None else stride[until], decoder.radius_between(after, until)
            found = pixels * int(rows[0]), pixels * int(rows[-1] + 1)
            assert found == (80 - radius, 80 + stride[after] + radius)


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(16, 200),
    width=st.integers(16, 200),
    tile=st.sampled_from([16, 24, 40, 64, 128]),
    keep=st.booleans(),
    matching=st.sampled_from(MATCHINGS),
    alpha=st.sampled_from([1.0, 0.5]),
    masks=st.integers(0, 2),
    softness=st.sampled_from([0.0, 3.0]),
    strength=st.booleans(),
    luma=st.booleans(),
    transparency=st.booleans(),
    stylizer=st.sampled_from([NETWORK, BILINEAR, TOLD, SHOWN, SHOWN]),
)
def test_tiled_equals_untiled(
    height, width, tile, keep, matching, alpha, masks, softness, strength, luma, transparency, stylizer
):
    p = cutout(picture(height, width)) if transparency else picture(height, width)
    wants_features = matching.kind != "moments"
    styles = [style(i, stylizer) if wants_features else code(i, stylizer) for i in range(3)]
    layers = [Layer(styles[0], alpha)]
    for i in range(masks):
        mask = torch.zeros(1, 1, height, width, dtype=torch.uint8)
        mask[..., : height // (i + 2), width // 3 :] = 255
        layers.append(Layer(styles[i + 1], 1.0 - 0.3 * i, Mask(mask, softness)))
    options = {"matching": matching, "luma": luma}
    if strength:
        options["strength"] = Mask(torch.linspace(0, 1, width).expand(1, 1, height, width))
    tiles = Plan(even(p.size, tile), keep or matching.kind == "efdm")
    found = render(stylizer, p, layers, tiles, **options)
    wanted = render(stylizer, p, layers, whole(p), **options)
    # EFDM goes by ranks: rounding that swaps two neighbours moves them by a step. WCT and OT of a photo that
    # is smooth where nothing shows divide by variances near 0.
    if matching.kind == "efdm" or (matching.kind in ("wct", "ot") and transparency):
        assert (found.rgb - wanted.rgb).abs().mean() < 2e-4
    else:
        assert difference(found, wanted) < 2e-4


def test_mixing_tiles():
    p = picture(90, 70)
    mixed = StyleCode.mix([code(1), code(2)], [0.3, 0.7])
    found = render(NETWORK, p, [Layer(mixed)], Plan((32, 32)))
    assert difference(found, render(NETWORK, p, [Layer(mixed)], whole(p))) < 2e-4


def test_long_and_thin():
    p = picture(16, 3000)
    found = render(NETWORK, p, [Layer(code(1))], Plan(even(p.size, 256)))
    assert found.size == (16, 3000)
    assert difference(found, render(NETWORK, p, [Layer(code(1))], whole(p))) < 2e-4


def test_bfloat16_tiles_are_close():
    half = network().bfloat16()
    p = picture(150, 130)
    plans = [Plan((48, 48)), whole(p)]
    a, b = (render(half, p, [Layer(code(1))], plan).rgb for plan in plans)
    assert -10 * (a - b).square().mean().log10() > 45


class TestRegions:
    p = picture(96, 128)
    left = torch.zeros(1, 1, 96, 128, dtype=torch.uint8)
    left[..., :64] = 255

    def test_far_from_the_border_a_region_is_as_the_whole_in_its_style(self):
        mask = Mask(self.left)
        found = render(NETWORK, self.p, [Layer(code(0)), Layer(code(1), 1.0, mask)], whole(self.p)).rgb
        for k, columns in ((1, slice(0, 24)), (0, slice(104, 128))):
            alone = render(NETWORK, self.p, [Layer(code(k))], whole(self.p)).rgb
            assert torch.allclose(found[..., columns], alone[..., columns], atol=1e-5)

    def test_the_rest_stays_photo(self):
        found = render(NETWORK, self.p, [Layer(code(1), 1.0, Mask(self.left))], Plan((32, 32))).rgb
        assert torch.allclose(found[..., 104:], self.p.rgb[..., 104:], atol=1e-5)
        assert not torch.allclose(found[..., :24], self.p.rgb[..., :24], atol=1e-2)

    def test_two_equal_masks_are_half_of_each(self):
        layers = [Layer(code(k), 1.0, Mask(torch.full_like(self.left, 255))) for k in (0, 1)]
        half = StyleCode.mix([code(0), code(1)], [0.5, 0.5])
        found = render(NETWORK, self.p, layers, whole(self.p))
        assert difference(found, render(NETWORK, self.p, [Layer(half)], whole(self.p))) < 1e-4

    def test_a_strength_map_of_one_grey_is_alpha(self):
        grey = Mask(torch.full((1, 1, 96, 128), 0.25))
        found = render(NETWORK, self.p, [Layer(code(1))], whole(self.p), strength=grey)
        assert difference(found, render(NETWORK, self.p, [Layer(code(1), 0.25)], whole(self.p))) < 1e-4

    def test_strength_zero_anywhere_is_the_photo(self):
        none = Mask(torch.zeros(1, 1, 96, 128))
        found = render(NETWORK, self.p, [Layer(code(1))], Plan((32, 32)), strength=none)
        assert torch.equal(found.rgb, self.p.rgb)


def test_luma_keeps_the_colours():
    p = picture(64, 64)
    gentle = Picture(0.3 + 0.4 * p.rgb)
    found = render(NETWORK, gentle, [Layer(code(1), 0.2)], whole(p), luma=True).rgb
    change = found - gentle.rgb
    inside = ((found > 0) & (found < 1)).all(1)
    assert inside.float().mean() > 0.5
    spread = (change.amax(1) - change.amin(1))[inside]
    assert spread.max() < 1e-5 and change.abs().max() > 1e-3


def test_depth_of_the_photo_is_kept():
    p = picture(40, 40)
    for dtype, full in ((torch.uint8, 255), (torch.uint16, 65535)):
        deep = Picture((p.rgb * full).round().to(dtype), torch.full((1, 1, 40, 40), 9, dtype=torch.uint8))
        found = render(NETWORK, deep, [Layer(code(1))], Plan((16, 16)))
        assert found.pixels.dtype == dtype and torch.equal(found.alpha, deep.alpha)
        assert difference(found, render(NETWORK, Picture(deep.rgb), [Layer(code(1))], whole(p))) <= 0.51 / full + 2e-4


def test_shared_content_moments():
    """Frames of a film: normalised with the moments of another picture."""
    a, b = picture(64, 64, 1), picture(64, 64, 2)
    shared = measure_content(NETWORK, a, Plan((64, 64), keep=False))
    one = render(NETWORK, a, [Layer(code(1))], Plan((32, 32), keep=False), content=shared)
    assert difference(one, render(NETWORK, a, [Layer(code(1))], whole(a))) < 2e-4
    other = render(NETWORK, b, [Layer(code(1))], whole(b), content=shared)
    assert difference(other, render(NETWORK, b, [Layer(code(1))], whole(b))) > 1e-3


@pytest.mark.parametrize("limit", [24, 48])
def test_out_of_memory_makes_tiles_smaller(monkeypatch, limit):
    """Both passes go on with quarters of the tile, and the picture is the same."""
    p = picture(120, 90)
    wanted = render(NETWORK, p, [Layer(code(1), 0.7)], whole(p))
    real_encode, real_decode = Encoder.features, Decoder.forward

    def encode(self, x, layers):
        if max(x.shape[-2:]) > limit + 64:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real_encode(self, x, layers)

    def decode(self, x, *more, **by_name):
        if max(x.shape[-2:]) > limit // 8 + 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real_decode(self, x, *more, **by_name)

    monkeypatch.setattr(Encoder, "features", encode)
    monkeypatch.setattr(Decoder, "forward", decode)
    notes = []
    found = render(NETWORK, p, [Layer(code(1), 0.7)], whole(p), note=notes.append)
    assert difference(found, wanted) < 2e-4
    assert notes and all("out of memory: going on with tiles of" in n for n in notes)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("tile", [(200, 200), (48, 32)])
def test_progress_rises_to_one_and_may_end_the_work(conditional, tile):
    p = picture(100, 130)
    stylizer = Stylizer(NETWORK.encoder, NETWORK.decoder, conditional=conditional)
    layers = [Layer(stylizer.measure(picture(40, 56, 1).rgb))]
    shares: list[float] = []
    render(stylizer, p, layers, Plan(tile), progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1) and shares[0] <= 0.5
    assert len(set(shares)) == len(shares) > (1 if tile[0] == 200 else 20)

    def stop(share: float) -> None:
        raise OptionError("enough")

    with pytest.raises(OptionError, match="enough"):
        render(stylizer, p, layers, Plan(tile), progress=stop)


def test_other_errors_are_not_swallowed(monkeypatch):
    monkeypatch.setattr(Encoder, "features", lambda self, x, layers: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        render(NETWORK, picture(32, 32), [Layer(code(1))], Plan((32, 32)))


class TestPlan:
    def test_one_piece_where_it_fits(self):
        assert make_plan(NETWORK, (300, 201), torch.device("cpu")) == Plan((304, 208))

    def test_large_photos_in_small_tiles_on_a_cpu(self, monkeypatch):
        """They are quicker than one piece there, but only one piece will do for some."""
        monkeypatch.setattr(tiles, "available", lambda device: 10**12)
        cpu, size = torch.device("cpu"), (4000, 3000)
        assert make_plan(NETWORK, (2048, 2048), cpu).tile == (2048, 2048)
        for matters in ({}, {"budget": 10**12}):
            assert make_plan(NETWORK, size, cpu, **matters).tile == (1336, 752)
            assert make_plan(NETWORK, size, cpu, **matters, whole=True).covers(size)
        assert make_plan(NETWORK, size, torch.device("cuda")).covers(size)
        assert make_plan(NETWORK, size, cpu, tile=4000).covers(size)

    def test_tiles_are_even_multiples_of_8_within_the_limit(self):
        for size, side in (((1000, 1000), 400), ((17, 5000), 64), ((999, 31), 100)):
            tile = even(size, side)
            assert all(t % 8 == 0 and t <= max(side // 8 * 8, 8) for t in tile)

    def test_the_budget_is_kept(self, monkeypatch):
        monkeypatch.setattr(tiles, "resident", lambda: 0)
        size = (4000, 4000)
        for budget in (120_000_000, 200_000_000, 400_000_000):
            plan = make_plan(NETWORK, size, torch.device("cpu"), budget=budget, result_bytes=48_000_000)
            height, width = (side + 16 * tiles._halo(NETWORK, plan.keep) for side in plan.tile)
            features = 16 * 4 * 500 * 500
            used = height * width * tiles.bytes_per_pixel(NETWORK) + plan.keep * features + 48_000_000
            assert 0.2 * budget < used <= budget
            assert plan.tile[0] >= plan.tile[1]

    def test_tiles_are_larger_where_features_are_kept(self, monkeypatch):
        """As no window grows by what encoder and decoder see, one after the other."""
        monkeypatch.setattr(tiles, "resident", lambda: 0)
        monkeypatch.setattr(tiles, "room_on_disk", lambda: 0)
        kept, again = (
            make_plan(NETWORK, (2000, 2000), torch.device("cpu"), budget=120_000_000, keep=keep)
            for keep in (True, False)
        )
        assert (kept.keep, again.keep) == (True, False)
        assert kept.tile > again.tile

    def test_too_small_a_budget_says_what_is_needed(self):
        with pytest.raises(OptionError, match=r"too little memory for a photo of 4000x4000: \d+ MB are needed, --max"):
            make_plan(NETWORK, (4000, 4000), torch.device("cpu"), budget=10_000_000)

    def test_tiles_that_cannot_fit_are_refused(self, monkeypatch):
        monkeypatch.setattr(tiles, "available", lambda device: 50_000_000)
        with pytest.raises(OptionError, match=r"tiles of 8000x8000 pixels take at least \d+ MB, 50 MB are free"):
            make_plan(NETWORK, (8000, 8000), torch.device("cpu"), tile=8000)
        assert make_plan(NETWORK, (8000, 8000), torch.device("cpu"), tile=256).tile == (256, 256)

    def test_efdm_needs_all_features(self):
        with pytest.raises(OptionError, match="efdm needs all features"):
            render(NETWORK, picture(64, 64), [Layer(style(1))], Plan((32, 32), keep=False), matching=Matching("efdm"))
        with pytest.raises(OptionError, match="raise --max-memory"):
            on_disk = Plan((32, 32), keep_on_disk=True)
            render(NETWORK, picture(64, 64), [Layer(style(1))], on_disk, matching=Matching("efdm"))


class TestPipeline:
    """The same through the public API."""

    SIZE = {"style_size": 64}  # noqa: RUF012

    def test_tiles(self, weights, tmp_path):
        transfer = StyleTransfer("cpu", "fp32", weights=weights)
        p = picture(100, 75)
        a, b = (transfer.stylize(p, "great-wave", tile=t, **self.SIZE) for t in ("off", "32"))
        assert max(abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True)) <= 1

    @pytest.mark.parametrize("norm", ["adain", "adaln", "adagn:4", "adabn", "efdm", "wct", "ot"])
    def test_every_norm_takes_a_painting(self, transfer, norm):
        painting = picture(70, 64, 4)
        result = transfer.stylize(picture(48, 40), painting, norm=norm, **self.SIZE)
        assert result.size == (40, 48)

    @pytest.mark.parametrize("color", ["none", "luma", "coral", "histogram", "palette"])
    def test_every_color(self, transfer, color):
        result = transfer.stylize(picture(48, 40), picture(70, 64, 4), color=color, **self.SIZE)
        assert result.size == (40, 48)

    def test_a_palette_takes_a_strength_map(self, transfer):
        photo, strength = picture(600, 40), np.tile(np.arange(40, dtype=np.uint8) * 6, (600, 1))
        whole, partly = (
            np.asarray(transfer.stylize(photo, picture(70, 64, 4), color="palette", alpha_map=where)).astype(float)
            for where in (None, Image.fromarray(strength))
        )
        original = np.asarray(to_pil(photo)).astype(float)
        wanted = original + (whole - original) * strength[..., None] / 255
        assert np.abs(whole - original).mean() > 5 and np.abs(partly - wanted).max() <= 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"norm": "adin"}, "unknown norm 'adin', did you mean 'adain'"),
            ({"norm": "adagn:5"}, "adagn takes a number of groups that divides 16"),
            ({"norm": "adaln:5"}, "unknown norm 'adaln:5'"),
            ({"color": "lima"}, "unknown color 'lima', did you mean 'luma'"),
            ({"tile": "3"}, "tile must be auto, off, or a side of at least 16"),
            ({"max_memory": "lots"}, "memory is a size such as 2GB"),
            ({"norm": "wct"}, "wct needs a painting to look at, and the built-in style 'great-wave' is a code"),
            ({"color": "coral"}, "color coral needs a painting"),
            ({"feather": -1}, "feather must be from 0"),
        ],
    )
    def test_bad_options(self, transfer, options, message):
        with pytest.raises(OptionError, match=message):
            transfer.stylize(picture(48, 40), "great-wave", **self.SIZE, **options)


CONDITIONAL = Stylizer(BILINEAR.encoder, BILINEAR.decoder, conditional=True).eval().requires_grad_(False)


def seeing(*layers: str) -> Stylizer:
    """The same network, whose decoder sees the photo at further layers of the encoder too."""
    channels = {layer: CONDITIONAL.encoder.layer_channels[layer] for layer in layers}
    decoder = Decoder(16, upsampling="bilinear", skips=channels)
    decoder.load_state_dict(CONDITIONAL.decoder.state_dict(), strict=False)
    return Stylizer(CONDITIONAL.encoder, decoder, conditional=True).eval().requires_grad_(False)


SEEING = seeing("relu1_1", "relu2_1")
IN_FLOAT64 = [deepcopy(made).double() for made in (CONDITIONAL, SEEING, seeing("relu2_1"), seeing("relu3_1"))]
"""Nine norms of random filters, one after another, blow the last digits of float32 up to 3e-4 now and then."""


def long_code(seed: int, network: Stylizer = CONDITIONAL) -> StyleCode:
    """A code for every norm of the conditional network, as learning would make it: near a measured one."""
    measured = network.measure(picture(40, 56, seed).rgb)
    generator = torch.Generator().manual_seed(seed)
    noise = 1 + 0.3 * torch.rand(measured.gamma.shape, generator=generator)
    signs = torch.ones_like(noise)
    signs[:, ::8] = -1  # nothing forbids it to learning
    return StyleCode(signs * measured.gamma * noise, measured.beta + 0.1 * noise)


@pytest.mark.parametrize("network", [CONDITIONAL, SEEING], ids=["plain", "seeing"])
def test_conditional_in_one_tile_is_the_plain_network(network):
    p = picture(50, 61)
    for alpha in (1.0, 0.6):
        found = render(network, p, [Layer(long_code(1), alpha)], whole(p))
        assert torch.allclose(found.rgb, network(p.rgb, long_code(1), alpha).clamp(0, 1), atol=1e-4)
    assert difference(found, render(network, p, [Layer(long_code(2), alpha)], whole(p))) > 0.1


def test_what_the_decoder_sees_besides_counts():
    p = picture(50, 61)
    found = [render(network, p, [Layer(long_code(1))], whole(p)) for network in (CONDITIONAL, SEEING)]
    assert difference(*found) > 0.1


def test_in_one_piece_a_photo_is_encoded_once(monkeypatch):
    p, code = picture(50, 61), long_code(1)
    shapes: list[tuple[int, ...]] = []
    features = Encoder.features

    def counted(encoder, image, *more):
        shapes.append(tuple(image.shape[-2:]))
        return features(encoder, image, *more)

    monkeypatch.setattr(Encoder, "features", counted)
    render(SEEING, p, [Layer(code, 0.5)], whole(p))
    assert shapes == [(50, 61)]


def test_memory_for_what_the_decoder_sees_besides_is_planned():
    plain, more = tiles.bytes_per_pixel(CONDITIONAL), tiles.bytes_per_pixel(SEEING)
    assert more == plain + 4 * TINY_VGG[0] + TINY_VGG[3]  # float32; a quarter as many places


def shifted(by: float) -> StyleCode:
    """A code whose β at the bottleneck is so much larger."""
    code = long_code(1)
    shift = torch.zeros_like(code.beta)
    shift[:, : CONDITIONAL.encoder.num_channels] = by
    return StyleCode(code.gamma, code.beta + shift)


def test_what_the_next_norm_takes_away_is_not_rounded_to_bfloat16():
    coarse = deepcopy(CONDITIONAL).bfloat16()
    p = picture(50, 61)
    code, other = shifted(0.0), shifted(1000.0)
    assert torch.equal(coarse(p.rgb, code), coarse(p.rgb, other))
    for plan in (whole(p), Plan(even(p.size, 24), keep=False)):
        assert torch.equal(render(coarse, p, [Layer(code)], plan).rgb, render(coarse, p, [Layer(other)], plan).rgb)


@settings(max_examples=20, deadline=None)
@given(
    network=st.sampled_from([CONDITIONAL, SEEING]),
    alpha=st.sampled_from([0.0, 0.25, 0.8, 1.0]),
    tile=st.sampled_from([24, 200]),
    luma=st.booleans(),
)
def test_strength_of_a_conditional_network_lies_between_the_photo_and_the_full_picture(network, alpha, tile, luma):
    p, plan = picture(50, 61), Plan(even((50, 61), tile))
    full = render(network, p, [Layer(long_code(1, network))], plan, luma=luma)
    found = render(network, p, [Layer(long_code(1, network), alpha)], plan, luma=luma)
    assert torch.allclose(found.rgb, p.rgb.lerp(full.rgb, alpha), atol=1e-4)


@pytest.mark.parametrize("tile", [24, 200])
def test_regions_of_a_conditional_network_are_cut_from_whole_pictures(tile):
    """However small they are: none has anything to do with what the others, or the photo, are like."""
    p, plan = picture(50, 61), Plan(even((50, 61), tile))
    masks = torch.zeros(2, 1, 1, 50, 61, dtype=torch.uint8)
    masks[0, ..., 30:40, 40:45], masks[1, ..., :20, :] = 255, 255
    layers = [
        Layer(long_code(0), 0.5),
        Layer(long_code(1), 1.0, Mask(masks[0])),
        Layer(long_code(2), 0.0, Mask(masks[1])),
    ]
    found = render(CONDITIONAL, p, layers, plan).rgb
    wholes = [render(CONDITIONAL, p, [Layer(layer.style, layer.alpha)], plan).rgb for layer in layers]
    where = [masks.sum(0) == 0, masks[0] > 0, masks[1] > 0]
    for whole_picture, there in zip(wholes, where, strict=True):
        there = there.expand_as(found)  # noqa: PLW2901
        assert torch.allclose(found[there], whole_picture[there], atol=1e-4)
    assert torch.equal(found[:, :, :20], p.rgb[:, :, :20])


@pytest.mark.parametrize(("side", "tile", "transparency"), [(64, 16, True), (90, 24, True), (141, 64, False)])
def test_the_shipped_conditional_network_tiled_equals_untiled(side, tile, transparency):
    transfer = StyleTransfer("cpu", "fp32")
    network = transfer.networks.of("cin")
    p = cutout(picture(side, side + 13)) if transparency else picture(side, side + 13)
    layers = [Layer(transfer.styles.code("great-wave", norm="cin"), 1.0)]
    tiled = render(network, p, layers, Plan(even(p.size, tile), False))
    assert difference(tiled, render(network, p, layers, whole(p))) <= 2e-4


@settings(max_examples=60, deadline=None)
@given(
    network=st.sampled_from(IN_FLOAT64),
    height=st.integers(16, 150),
    width=st.integers(16, 150),
    tile=st.sampled_from([16, 24, 40, 64]),
    keep=st.booleans(),
    room=st.sampled_from([0, 10**5, 10**6, 10**9]),
    disk=st.sampled_from([0, 10**6, 10**9]),
    alpha=st.sampled_from([1.0, 0.5]),
    masks=st.integers(0, 2),
    strength=st.booleans(),
    transparency=st.booleans(),
)
def test_conditional_tiled_equals_untiled(
    network, height, width, tile, keep, room, disk, alpha, masks, strength, transparency
):
    p = cutout(picture(height, width)) if transparency else picture(height, width)
    layers = [Layer(long_code(0, network), alpha)]
    for i in range(masks):
        mask = torch.zeros(1, 1, height, width, dtype=torch.uint8)
        mask[..., : height // (i + 2), width // 3 :] = 255
        layers.append(Layer(long_code(i + 1, network), 1.0 - 0.3 * i, Mask(mask)))
    ramp = Mask(torch.linspace(0, 1, width).expand(1, 1, height, width)) if strength else None
    untiled = render(network, p, layers, whole(p), strength=ramp)
    tiled = render(network, p, layers, Plan(even(p.size, tile), keep, room, disk), strength=ramp)
    assert difference(tiled, untiled) <= 1e-5


def test_a_pass_goes_on_from_what_the_one_before_has_kept(monkeypatch):
    """With room enough every layer of the decoder works once on each part; without, the early ones again and again."""
    p = picture(120, 90)
    counts: Counter[str] = Counter()
    forward = ReflectConv2d.forward
    names = {module: name for name, module in CONDITIONAL.named_modules()}

    def counted(layer, x, **more):
        y = forward(layer, x, **more)
        counts[names[layer]] += y.shape[-1] * y.shape[-2]
        return y

    monkeypatch.setattr(ReflectConv2d, "forward", counted)
    found, work = [], []
    for more in ({}, {"room": 10**9}, {"disk": 10**9}):
        counts.clear()
        found.append(render(CONDITIONAL, p, [Layer(long_code(1))], Plan((64, 48), keep=False, **more)))
        work.append(dict(counts))
    assert difference(found[0], found[1]) <= 2e-4
    assert torch.equal(found[2].pixels, found[1].pixels) and work[2] == work[1]
    assert work[1]["encoder.conv1_1"] < 0.25 * work[0]["encoder.conv1_1"]  # two passes of ten
    for name in CONDITIONAL.decoder.hidden:
        pixels = 120 * 96 / CONDITIONAL.decoder.strides[name] ** 2
        assert pixels <= work[1][f"decoder.{name}"] < 4 * pixels  # with the halo


@pytest.mark.parametrize("tile", [None, 48])
def test_half_precision_takes_the_quick_way_through_every_norm(monkeypatch, tile):
    """torch's batch norm in one pass over memory (:func:`styleapp.norms.normalize`), not five in float64."""
    calls = []
    quick = torch.nn.functional.batch_norm
    monkeypatch.setattr(
        torch.nn.functional, "batch_norm", lambda x, *a, **m: calls.append(x.shape) or quick(x, *a, **m)
    )
    half, p = deepcopy(CONDITIONAL).bfloat16(), picture(96, 48)
    render(half, p, [Layer(long_code(1, half))], whole(p) if tile is None else Plan((tile, tile), room=10**9))
    assert {shape[1] for shape in calls} == set(half.norms.values())
    if tile is None:
        assert len(calls) == len(half.norms)


def test_room_is_planned_for_what_is_kept(monkeypatch):
    size = (1000, 2000)
    layers = [tiles.layer_bytes(CONDITIONAL, name, size) for name in CONDITIONAL.decoder.hidden]
    assert layers[0] == CONDITIONAL.norms["conv4_1"] * 125 * 250 * 4
    assert layers[-1] == CONDITIONAL.norms["conv1_2"] * 1000 * 2000 * 4
    most = max(a + b for a, b in pairwise(layers))
    cpu = torch.device("cpu")
    assert make_plan(CONDITIONAL, size, cpu, tile=64).room == most
    assert make_plan(NETWORK, size, cpu, tile=64).room == 0
    monkeypatch.setattr(tiles, "resident", lambda: 10**9)
    tight = make_plan(CONDITIONAL, size, cpu, budget=10**9 + most)
    assert 0 < tight.room <= most / 2 and not tight.covers(size)


def test_disk_is_planned_for_what_there_is_no_room_for(monkeypatch):
    size, cpu = (1000, 2000), torch.device("cpu")
    monkeypatch.setattr(tiles, "room_on_disk", lambda: 10**12)
    monkeypatch.setattr(tiles, "resident", lambda: 10**9)
    assert make_plan(CONDITIONAL, size, cpu, tile=64).disk == 0  # all of it fits into memory
    enough = make_plan(CONDITIONAL, size, cpu, tile=64).room
    assert make_plan(NETWORK, size, cpu, budget=10**9 + enough).disk == 0  # nothing to keep
    tight = make_plan(CONDITIONAL, size, cpu, budget=10**9 + enough)
    assert tight.disk == 10**12 and tight.room < enough


@pytest.mark.parametrize("network", [NETWORK, CONDITIONAL])
def test_features_on_disk_are_encoded_once(network, monkeypatch):
    p = picture(120, 90)
    layers = [Layer(long_code(1) if network.conditional else code(1))]
    found, work = [], []
    encode = type(network.encoder).features
    monkeypatch.setattr(
        type(network.encoder),
        "features",
        lambda self, x, names: work.append(names) or encode(self, x, names),
    )
    for more in ({}, {"keep_on_disk": True}):
        work.clear()
        found.append(render(network, p, layers, Plan((64, 48), room=10**9, **more)))
        assert work == [["relu4_1"]] * 4
    assert torch.equal(found[0].pixels, found[1].pixels)


def test_features_are_planned_for_disk_where_memory_is_short(monkeypatch):
    size, cpu = (1000, 2000), torch.device("cpu")
    features = tiles.feature_bytes(NETWORK, size)
    for free, kept in ((10**12, True), (features - 1, False)):
        monkeypatch.setattr(tiles, "room_on_disk", lambda free=free: free)
        plan = tiles._keeping(NETWORK, size, features - 1, cpu)
        assert (plan.keep, plan.keep_on_disk) == (kept, kept) and not plan.room
        assert plan.disk == free - kept * features
    plan = tiles._keeping(NETWORK, size, features, cpu)
    assert plan.keep and not plan.keep_on_disk and not plan.disk
    assert not tiles._keeping(NETWORK, size, features - 1, torch.device("cuda")).keep


def test_a_disk_that_has_filled_up_costs_time_alone(monkeypatch):
    p = picture(100, 90)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("styleapp.passes.scratch_array", full)
    plan = Plan((64, 48), disk=10**9, keep_on_disk=True)
    tiled = render(CONDITIONAL, p, [Layer(long_code(1))], plan)
    assert difference(tiled, render(CONDITIONAL, p, [Layer(long_code(1))], whole(p))) <= 2e-4


def test_memory_that_has_filled_up_costs_time_alone(monkeypatch):
    p, refused = picture(100, 90), []

    def full(shape, **_):
        refused.append(shape)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("styleapp.passes.torch", SimpleNamespace(**{**vars(torch), "empty": full}))
    tiled = render(CONDITIONAL, p, [Layer(long_code(1))], Plan((64, 48), room=10**9))
    assert len(refused) == 1 + len(CONDITIONAL.decoder.hidden)  # and the features of the encoder
    monkeypatch.undo()
    assert difference(tiled, render(CONDITIONAL, p, [Layer(long_code(1))], whole(p))) <= 2e-4


def test_conditional_goes_on_exactly_when_memory_runs_out(monkeypatch):
    p = picture(100, 90)
    layers = [Layer(long_code(1))]
    untiled = render(CONDITIONAL, p, layers, whole(p))
    forward = CONDITIONAL.decoder.forward

    def small(x, *more, **by_name):
        if x.shape[1] == CONDITIONAL.decoder.in_channels and x.shape[-1] > 11:
            raise MemoryError
        return forward(x, *more, **by_name)

    monkeypatch.setattr(CONDITIONAL.decoder, "forward", small)
    notes: list[str] = []
    found = render(CONDITIONAL, p, layers, whole(p), note=notes.append)
    assert notes and difference(found, untiled) <= 2e-4
