from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY_VGG, alive
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from styleapp.devices import has_int8
from styleapp.files import read_image
from styleapp.images import Picture
from styleapp.models import Decoder, Encoder, Int8Decoder, StyleCode, Stylizer
from styleapp.models.int8 import Int8Encoder
from styleapp.models.int8_decoder import _rounded
from styleapp.norms import EPS, Moments, moments
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer

pytestmark = pytest.mark.skipif(not has_int8(torch.device("cpu")), reason="needs a CPU with VNNI")
SKIPS = {"relu1_1": 4, "relu2_1": 6}


def smooth(*shape):
    small = torch.rand(shape[0], 3, 8, 8)
    return F.interpolate(small, shape[1:], mode="bicubic").clamp(0, 1).contiguous(memory_format=torch.channels_last)


def decibels(exact, rounded):
    return float(10 * torch.log10(exact.square().mean() / (exact - rounded).square().mean()))


@pytest.fixture
def stylizer():
    decoder = Decoder(16, upsampling="bilinear", skips=SKIPS)
    return alive(Stylizer(Encoder(TINY_VGG), decoder, conditional=True)).to(memory_format=torch.channels_last)


@pytest.fixture
def code(stylizer):
    return stylizer.measure(smooth(1, 48, 48))


def of(stylizer, code):
    parts = {name: (part.gamma, part.beta) for name, part in code.split(stylizer.norms).items()}
    return Int8Decoder.of(stylizer.decoder, parts, stylizer.eps)


@torch.inference_mode()
def test_a_norm_is_the_formula_in_whole_numbers(stylizer, code):
    decoder = of(stylizer, code)
    for name, part in code.split(stylizer.norms).items():
        x = (40 + 3 * torch.randn(2, part.num_channels, 9, 7)).contiguous(memory_format=torch.channels_last)
        m = moments(x)
        found = decoder.normed(name, x, m)
        assert found.dtype == torch.uint8 and found.is_contiguous(memory_format=torch.channels_last)
        x64 = x.double()
        z = (x64 - x64.mean((2, 3), keepdim=True)) / (x64.var((2, 3), correction=0, keepdim=True) + EPS).sqrt()
        if name in stylizer.decoder.hidden:
            unit = (part.gamma / decoder.norms[name][0]).double()
            wanted = (part.gamma.double() * z + part.beta.double()).relu() / unit
        else:
            wanted = z / (18 / 255) + 32
        assert float((found.double() - wanted.clamp(0, 255)).abs().max()) < 0.501
        assert float(wanted.max()) < 256  # three deviations: nothing is cut here


@pytest.mark.parametrize("size", [(48, 48), (45, 70)])
@torch.inference_mode()
def test_pictures_are_near_those_of_float(stylizer, code, size):
    image = smooth(2, *size)
    features, skips = stylizer.encode(image)
    decoder = of(stylizer, code)

    def norm(name, x):
        return decoder.normed(name, x, moments(x))

    exact = stylizer.restyled(features, code, skips=skips)
    rounded = decoder(norm("relu4_1", features), norm, skips=skips)
    assert rounded.shape == exact.shape
    # Filters at random, and so few of them, make much of what rounding changes; the shipped ones are below.
    assert decibels(exact - exact.mean(), rounded - exact.mean()) > 17
    wrong = (rounded - exact).square()
    inside = wrong[..., 8:-8, 8:-8].mean()
    for edge in (wrong[..., :2, :], wrong[..., -2:, :], wrong[..., :2], wrong[..., -2:]):
        assert edge.mean() < 4 * inside


@torch.inference_mode()
def test_it_stops_and_goes_on_where_it_is_told(stylizer, code):
    features, skips = stylizer.encode(smooth(1, 40, 48))
    decoder = of(stylizer, code)

    def norm(name, x):
        return decoder.normed(name, x, moments(x))

    first = norm("relu4_1", features)
    whole = decoder(first, norm, skips=skips)
    for name, channels in stylizer.decoder.hidden.items():
        half = decoder(first, norm, until=name, skips=skips)
        assert half.shape[1] == channels and half.dtype == torch.float32
        assert torch.equal(decoder(half, norm, after=name, skips=skips), whole)


