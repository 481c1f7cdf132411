from itertools import pairwise

import pytest
import torch
from conftest import TINY_VGG, alive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from styleapp.models import Decoder, Encoder, StyleCode, Stylizer, code_from_moments
from styleapp.norms import adain, merge, moments


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(16, 45), st.integers(16, 45), st.sampled_from([1.0, 0.5, 0.0]))
def test_output_has_the_size_of_the_input(stylizer, height, width, alpha):
    image = torch.rand(1, 3, height, width)
    code = stylizer.measure(torch.rand(1, 3, 24, 24))
    assert stylizer(image, code, alpha).shape == image.shape


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 45), st.integers(16, 45), st.sampled_from([1.0, 0.5, 0.0]))
def test_a_decoder_that_sees_more_of_the_photo(height, width, alpha):
    """Any size; several codes for one photo as each by itself; without what it sees it says so."""
    network = alive(Stylizer(Encoder(TINY_VGG), Decoder(16, skips={"relu1_1": 4, "relu2_1": 6}), conditional=True))
    image = torch.rand(1, 3, height, width)
    codes = [network.measure(torch.rand(1, 3, 24, 24)) for _ in range(2)]
    alone = torch.cat([network(image, code, alpha) for code in codes])
    assert alone.shape == (2, 3, height, width)
    both = StyleCode(torch.cat([c.gamma for c in codes]), torch.cat([c.beta for c in codes]))
    features, skips = network.encode(image)
    together = network.stylized(features.expand(2, -1, -1, -1), both, image, skips=skips)
    if alpha == 1:
        # In the mean: where a channel is all but even, a norm of random filters makes much of what is rounded.
        assert (together - alone).abs().mean() < 1e-3 * max(1.0, float(alone.abs().max()))
    with pytest.raises(ValueError, match="relu1_1, relu2_1 of the photo too: relu2_1 is missing"):
        network.decode(features, image, {"relu1_1": skips["relu1_1"]})


def test_detail_is_a_factor_of_what_is_seen_at_relu2_1():
    """In a network of its own, which shares the rest; the first stays as it was."""
    network = alive(Stylizer(Encoder(TINY_VGG), Decoder(16, skips={"relu1_1": 4, "relu2_1": 6}), conditional=True))
    image, code = torch.rand(2, 3, 35, 44), network.measure(torch.rand(1, 3, 24, 24))
    before = network(image, code)
    features, skips = network.encode(image)
    for detail in (0.0, 0.5, 3.0):
        other = network.with_detail(detail)
        wanted = network.stylized(features, code, image, skips=skips | {"relu2_1": detail * skips["relu2_1"]})
        assert torch.allclose(other(image, code), wanted, atol=1e-5)
        assert (wanted - before).abs().max() > 0.01 and not other.training
        shared = dict(network.named_parameters())
        assert [n for n, p in other.named_parameters() if p is not shared[n]] == ["decoder.skip_relu2_1.weight"]
    assert torch.equal(network(image, code), before)
    with pytest.raises(ValueError, match="does not see relu2_1"):
        Decoder(16, skips={"relu1_1": 4}).with_detail(2)


def test_a_decoder_sees_only_what_has_a_place():
    for layer in ("relu5_1", "relu1_2", "conv1_1"):
        with pytest.raises(ValueError, match="skips must be of relu1_1"):
            Decoder(16, skips={layer: 4})


def test_is_the_paper_at_alpha_one(stylizer):
    image, painting = torch.rand(2, 3, 32, 40), torch.rand(1, 3, 24, 24)
    wanted = stylizer.decoder(adain(stylizer.encoder(image), stylizer.encoder(painting)))
    assert torch.allclose(stylizer(image, stylizer.measure(painting)), wanted, atol=1e-5)


def test_lerp_of_codes_is_lerp_of_features(stylizer):
    features = stylizer.encoder(torch.rand(1, 3, 32, 32)).double()
    style = code_from_moments(moments(torch.randn(1, 16, 5, 5, dtype=torch.float64)))
    full, none = stylizer.apply_code(features, style, 1.0), features
    for alpha in (0.0, 0.3, 1.0):
        wanted = (1 - alpha) * none + alpha * full
        assert torch.allclose(stylizer.apply_code(features, style, alpha), wanted, atol=1e-9)
        strength = torch.full((1, 1, 4, 4), alpha, dtype=torch.float64)
        assert torch.allclose(stylizer.apply_code(features, style, strength), wanted, atol=1e-9)


