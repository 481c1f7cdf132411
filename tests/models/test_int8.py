import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import quantize
import torch
from conftest import TINY_VGG, alive
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from styleapp.controls import Layer, Mask, Window
from styleapp.devices import has_int8
from styleapp.engine import render
from styleapp.files import read_image
from styleapp.images import Picture, quantized, to_pil
from styleapp.models import STYLE_LAYERS, Decoder, Encoder, Int8Encoder, StyleCode, Stylizer
from styleapp.models.int8 import add_int8_conv2d, int8_conv2d, packed
from styleapp.norms import moments, normalize, weighted_moments
from styleapp.options import Options
from styleapp.passes import _encode
from styleapp.pipeline import StyleTransfer
from styleapp.tiles import Plan, cells_of, one_piece
from styleapp.weights import Weights

pytestmark = pytest.mark.skipif(not has_int8(torch.device("cpu")), reason="needs a CPU with VNNI")


def smooth(*shape):
    small = torch.rand(shape[0], 3, 8, 8)
    return F.interpolate(small, shape[1:], mode="bicubic").clamp(0, 1).contiguous(memory_format=torch.channels_last)


def tensors_of(encoder, count=40):
    images = [smooth(1, 64, 64) for _ in range(count)]
    return quantize.quantized(encoder, images, quantize.most(encoder, images), places=500)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return alive(Stylizer(Encoder(TINY_VGG), Decoder(16))).encoder.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def int8(encoder):
    torch.manual_seed(0)
    with torch.inference_mode():
        return Int8Encoder(encoder, tensors_of(encoder))


@pytest.fixture(scope="module")
def int8_weights(weights, tmp_path_factory):
    """The tiny weights with an encoder of integers beside them."""
    folder = tmp_path_factory.mktemp("int8") / "weights"
    shutil.copytree(weights, folder)
    encoder = Encoder(TINY_VGG)
    encoder.load_state_dict({k: v.float() for k, v in load_file(folder / "vgg19_relu4_1.safetensors").items()})
    torch.manual_seed(0)
    with torch.inference_mode():
        save_file(tensors_of(encoder.to(memory_format=torch.channels_last)), folder / "vgg19_int8.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    first = manifest["files"]["vgg19_relu4_1"]
    digest = hashlib.sha256((folder / "vgg19_int8.safetensors").read_bytes()).hexdigest()
    manifest["files"]["vgg19_int8"] = first | {
        "file": "vgg19_int8.safetensors",
        "sha256": digest,
        "encoder_sha256": first["sha256"],
        "config": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def decibels(exact, rounded):
    return float(10 * torch.log10(exact.square().mean() / (exact - rounded).square().mean()))


def test_a_convolution_is_the_formula():
    x = torch.randint(0, 256, (2, 5, 9, 11), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-127, 128, (7, 5, 3, 3), dtype=torch.int8)
    step, bias = torch.rand(7) / 50, torch.randn(7) * 20
    sums = F.conv2d(x.double(), weight.double())
    exact = (sums * step.double()[:, None, None] + bias.double()[:, None, None]).relu()
    kernel = packed(weight, step)
    found = int8_conv2d(x, kernel, step, bias, torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-3)
    whole = int8_conv2d(x, kernel, step, bias, torch.uint8)
    assert whole.dtype == torch.uint8 and float((exact > 255).double().mean()) > 0.05
    assert float((whole.double() - exact.clamp(max=255)).abs().max()) <= 0.5 + 1e-3


def test_sums_that_are_cut_are_noticed():
    """What oneDNN does on CPUs without VNNI, asked for by its own variable."""
    code = "from styleapp.models import int8; print(int8.works())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@torch.inference_mode()
def test_features_are_those_of_the_encoder(encoder, int8):
    image = smooth(2, 67, 50)
    exact, rounded = encoder.features(image), int8.features(image, STYLE_LAYERS)
    for a, b in zip(exact, rounded, strict=True):
        assert a.shape == b.shape and b.dtype == torch.float32
        assert decibels(a, b) > 18  # of so few channels; the shipped ones are below
    assert torch.equal(int8.features(image, ["relu4_1"])[0], rounded[-1])
    half = int8.features(image, ["relu2_1"], torch.bfloat16)[0]
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), rounded[1], rtol=1e-2)


