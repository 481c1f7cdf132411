import functools
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image

from styleapp.devices import find_device, find_precision
from styleapp.errors import DeviceError, ImageError, OptionError, WeightsError
from styleapp.files import Animation, read_image
from styleapp.images import from_pil, quantized, to_pil
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer
from styleapp.tiles import Plan
from styleapp.training.cin import learn_code

SIZE = {"style_size": 64}


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("size", [(16, 16), (37, 61), (100, 17)])
def test_output_size_is_input_size(transfer, size):
    assert transfer.stylize(noise(*size), "great-wave", **SIZE).size == (size[1], size[0])


def test_every_way_to_name_a_photo_or_a_style(transfer, photo, tmp_path):
    painting = noise(70, 64, seed=5)
    painting.save(tmp_path / "painting.png")
    by_path = transfer.stylize(photo, tmp_path / "painting.png", **SIZE)
    by_str = transfer.stylize(str(photo), str(tmp_path / "painting.png"), **SIZE)
    by_image = transfer.stylize(Image.open(photo), painting, **SIZE)
    by_bytes = transfer.stylize(photo.read_bytes(), (tmp_path / "painting.png").read_bytes(), **SIZE)
    by_code = transfer.stylize(read_image(photo), transfer.styles.code(painting, 64))
    for other in (by_str, by_image, by_bytes, by_code):
        assert np.array_equal(array(by_path), array(other))


def test_mixing(transfer, photo):
    a = transfer.stylize(photo, "great-wave", **SIZE)
    b = transfer.stylize(photo, "wheat-field", **SIZE)
    assert np.array_equal(array(a), array(transfer.stylize(photo, {"great-wave": 1, "wheat-field": 0}, **SIZE)))
    assert np.array_equal(array(b), array(transfer.stylize(photo, [("great-wave", 0.0), ("wheat-field", 3.0)], **SIZE)))
    code = transfer.styles.code({"great-wave": 1, "wheat-field": 3}, 64)
    gammas = [transfer.styles.code(n, 64).gamma for n in ("great-wave", "wheat-field")]
    assert torch.allclose(code.gamma, 0.25 * gammas[0] + 0.75 * gammas[1])
    nested = transfer.styles.code([(noise(32, 32), 1), ("great-wave", 1)], 64)
    network = transfer.networks.adain
    assert nested.num_channels == 16 + 4 + 6 + 8 + sum(network.decoder.hidden.values()) and network.takes(nested)


def test_strength_zero_gives_the_photo_back(transfer, photo):
    assert np.array_equal(array(transfer.stylize(photo, "great-wave", alpha=0, **SIZE)), array(Image.open(photo)))
    nearly = transfer.stylize(photo, "great-wave", alpha=0.01, **SIZE)
    full = transfer.stylize(photo, "great-wave", **SIZE)
    away = np.abs(array(full) - array(Image.open(photo))).mean()
    assert np.abs(array(nearly) - array(Image.open(photo))).mean() < 0.05 * away + 1


def test_size_is_the_short_side(transfer):
    assert transfer.stylize(noise(40, 60), "great-wave", size=24, **SIZE).size == (36, 24)
    assert transfer.stylize(noise(60, 40), "great-wave", size=80, **SIZE).size == (80, 120)


def test_stroke_size_changes_the_code_not_the_output_size(transfer):
    painting = noise(90, 70, seed=3)
    assert not torch.allclose(transfer.styles.code(painting, 32).gamma, transfer.styles.code(painting, 90).gamma)


@pytest.mark.parametrize("detail", [0, 0.3])
def test_detail_goes_with_every_way_to_stylize(transfer, detail):
    """Tiles, regions, batches and animations: the network is another, the code is not."""
    photo, mask = noise(60, 75, seed=3), Image.new("L", (75, 60), 255)
    options = {"detail": detail, "tile": "off", **SIZE}
    wanted = array(transfer.stylize(photo, "great-wave", **options))
    assert np.abs(wanted - array(transfer.stylize(photo, "great-wave", tile="off", **SIZE))).max() > 3
    for more in ({"tile": "24"}, {"style": None, "regions": [(mask, "great-wave", 1.0)]}):
        found = transfer.stylize(photo, **{"style": "great-wave", **options, **more})
        assert np.abs(array(found) - wanted).max() <= 1
    pictures = [from_pil(photo), from_pil(noise(60, 75, seed=4))]
    together = transfer.pictures(pictures, ["great-wave"] * 2, Options(**options))
    assert np.abs(array(to_pil(together[0])) - wanted).max() <= 1
    film = transfer.animate(Animation(pictures[:1], [40], None), "great-wave", Options(**options))
    assert np.abs(array(to_pil(film.frames[0])) - wanted).max() <= 1