@torch.inference_mode()
def test_output_channels_that_fill_up_leave_no_trace(code, stylizer, monkeypatch):
    features, skips = stylizer.encode(smooth(1, 40, 48))

    def picture():
        decoder = of(stylizer, code)

        def norm(name, x):
            return decoder.normed(name, x, moments(x))

        return decoder(norm("relu4_1", features), norm, skips=skips)

    plain = picture()
    monkeypatch.setattr("styleapp.models.int8_decoder.FILLED", {c: c + 5 for c in stylizer.decoder.hidden.values()})
    assert torch.equal(picture(), plain)


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 4), st.floats(-3, 3), st.integers(0, 5))
@torch.inference_mode()
def test_channels_that_are_dead_faint_or_turned_over(gamma, beta, seed):
    torch.manual_seed(seed)
    decoder = Decoder(16, upsampling="bilinear", skips=SKIPS)
    stylizer = alive(Stylizer(Encoder(TINY_VGG), decoder, conditional=True)).to(memory_format=torch.channels_last)
    code = stylizer.measure(smooth(1, 48, 48))
    changed = code.gamma.clone(), code.beta.clone()
    changed[0][:, ::3], changed[1][:, ::3] = -gamma, beta
    code = StyleCode(*changed)
    features, skips = stylizer.encode(smooth(1, 40, 40))
    found = of(stylizer, code)

    def norm(name, x):
        return found.normed(name, x, moments(x))

    exact = stylizer.restyled(features, code, skips=skips)
    rounded = found(norm("relu4_1", features), norm, skips=skips)
    assert decibels(exact - exact.mean(), rounded - exact.mean()) > 8


@torch.inference_mode()
def test_of_a_picture_of_one_colour_nothing_is_made_that_is_not_there(stylizer, code):
    flat = torch.full((1, 3, 40, 40), 0.4).contiguous(memory_format=torch.channels_last)
    features, _ = stylizer.encode(flat)
    found = of(stylizer, code)
    seen = moments(features)
    no_spread = Moments(seen.count, seen.mean, torch.zeros_like(seen.var))
    assert (found.normed("relu4_1", features, no_spread) - 32.0).abs().max() <= 1  # what rounding leaves, by sqrt(ε)


@torch.inference_mode()
def test_what_is_the_same_everywhere_stays_so(stylizer, code):
    """Rounded each for itself, the four kernels behind upsampling draw a weave into a clear sky."""
    found, seen = of(stylizer, code), {}
    features, skips = stylizer.encode(smooth(1, 40, 40))

    def of_a_photo(name, x):
        seen[name] = moments(x)
        return found.normed(name, x, seen[name])

    def norm(name, x):
        return found.normed(name, x, seen[name])

    found(of_a_photo("relu4_1", features), of_a_photo, skips=skips)
    calm = {name: f[..., 3:4, 3:4].expand(f.shape) for name, f in skips.items()}
    first = norm("relu4_1", features[..., 2:3, 2:3].expand(features.shape))
    for name in [*stylizer.decoder.hidden, None]:
        y = found(first, norm, until=name, skips=calm)
        torch.testing.assert_close(y, y[..., :1, :1].expand(y.shape), atol=1e-5, rtol=0)


@given(st.integers(0, 10**6), st.floats(5, 60))
def test_rounding_keeps_the_sum_of_a_kernel(seed, scale):
    weight = torch.randn(3, 5, 3, 3, generator=torch.Generator().manual_seed(seed)) * scale
    whole = _rounded(weight)
    assert torch.equal(whole, whole.round()) and float((whole - weight).abs().max()) < 1
    assert float((whole - weight).sum((2, 3)).abs().max()) <= 0.5 + 1e-4
    assert float((whole - weight).square().mean()) < 1.4 * float((weight.round() - weight).square().mean())


@torch.inference_mode()
def test_a_layer_that_is_dead(stylizer, code):
    name = "conv2_1"
    parts = code.split(stylizer.norms)
    parts[name] = StyleCode(parts[name].gamma, parts[name].gamma * -20)
    code = StyleCode.join(list(parts.values()))
    features, skips = stylizer.encode(smooth(1, 40, 40))
    found = of(stylizer, code)

    def norm(name, x):
        return found.normed(name, x, moments(x))

    until = found(norm("relu4_1", features), norm, until="conv1_2", skips=skips)
    torch.testing.assert_close(until, stylizer.decoder.with_skip(torch.zeros(until.shape), "relu1_1", skips))


@torch.inference_mode()
def test_the_last_convolution_is_nearly_exact(stylizer, code):
    found = of(stylizer, code)
    whole = torch.randint(256, (1, stylizer.decoder.hidden["conv1_2"], 20, 30), dtype=torch.uint8)
    whole = whole.contiguous(memory_format=torch.channels_last)
    unit = code.split(stylizer.norms)["conv1_2"].gamma / found.norms["conv1_2"][0]
    y = found(torch.zeros(whole.shape), lambda name, x: whole, after="conv1_2")
    wanted = stylizer.decoder.conv1_1(whole * unit)
    assert decibels(wanted - wanted.mean(), y - wanted.mean()) > 70