def test_alpha_zero_is_the_photo_and_strength_is_smooth(stylizer):
    image = torch.rand(1, 3, 32, 32)
    code = stylizer.measure(torch.rand(1, 3, 32, 32))
    assert torch.allclose(stylizer(image, code, 0.0), image, atol=1e-5)
    steps = [stylizer(image, code, i / 20) for i in range(21)]
    jumps = torch.stack([(b - a).abs().max() for a, b in pairwise(steps)])
    assert jumps.max() < 0.25 * (steps[-1] - steps[0]).abs().max()


def test_mix_with_weight_one_is_the_style_itself(stylizer):
    a, b = (stylizer.measure(torch.rand(1, 3, 32, 32)) for _ in range(2))
    assert StyleCode.mix([a, b], [1.0, 0.0]) is a
    assert a.lerp(b, 1.0) is b
    half = StyleCode.mix([a, b], [0.5, 0.5])
    assert torch.allclose(half.gamma, (a.gamma + b.gamma) / 2)
    with pytest.raises(ValueError, match="2 codes but 1 weights"):
        StyleCode.mix([a, b], [1.0])
    with pytest.raises(ValueError, match="differ from 0"):
        StyleCode.mix([a, b], [0.0, 0.0])


def test_a_code_may_vary_over_the_image(stylizer):
    features = stylizer.encoder(torch.rand(1, 3, 32, 64))
    a, b = (stylizer.measure(torch.rand(1, 3, 32, 32)) for _ in range(2))
    left = torch.zeros(1, 1, 4, 8)
    left[..., :4] = 1
    found = stylizer.apply_code(features, b.lerp(a, left))
    assert torch.allclose(found[..., :4], stylizer.apply_code(features, a)[..., :4], atol=1e-5)
    assert torch.allclose(found[..., 4:], stylizer.apply_code(features, b)[..., 4:], atol=1e-5)


def test_parts_with_merged_moments_equal_the_whole(stylizer):
    features = stylizer.encoder(torch.rand(1, 3, 32, 64))
    code = stylizer.measure(torch.rand(1, 3, 32, 32))
    parts = features.split([3, 5], dim=3)
    whole = merge(*map(moments, parts))
    found = torch.cat([stylizer.apply_code(p, code, content=whole) for p in parts], 3)
    assert torch.allclose(found, stylizer.apply_code(features, code), atol=1e-5)


def test_requests_leave_nothing_behind(stylizer):
    image, code = torch.rand(1, 3, 32, 32), stylizer.measure(torch.rand(1, 3, 32, 32))
    first = stylizer(image, code)
    stylizer(torch.rand(1, 3, 48, 16), stylizer.measure(torch.rand(1, 3, 16, 16)), 0.5)
    assert torch.equal(stylizer(image, code), first)


def test_encoder_and_decoder_must_fit():
    with pytest.raises(ValueError, match="gives 16 channels, the decoder takes 512"):
        Stylizer(Encoder(TINY_VGG), Decoder())


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_decoder_mirrors_the_encoder(width):
    decoder = Decoder(512, width)
    assert decoder.get_submodule("conv4_1").out_channels == 256 * width
    assert decoder.get_submodule("conv2_1").out_channels == 64 * width
    assert decoder.get_submodule("conv1_1").out_channels == 3
    assert not [m for m in decoder.modules() if "Norm" in type(m).__name__]
    assert decoder(torch.rand(1, 512, 2, 3)).shape == (1, 3, 16, 24)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_a_decoder_that_writes_borders_with_the_relu(upsampling, normed, monkeypatch):
    decoder = Decoder(16, upsampling=upsampling, skips={"relu2_1": 6}).double()
    x, skips = torch.randn(2, 16, 5, 7, dtype=torch.float64), {"relu2_1": torch.randn(2, 6, 20, 28).double()}
    norms = (lambda name, y: y - y.mean((2, 3), keepdim=True)) if normed else None
    ends = [(None, None), ("conv2_2", None), (None, "conv3_1"), ("conv3_3", "conv1_2"), ("conv4_1", "conv2_2")]
    with torch.no_grad():
        start = {None: x} | {a: decoder(x, norms, until=a, skips=skips) for a, _ in ends if a}
        found = [decoder(start[a], norms, until=u, after=a, skips=skips) for a, u in ends]
        kept = {a: t.clone() for a, t in start.items()}
        monkeypatch.setattr("styleapp.models.decoder.takes_ring", lambda x: False)
        for (a, u), one in zip(ends, found, strict=True):
            assert torch.allclose(decoder(start[a], norms, until=u, after=a, skips=skips), one, atol=1e-12)
    assert all(torch.equal(kept[a], start[a]) for a in kept)