def test_transparency_survives(transfer):
    image = noise(32, 32, channels=4)
    result = transfer.stylize(image, "great-wave", **SIZE)
    assert result.mode == "RGBA"
    assert np.array_equal(array(result.getchannel("A")), array(image.getchannel("A")))


def test_two_runs_are_bit_identical(transfer, photo):
    a, b = (array(transfer.stylize(photo, "great-wave", alpha=0.7, **SIZE)) for _ in range(2))
    assert np.array_equal(a, b)


def test_bf16_is_close_to_fp32(transfer, weights, monkeypatch):
    monkeypatch.setattr("styleapp.devices.convolves_bf16", lambda: True)  # the picture is small enough for any CPU
    half = StyleTransfer("cpu", "bf16", weights=weights)
    image = noise(64, 64)
    a, b = (array(t.stylize(image, "great-wave", alpha=0.5, **SIZE)) for t in (transfer, half))
    assert np.abs(a - b).mean() < 8  # random filters; on the real ones see benchmarks/


@pytest.mark.long
def test_compiled_is_the_same_in_one_piece_and_in_tiles(transfer, weights, traced):
    compiled = StyleTransfer("cpu", "fp32", weights=weights, compile=True)
    for size in ((64, 48), (75, 90)):
        image = noise(*size)
        for options in ({}, {"tile": "40"}, {"alpha": 0.5}, {"norm": "cin"}):
            more = {"norm": "adain", **options, **SIZE}
            a, b = (array(t.stylize(image, "great-wave", **more)) for t in (transfer, compiled))
            assert np.abs(a.astype(int) - b).max() <= 1, options
    encoders = [graph for graph in traced if "max_pool2d" in graph.code]
    most = torch._dynamo.config.recompile_limit  # of each: for every size of a photo or a tile anew; then without
    assert 2 <= len(encoders) <= most and 2 <= len(traced) - len(encoders) <= most


@functools.cache
def shipped() -> StyleTransfer:
    return StyleTransfer("cpu", "fp32")


@pytest.mark.parametrize("norm", ["adain", "cin"])
@pytest.mark.parametrize("alpha", [1.0, 0.6])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_batch_of_the_shipped_networks_is_what_the_engine_makes(norm, alpha, bits):
    """As a GPU takes plain photos: at once, past the engine. Learned codes have γ of both signs."""
    transfer, options = shipped(), Options(norm=norm, alpha=alpha)
    dtype = torch.uint8 if bits == 8 else torch.uint16
    photos = [from_pil(noise(61, 50, seed=i)) for i in range(2)]
    photos = [replace(p, pixels=quantized(p.rgb, dtype)) for p in photos]
    styles = ["great-wave", "wheat-field"]
    assert transfer.fits_at_once(photos, options)
    for photo, style, found in zip(photos, styles, transfer.pictures(photos, styles, options), strict=True):
        alone = transfer.picture(photo, style, options)
        assert found.pixels.dtype == dtype
        assert (found.rgb - alone.rgb).abs().max() <= 1.5 / 255


def test_one_photo_alone_is_no_batch(transfer, monkeypatch):
    """Also where one would fit at once, as on a GPU: what is too small is told, what is too large is cut into tiles."""
    monkeypatch.setattr(StyleTransfer, "fits_at_once", lambda *args: True)
    monkeypatch.setattr(StyleTransfer, "_at_once", lambda *args: pytest.fail("a batch of one"))
    photo = from_pil(noise(40, 48))
    assert transfer.pictures([photo], ["great-wave"], Options(**SIZE))[0].size == photo.size
    with pytest.raises(ImageError, match="at least 16"):
        transfer.pictures([from_pil(noise(8, 48))], ["great-wave"], Options(**SIZE))