@torch.inference_mode()
def test_shipped_encoder_on_a_real_photo():
    files = Weights()
    encoder = files.encoder().to(memory_format=torch.channels_last)
    image = read_image(Path("examples/astronaut.jpg")).rgb[..., 64:320, 128:384]
    exact = encoder.features(image)
    rounded = files.int8_encoder(encoder).features(image, STYLE_LAYERS)
    for a, b in zip(exact, rounded, strict=True):
        assert decibels(a, b) > 33


def test_rounding_with_the_error_passed_on_is_better_than_rounding(encoder):
    """That is what the least squares of scripts/quantize.py are for."""
    torch.manual_seed(0)
    with torch.inference_mode():
        images = [smooth(1, 64, 64) for _ in range(12)]
        largest = quantize.most(encoder, images)
        tensors = quantize.quantized(encoder, images, largest, places=500)
        simple, unit_before = dict(tensors), torch.full((3,), 1 / 255)
        for name in (n for n in encoder.names if n != "M"):
            conv, unit = encoder.get_submodule(name), tensors.get(f"{name}.unit", torch.ones(16))
            scaled = conv.weight * unit_before[:, None, None] / unit[:, None, None, None]
            step = scaled.abs().amax((1, 2, 3)) / 127
            simple[f"{name}.weight"] = (scaled / step[:, None, None, None]).round().to(torch.int8)
            simple[f"{name}.step"], simple[f"{name}.bias"], unit_before = step, conv.bias / unit, unit
        unseen = smooth(4, 64, 64)
        exact = encoder(unseen)
        ours, theirs = (
            decibels(exact, Int8Encoder(encoder, t).features(unseen, ["relu4_1"])[0]) for t in (tensors, simple)
        )
    assert ours > theirs + 1


@settings(deadline=None, max_examples=25)
@given(st.integers(16, 90), st.integers(16, 90), st.data())
@torch.inference_mode()
def test_parts_are_those_of_the_whole_to_the_bit(stylizer_with, height, width, data):
    picture = Picture((smooth(1, height, width) * 255).round().to(torch.uint8))
    cells = cells_of(picture.size)
    top, left = (data.draw(st.integers(0, side - 1)) for side in cells)
    rows, columns = (data.draw(st.integers(1, side - at)) for side, at in zip(cells, (top, left), strict=True))
    layers = ["relu1_1", "relu2_1", "relu4_1"]
    whole = _encode(stylizer_with, picture, Window(0, 0, *cells), layers)
    w = Window(top, left, top + rows, left + columns)
    part = _encode(stylizer_with, picture, w, layers)
    for layer, factor in zip(layers, (8, 4, 1), strict=True):
        window = w.scaled(factor, whole[layer].shape[-2:])
        assert torch.equal(part[layer], whole[layer][window.index])


