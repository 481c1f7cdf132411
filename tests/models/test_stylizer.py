from itertools import pairwise

import pytest
import torch
from conftest import TINY_VGG
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