def test_compiling_without_a_compiler_is_told_at_once(weights, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match=r"needs a C\+\+ compiler, and there is no g\+\+ here; leave out --compile"):
        StyleTransfer("cpu", "fp32", weights=weights, compile=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha must be from 0 to 1, got 1.5"),
        ({"alpha": float("nan")}, "alpha must be from 0 to 1, got nan"),
        ({"detail": 1.1}, "detail must be from 0 to 1, got 1.1"),
        ({"detail": 0, "norm": "adain"}, "norm adain has no detail to set: detail must be 1"),
        ({"detail": 0, "norm": "in"}, "norm in has no detail to set"),
        ({"size": -1}, "size must be 0"),
        ({"size": 8}, "photo size must be at least 16 pixels, got 8"),
        ({"style_size": 0}, "style_size must be at least 1"),
        ({"style_size": 4000}, "style size of a built-in style must be 32 to 128, got 4000"),
        ({"aplha": 1}, "unknown option 'aplha', did you mean 'alpha'"),
    ],
)
def test_bad_options(transfer, photo, options, message):
    with pytest.raises(OptionError, match=message):
        transfer.stylize(photo, "great-wave", **SIZE | options)


@pytest.mark.parametrize(
    ("style", "message"),
    [
        ("grat-wave", "unknown style 'grat-wave', did you mean 'great-wave'"),
        ({}, "weights must be 0 or more"),
        ({"great-wave": -1, "wheat-field": 2}, "weights must be 0 or more"),
        ({"great-wave": 0}, "at least one above 0"),
        (7, "style must be a path, a PIL image or bytes, got int"),
    ],
)
def test_bad_styles(transfer, photo, style, message):
    with pytest.raises(OptionError, match=message):
        transfer.stylize(photo, style, **SIZE)


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (15, 16)])
def test_too_small(transfer, size):
    with pytest.raises(ImageError, match=rf"the photo is {size[1]}x{size[0]} pixels; each side must have at least 16"):
        transfer.stylize(noise(*size), "great-wave", **SIZE)


def test_limits_on_pixels(weights):
    small = StyleTransfer("cpu", "fp32", weights=weights, max_pixels=5000)
    with pytest.raises(ImageError, match="megapixels"):
        small.stylize(noise(80, 80), "great-wave", **SIZE)
    with pytest.raises(ImageError, match="would be 100x100"):
        small.stylize(noise(32, 32), "great-wave", size=100, **SIZE)


def test_devices():
    assert find_device("cpu").type == "cpu"
    assert find_device("auto").type in ("cpu", "cuda")
    with pytest.raises(OptionError, match="unknown device 'cuad', did you mean 'cuda'"):
        find_device("cuad")
    for name in ("cpu:", "cpu:3", "cuda:", "cuda:x"):
        with pytest.raises(OptionError, match=f"unknown device '{name}'"):
            find_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="sees no CUDA GPU"):
            find_device("cuda")
    with pytest.raises(OptionError, match="unknown precision 'fp8'"):
        find_precision("fp8", torch.device("cpu"))
    with pytest.raises(DeviceError, match="needs a GPU"):
        find_precision("fp16", torch.device("cpu"))