def test_only_bilinear(stylizer, code):
    with pytest.raises(ValueError, match="bilinearly, not 'nearest'"):
        Int8Decoder.of(Decoder(16), {}, EPS)


class _Features(Int8Encoder):
    """In place of one with weights: for what is not about the encoder."""

    def __init__(self, encoder):
        self.encoder = encoder

    def features(self, image, layers, dtype=torch.float32, *, whole=False):
        return self.encoder.features(image, layers)

    def projection(self, layer, weight):
        return weight, torch.ones(len(weight))


@pytest.fixture
def quick(stylizer):
    stylizer.use_int8(_Features(stylizer.encoder))
    return stylizer


@torch.inference_mode()
def test_which_codes_and_networks_have_one(quick, code):
    assert isinstance(quick.int8_decoder(code), Int8Decoder)
    two = StyleCode(code.gamma.repeat(2, 1, 1, 1), code.beta.repeat(2, 1, 1, 1))
    assert quick.int8_decoder(two) is None
    assert quick.int8_decoder(StyleCode(code.gamma.expand(-1, -1, 5, 5), code.beta.expand(-1, -1, 5, 5))) is None
    adain = Stylizer(quick.encoder, Decoder(16, upsampling="bilinear"))
    adain.int8 = quick.int8
    assert adain.int8_decoder(adain.measure(smooth(1, 48, 48))) is None
    nearest = Stylizer(quick.encoder, Decoder(16), conditional=True)
    nearest.int8 = quick.int8
    assert nearest.int8_decoder(nearest.measure(smooth(1, 48, 48))) is None
    quick.decoder.bfloat16()
    assert quick.int8_decoder(code) is None
    quick.decoder.float()
    quick.int8 = None
    assert quick.int8_decoder(code) is None


@torch.inference_mode()
def test_it_is_made_once_for_a_code(quick, code):
    found = quick.int8_decoder(code)
    assert quick.int8_decoder(StyleCode(code.gamma.clone(), code.beta.clone())).kernels is found.kernels
    less = quick.with_detail(0.5)
    assert less.int8_decoder(code).kernels is found.kernels and less.int8_decoder(code).decoder is less.decoder
    other = quick.int8_decoder(StyleCode(code.gamma * 2, code.beta))
    assert other.kernels is not found.kernels
    for k in range(20):
        quick.int8_decoder(StyleCode(code.gamma + k, code.beta))
    assert len(quick._int8_decoders) <= 8


@torch.inference_mode()
def test_batches_are_their_photos_and_exact_is_float(quick, code):
    image = smooth(3, 40, 45)
    more = [code, StyleCode(code.gamma * 1.3, code.beta + 0.1), code]
    codes = StyleCode(torch.cat([c.gamma for c in more]), torch.cat([c.beta for c in more]))
    alone = torch.cat([quick(image[k : k + 1], c) for k, c in enumerate(more)])
    torch.testing.assert_close(quick(image, codes), alone, atol=2e-2, rtol=0)  # another order of sums
    assert float((quick(image, codes) - alone).abs().mean()) < 1e-3
    exact = quick(image, codes, exact=True)
    quick.int8, kept = None, quick.int8
    assert torch.equal(exact, quick(image, codes))
    quick.int8 = kept
    assert 15 < decibels(exact - exact.mean(), quick(image, codes) - exact.mean()) < 60


@pytest.fixture(scope="module")
def shipped():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("styleapp.devices.has_bf16", lambda device: False)
        return StyleTransfer("cpu", "int8"), StyleTransfer("cpu", "fp32")


@pytest.fixture(scope="module")
def photo():
    return Picture((read_image(Path("examples/astronaut.jpg")).rgb[..., 30:265, 110:330] * 255).round().to(torch.uint8))


def psnr(a, b):
    return float(-10 * (a.rgb - b.rgb).square().mean().log10())


@pytest.mark.parametrize("style", ["great-wave", "the-visit"])
def test_shipped_network_on_a_real_photo(shipped, photo, style):
    quick, exact = shipped
    options = Options(norm="cin")
    found = quick.picture(photo, style, options)
    wanted = exact.picture(photo, style, options)
    assert psnr(found, wanted) > 37
    deep = Picture((photo.rgb * 65535).round().to(torch.uint16))  # photos of 16 bits keep them
    assert psnr(quick.picture(deep, style, options), exact.picture(deep, style, options)) > 90
    tiled = quick.picture(photo, style, replace(options, tile="96"))
    assert psnr(tiled, found) > 45
    less = replace(options, detail=0.2)
    assert psnr(quick.picture(photo, style, less), exact.picture(photo, style, less)) > 37
    assert psnr(quick.picture(photo, style, less), found) < 37