@pytest.fixture(scope="module")
def stylizer_with(encoder, int8):
    stylizer = Stylizer(encoder, Decoder(16))
    stylizer.use_int8(int8)
    return stylizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_added_and_rounded_once(dtype):
    x = torch.randint(256, (2, 6, 5, 7), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.randint(-127, 128, (8, 6, 1, 1), dtype=torch.int8)
    step = torch.rand(8) / 1000
    y = torch.randn(2, 8, 5, 7).to(dtype).contiguous(memory_format=torch.channels_last)
    products = F.conv2d(x.double(), weight.double()) * step.double()[:, None, None]
    wanted = (y.double() + products).to(dtype)
    found = add_int8_conv2d(y, x, packed(weight, step), step)
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(found, wanted, rtol=ulp, atol=ulp * float(products.abs().max()))


@torch.inference_mode()
def test_what_the_decoder_sees_besides_are_whole_numbers(encoder, int8):
    """In place of the features that they stand for, through kernels that have the units inside."""
    torch.manual_seed(0)
    decoder = Decoder(16, upsampling="bilinear", skips={"relu1_1": 4, "relu2_1": 6})
    stylizer = alive(Stylizer(encoder, decoder, conditional=True)).to(memory_format=torch.channels_last)
    stylizer.use_int8(int8)
    image = smooth(2, 45, 50)
    layers = ["relu1_1", "relu2_1", "relu4_1"]
    features, skips = stylizer.encode(image, exact=False)
    as_features = dict(zip(layers, int8.features(image, layers), strict=True))
    assert {name: x.dtype for name, x in skips.items()} == {"relu1_1": torch.uint8, "relu2_1": torch.uint8}
    assert torch.equal(features, as_features["relu4_1"])
    for name, x in skips.items():
        from_features = decoder.get_submodule(f"skip_{name}")(as_features[name])
        from_whole = int8_conv2d(x, *decoder.int8_skips[name], None, torch.float32, "none")
        assert from_whole.lt(0).any() and decibels(from_features, from_whole) > 35
    found, wanted = (stylizer.decode(features, image, seen) for seen in (skips, as_features))
    assert decibels(wanted, found) > 35
    assert decibels(wanted, stylizer.decode(features, image, {n: torch.zeros_like(x) for n, x in skips.items()})) < 30
    more = stylizer.with_detail(3)
    found, wanted = (more.decode(features, image, seen) for seen in (skips, as_features))
    assert decibels(wanted, found) > 35 and decibels(wanted, stylizer.decode(features, image, as_features)) < 30


@pytest.fixture(scope="module")
def adain_with():
    """A network of AdaIN that normalises further layers."""
    torch.manual_seed(0)
    decoder = Decoder(16, upsampling="bilinear", skips={"relu1_1": 4, "relu2_1": 6, "relu3_1": 8})
    stylizer = alive(Stylizer(Encoder(TINY_VGG), decoder)).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        stylizer.use_int8(Int8Encoder(stylizer.encoder, tensors_of(stylizer.encoder)))
    return stylizer


@torch.inference_mode()
def test_whole_numbers_are_normalised_at_once(adain_with):
    image, layers = smooth(2, 45, 50), ["relu1_1", "relu2_1", "relu3_1"]
    whole = adain_with.features(image, [*layers, "relu4_1"], exact=False)
    code = adain_with.measure(smooth(1, 48, 40)).split(adain_with.parts)
    for name, x, floats in zip(layers, whole, adain_with.int8.features(image, layers), strict=False):
        assert x.dtype == torch.uint8 and torch.equal(adain_with.as_floats(name, x), floats)
        m, wanted = adain_with.moments_of(name, x), moments(floats)
        torch.testing.assert_close(m.mean, wanted.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(m.var, wanted.var, rtol=1e-4, atol=1e-6)
        weight = torch.rand(1, 1, 45, 50)
        m = adain_with.moments_of(name, x[:1], weight)
        torch.testing.assert_close(m.var, weighted_moments(floats[:1], weight).var, rtol=1e-4, atol=1e-6)
        of_code = code[name].gamma, code[name].beta
        found = adain_with.normalized(name, x, wanted, code[name])
        torch.testing.assert_close(found, normalize(floats, wanted, *of_code), rtol=1e-4, atol=1e-4)
    features, skips = whole[-1], dict(zip(layers, whole, strict=False))
    as_features = {name: adain_with.as_floats(name, x) for name, x in skips.items()}
    joined = StyleCode.join(list(code.values()))
    found, wanted = (adain_with.restyled(features, joined, 0.7, seen) for seen in (skips, as_features))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_adain_in_integers_is_the_same_in_tiles_and_in_regions(adain_with):
    p = Picture((smooth(1, 75, 90) * 255).round().to(torch.uint8))
    codes = [adain_with.measure(smooth(1, 48, 40)) for _ in range(2)]
    mask = torch.zeros(1, 1, 75, 90, dtype=torch.uint8)
    mask[..., :40] = 255
    for layers in ([Layer(codes[0])], [Layer(codes[0], 0.6)], [Layer(codes[0]), Layer(codes[1], 0.8, Mask(mask, 2.0))]):
        whole = render(adain_with, p, layers, one_piece(p.size))
        for keep in (False, True):
            tiles = render(adain_with, p, layers, Plan((32, 24), keep))
            assert (tiles.pixels.int() - whole.pixels.int()).abs().max() <= 1
        exact = render(adain_with, Picture(p.rgb), layers, one_piece(p.size))
        assert decibels(exact.rgb, whole.rgb) > 20  # of another picture it is 10


@torch.inference_mode()
def test_only_photos_of_8_bits(stylizer_with):
    values = smooth(1, 40, 40)
    everything = Window(0, 0, 5, 5)
    exact = stylizer_with.encoder(values)
    deep = _encode(stylizer_with, Picture((values * 65535).round().to(torch.uint16)), everything, ["relu4_1"])
    assert decibels(exact, deep["relu4_1"]) > 60
    shallow = _encode(stylizer_with, Picture((values * 255).round().to(torch.uint8)), everything, ["relu4_1"])
    assert decibels(exact, shallow["relu4_1"]) < 55


def test_what_does_not_fit_is_named(encoder, int8):
    with torch.inference_mode():
        tensors = tensors_of(encoder, 2)
    with pytest.raises(ValueError, match=r"conv2_1.step: nothing, expected \(6,\)"):
        Int8Encoder(encoder, {k: v for k, v in tensors.items() if k != "conv2_1.step"})
    with pytest.raises(ValueError, match=r"conv1_1.weight: \(4, 3, 3, 3\), torch.float32, expected"):
        Int8Encoder(encoder, tensors | {"conv1_1.weight": tensors["conv1_1.weight"].float()})
    with pytest.raises(ValueError, match="unknown layers \\['relu5_1'\\]; choices: relu1_1"):
        int8.features(torch.rand(1, 3, 32, 32), ["relu5_1"])


def test_auto_takes_it_where_the_weights_have_it(weights, int8_weights):
    assert StyleTransfer("cpu", weights=weights).precision != "int8"
    transfer = StyleTransfer("cpu", weights=int8_weights)
    assert transfer.precision == "int8"
    for norm in ("adain", "cin", "decoder:bn"):
        assert transfer.networks.of(norm).int8 is not None
    other = StyleTransfer("cpu", "fp32", weights=int8_weights)
    assert other.networks.adain.int8 is None


@pytest.mark.parametrize("norm", ["adain", "cin"])
def test_pictures_are_near_those_of_float(norm, transfer, int8_weights):
    quick = StyleTransfer("cpu", "int8", weights=int8_weights)
    picture = Picture((smooth(1, 70, 90) * 255).round().to(torch.uint8))
    options = {"norm": norm, "style_size": 64, "refine": 0}  # steps on a tiny random network blow up what is rounded
    exact, rounded, tiled = (
        t.stylize(to_pil(picture), "great-wave", **options, tile=tile)
        for t, tile in ((transfer, "off"), (quick, "off"), (quick, "32"))
    )
    assert _difference(exact, rounded) < (6 if norm == "cin" else 15)  # no norm takes away what is wrong
    assert _difference(rounded, tiled) < 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_a_batch_is_its_photos(dtype, int8_weights):
    quick = StyleTransfer("cpu", "int8", weights=int8_weights)
    photos = [Picture(quantized(smooth(1, 48, 40), dtype)) for _ in range(3)]
    options = Options(norm="cin", style_size=64)
    together = quick.pictures(photos, ["great-wave"] * 3, options)
    for photo, found in zip(photos, together, strict=True):
        alone = quick.picture(photo, "great-wave", options)
        assert found.pixels.dtype == dtype
        assert float((found.rgb - alone.rgb).abs().mean()) < 1e-3


def test_codes_of_paintings_are_exact(int8_weights):
    quick = StyleTransfer("cpu", "int8", weights=int8_weights)
    name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[quick.networks.dtype]
    other = StyleTransfer("cpu", name, weights=int8_weights)
    painting = to_pil(Picture((smooth(1, 64, 64) * 255).round().to(torch.uint8)))
    a, b = (t.styles.code(painting, 64, "adain") for t in (quick, other))
    assert torch.equal(a.gamma, b.gamma) and torch.equal(a.beta, b.beta)


def _difference(a, b):
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())