def test_bf16_is_refused_where_it_would_be_a_plain_loop(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("styleapp.devices.convolves_bf16", lambda: False)
    with pytest.raises(DeviceError, match="AVX-512.*use fp32 or auto"):
        find_precision("bf16", cpu)
    monkeypatch.setattr("styleapp.devices.convolves_bf16", lambda: True)
    assert find_precision("bf16", cpu) == "bf16"


def test_int8_needs_a_cpu_and_weights_that_have_it(monkeypatch, weights):
    cpu = torch.device("cpu")
    monkeypatch.setattr("styleapp.devices._cpu_flags", set)
    with pytest.raises(DeviceError, match="'int8' needs a CPU with VNNI"):
        find_precision("int8", cpu)
    assert find_precision("auto", cpu) == "fp32"
    monkeypatch.setattr("styleapp.devices._cpu_flags", lambda: {"avx_vnni"})
    monkeypatch.setattr("styleapp.models.int8.works", lambda: True)
    assert find_precision("auto", cpu) == "int8" and find_precision("auto", cpu, integers=False) == "fp32"
    with pytest.raises(DeviceError, match="'int8' needs a CPU"):
        find_precision("int8", torch.device("cuda"))
    with pytest.raises(WeightsError, match="has no 'vgg19_int8'; it has"):
        StyleTransfer("cpu", "int8", weights=weights)


def test_import_loads_nothing_heavy():
    code = "import sys, styleapp, styleapp.cli; print([m for m in ('torch', 'gradio', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_shipped_network_on_a_real_photo():
    """The one test that runs the real weights: a photo stays recognisable and takes on the painting's colours."""
    transfer = StyleTransfer("cpu")
    photo = Image.open("examples/cat.jpg").resize((226, 150))
    result = transfer.stylize(photo, "great-wave")
    grey = [array(im.convert("L").resize((40, 27))).flatten() for im in (photo, result)]
    mirrored = array(photo.convert("L").resize((40, 27)))[:, ::-1].flatten()
    likeness, chance = (np.corrcoef(a, grey[1])[0, 1] for a in (grey[0], mirrored))
    assert likeness > 0.4 and likeness > chance + 0.2  # outlines are kept, greys become the painting's two tones
    assert array(result)[..., 2].mean() > array(photo)[..., 2].mean()  # bluer than a ginger cat
    assert array(result).std() > 20


class TestAuto:
    """The norm that is taken where none is asked for: cin for what is learned, adain for the rest."""

    def same(self, transfer, photo, style, norm, **options) -> bool:
        found, wanted = (transfer.stylize(photo, style, **options, **more) for more in ({}, {"norm": norm}))
        if isinstance(style, str):
            other = transfer.stylize(photo, style, norm="cin" if norm == "adain" else "adain", style_size=64)
            assert not np.array_equal(array(wanted), array(other)), "the norms must differ for this to say anything"
        return np.array_equal(array(found), array(wanted))

    @pytest.fixture
    def painting(self) -> Image.Image:
        return noise(70, 90, seed=5)

    def test_learned_styles_and_their_mixes(self, transfer, photo):
        assert self.same(transfer, photo, "great-wave", "cin", alpha=0.8)
        assert self.same(transfer, photo, {"great-wave": 0.4, "the-visit": 0.6}, "cin")

    def test_paintings_and_mixes_with_them(self, transfer, photo, painting):
        assert self.same(transfer, photo, painting, "adain")
        assert self.same(transfer, photo, [("great-wave", 0.4), (painting, 0.6)], "adain", style_size=64)
        assert transfer.styles.settled(Options(), [[("great-wave", 1.0), (painting, 0.0)]]).norm == "cin"

    def test_what_a_learned_code_cannot_do(self, transfer):
        assert transfer.styles.settled(Options(), ["great-wave"]).norm == "cin"
        for options in ({"style_size": 32}, {"color": "coral"}, {"color": "palette"}):
            assert transfer.styles.settled(Options(**options), ["great-wave"]).norm == "adain"
        assert transfer.styles.settled(Options(norm="wct"), ["great-wave"]).norm == "wct"
        assert transfer.styles.settled(Options(color="luma"), ["great-wave"]).norm == "cin"

    def test_learned_codes_have_stroke_sizes(self, transfer, photo):
        """Between those that were learned, 64, 128 and the usual 512, interpolated; beyond them AdaIN."""
        small, middle, large = (transfer.styles.code("great-wave", size, "cin") for size in (128, 256, 512))
        assert torch.allclose(middle.gamma, small.gamma.lerp(large.gamma, 0.5)) and not torch.equal(
            small.beta, large.beta
        )
        assert self.same(transfer, photo, {"great-wave": 1.0, "the-visit": 2.0}, "cin", style_size=200)
        with pytest.raises(OptionError, match="'great-wave' at stroke sizes from 64 to 512, got 32"):
            transfer.stylize(photo, "great-wave", norm="cin", style_size=32)

    def test_codes_are_of_the_network_that_they_fit(self, transfer, photo):
        for norm in ("cin", "adain"):
            code = transfer.styles.code("great-wave", 64, norm)
            assert transfer.styles.settled(Options(), [code]).norm == norm
            transfer.stylize(photo, code)

    def test_regions_share_one_network(self, transfer, photo, painting):
        half = noise(40, 56).convert("L")
        learned = transfer.prepare("great-wave", Options())
        assert self.same(transfer, photo, learned, "cin", regions=[(half, transfer.prepare("the-visit", Options()), 1)])
        size = {"style_size": 32}
        code = transfer.prepare(painting, Options(**size))
        found, wanted = (
            transfer.stylize(photo, learned, regions=[(half, code, 1)], **size, **norm)
            for norm in ({}, {"norm": "adain"})
        )
        assert np.array_equal(array(found), array(wanted))

    def test_photos_together_each_go_their_own_way(self, transfer, painting):
        photos = [from_pil(noise(40, 48, seed=i)) for i in range(3)]
        styles = ["great-wave", painting, "the-visit"]
        found = transfer.pictures(photos, styles, Options())
        for one, photo, style in zip(found, photos, styles, strict=True):
            assert torch.equal(one.pixels, transfer.picture(photo, style, Options()).pixels)

    def test_animations_go_the_same_way(self, transfer):
        film = Animation([from_pil(noise(40, 48, seed=i)) for i in range(2)], [50, 50], 0)
        for options, norm in ((Options(style_size=64), "cin"), (Options(style_size=32), "adain")):
            found, wanted = (
                transfer.animate(film, "great-wave", o).frames for o in (options, replace(options, norm=norm))
            )
            assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(found, wanted, strict=True))

    def test_a_predictor_takes_paintings_to_cin(self, foreseeing, photo, painting):
        for style, options in (
            (painting, {"style_size": 64}),
            (painting, {"style_size": 48, "color": "coral"}),
            ([(painting, 0.4), (noise(60, 60, seed=6), 0.6)], {"style_size": 64}),
        ):
            assert foreseeing.styles.settled(Options(**options), [style]).norm == "cin"
            found, wanted = (foreseeing.stylize(photo, style, **options, **norm) for norm in ({}, {"norm": "cin"}))
            assert np.array_equal(array(found), array(wanted))
        assert foreseeing.styles.settled(Options(), [[("great-wave", 0.4), (painting, 0.6)]]).norm == "cin"
        for options in ({"style_size": 32}, {"color": "coral"}):
            assert foreseeing.styles.settled(Options(**options), ["great-wave", painting]).norm == "adain"
        assert foreseeing.styles.settled(Options(color="palette"), [painting]).norm == "adain"

    def test_prepared_paintings_still_meet_any_style(self, foreseeing, photo, painting):
        """Also a name that only AdaIN knows at this size."""
        half = noise(40, 56).convert("L")
        options = {"style_size": 32}
        ready = foreseeing.prepare(painting, Options(**options))
        assert np.array_equal(
            array(foreseeing.stylize(photo, ready, **options)), array(foreseeing.stylize(photo, painting, **options))
        )
        found, wanted = (
            foreseeing.stylize(photo, style, regions=[(half, "great-wave", 1)], **options, **norm)
            for style, norm in ((ready, {}), (painting, {"norm": "adain"}))
        )
        assert np.array_equal(array(found), array(wanted))

    def test_refining_tells_of_each_step_and_may_be_ended(self, foreseeing, photo, painting):
        """What was ended is not kept as if it were done."""
        shares: list[float] = []
        whole = foreseeing.stylize(photo, painting, refine=3, progress=shares.append, **SIZE)
        assert shares[:3] == [0, 0, 0] and shares[3] > 0 and shares[-1] == 1
        assert np.array_equal(array(foreseeing.stylize(photo, painting, refine=3, **SIZE)), array(whole))

        def stop(share: float) -> None:
            raise InterruptedError

        with pytest.raises(InterruptedError):
            foreseeing.stylize(photo, [(painting, 1), (noise(50, 60, seed=8), 1)], refine=4, progress=stop, **SIZE)
        told: list[float] = []
        for refine in (3, 4):
            foreseeing.stylize(photo, painting, refine=refine, progress=told.append, **SIZE)
        assert told.count(0) == 4  # those of the work that was ended, again

    def test_saved_paintings_keep_what_was_predicted(self, foreseeing, painting, tmp_path, monkeypatch):
        monkeypatch.setenv("STYLEAPP_STYLES", str(tmp_path))
        told: list[tuple[int, int]] = []
        foreseeing.styles.save(painting, "mine", progress=lambda *at: told.append(at))
        assert told[0][0] == 1 and told[-1][0] == told[-1][1] == len(told)
        with monkeypatch.context() as patch:
            patch.setattr(foreseeing.styles, "measure", None)  # refused before any work
            with pytest.raises(OptionError, match="there is a style 'mine' already"):
                foreseeing.styles.save(painting, "mine")
        assert foreseeing.styles.settled(Options(), ["mine"]).norm == "cin"
        predicted = foreseeing.styles.code(painting, norm="cin")
        assert torch.equal(foreseeing.styles.code("mine", norm="cin").gamma, predicted.gamma)

    def test_a_network_that_was_loaded_for_a_picture_can_be_learned_with(self, transfer, photo, painting):
        transfer.stylize(photo, "great-wave", norm="cin")
        rows = [from_pil(p).rgb for p in (painting, Image.open(photo))]
        learn_code(transfer.networks.conditional("cin").stylizer, rows[0], rows[1:], steps=2, size=32)

    def test_without_a_cin_network(self, weights, tmp_path, photo):
        shutil.copytree(weights, tmp_path / "w")
        manifest = json.loads((tmp_path / "w" / "manifest.json").read_text())
        del manifest["files"]["cin"]
        (tmp_path / "w" / "manifest.json").write_text(json.dumps(manifest))
        bare = StyleTransfer("cpu", "fp32", weights=tmp_path / "w")
        assert bare.styles.settled(Options(), ["great-wave"]).norm == "adain" and not bare.styles.learned_styles
        bare.stylize(photo, "great-wave", style_size=64)

    def test_tiles_are_told_to_take_long(self, transfer, photo, monkeypatch):
        """Where what they give cannot be kept."""
        notes: list[str] = []
        transfer.stylize(photo, "great-wave", tile="32", note=notes.append)
        assert not notes
        monkeypatch.setattr("styleapp.tiles._keeping", lambda *_: Plan((0, 0), keep=False))
        transfer.stylize(photo, "great-wave", tile="32", norm="adain", style_size=64, note=notes.append)
        assert not notes
        transfer.stylize(photo, "great-wave", tile="32", note=notes.append)
        assert any("adain, twice" in note for note in notes)


class TestTold:
    """What AdaIN's decoder is told of a painting: predicted, refined, or learned."""

    @pytest.fixture
    def networks(self, transfer):
        return transfer.networks

    def test_a_learned_code_is_taken_and_interpolated(self, transfer, networks):
        small, large = (networks.adain_codes["the-visit"][size] for size in (32, 128))
        assert torch.equal(transfer.styles.code("the-visit", 32).beta, small.beta)
        between = transfer.styles.code("the-visit", 64)
        assert torch.allclose(between.beta, (small.beta + large.beta) / 2) and networks.adain.takes(between)
        with pytest.raises(OptionError, match="must be 32 to 128, got 16"):
            transfer.styles.code("the-visit", 16)

    def test_a_style_without_one_is_refined_once(self, weights, tmp_path):
        """It has no painting, but its moments are what a painting is refined for."""
        steps: list[int] = []
        for folder in (tmp_path, tmp_path):
            transfer = StyleTransfer("cpu", "fp32", weights=weights, code_cache=folder)
            told = transfer.styles.code("great-wave", 64, refine=5, refining=lambda: steps.append(1))
        assert len(steps) == 5
        seen = transfer.styles.layer_codes("great-wave", 64)
        assert seen is not None
        wanted = transfer.networks.adain.predicted(seen, 5)
        assert torch.equal(told.beta, wanted.beta) and torch.equal(told.gamma, wanted.gamma)
        assert not torch.equal(told.beta, transfer.styles.code("great-wave", 64, refine=0).beta)

    def test_a_painting_is_refined_for_adain_and_its_kin(self, transfer, photo):
        painting = noise(70, 90, seed=5)
        for norm in ("adain", "wct", "adaln"):
            plain, refined = (transfer.stylize(photo, painting, norm=norm, refine=refine, **SIZE) for refine in (0, 8))
            assert not np.array_equal(array(plain), array(refined))
        same = [transfer.stylize(photo, painting, norm="decoder:none", refine=n, **SIZE) for n in (0, 8)]
        assert np.array_equal(array(same[0]), array(same[1]))  # it is told nothing


def test_a_style_that_an_earlier_version_has_saved(transfer, photo, monkeypatch):
    """Without its moments at relu1_1 to relu3_1 the decoder of AdaIN cannot be told of it; others need them not."""
    monkeypatch.delitem(transfer.styles.gallery.layers, "great-wave")
    with pytest.raises(OptionError, match="'great-wave', which an earlier version has saved, .* save it again"):
        transfer.stylize(photo, "great-wave", norm="adain", **SIZE)
    assert transfer.stylize(photo, "great-wave", norm="decoder:none", **SIZE).size == (56, 40)
