import copy
import itertools

import bench_layers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from styleapp import options
from styleapp.models import layers
from styleapp.models.layers import (
    UPSAMPLINGS,
    ReflectConv2d,
    corrected_conv2d,
    max_pool2x2,
    onednn_works,
    padded,
    reflect_conv2d,
    relu_ringed,
    upsampled_conv2d,
)


def plain(x, weight, bias):
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)


def after_upsampling(x, weight, bias, mode):
    x = F.interpolate(x, scale_factor=2.0, mode=mode)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight, bias)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9), st.booleans(), st.booleans())
def test_equals_padding_first(batch, height, width, bias, channels_last):
    x, w = torch.randn(batch, 3, height, width, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    b = torch.randn(4, dtype=torch.float64) if bias else None
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for way in (reflect_conv2d, corrected_conv2d):
        assert torch.allclose(way(x, w, b), plain(x, w, b), atol=1e-12)
        assert torch.allclose(way(x, w, b, relu=True), plain(x, w, b).relu(), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.sampled_from([*UPSAMPLINGS]),
)
def test_upsampling_first(batch, height, width, bias, channels_last, mode):
    x, w = torch.randn(batch, 3, height, width, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    b = torch.randn(4, dtype=torch.float64) if bias else None
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    wanted = after_upsampling(x, w, b, mode)
    found = upsampled_conv2d(x, w, b, mode)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert height == width == 1 or found.is_contiguous(memory_format=layout)  # a single pixel has either layout
    assert torch.allclose(upsampled_conv2d(x, w, b, mode, relu=True), wanted.relu(), atol=1e-12)
    assert torch.allclose(upsampled_conv2d(x, w.requires_grad_(), b, mode), wanted, atol=1e-12)
    assert torch.allclose(upsampled_conv2d(x, w, b, mode, relu=True), wanted.relu(), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2), st.integers(2, 9), st.integers(2, 20), st.booleans(), st.sampled_from([None, *UPSAMPLINGS]))
def test_a_border_written_with_the_relu(batch, height, width, channels_last, upsampling):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(batch, 3, height, width, dtype=torch.float64).contiguous(memory_format=layout)
    layer = ReflectConv2d(3, 4).double()
    with torch.no_grad():
        wanted = layer(x.relu(), upsampling=upsampling, relu=True)
        assert torch.allclose(layer(relu_ringed(x, upsampling), upsampling=upsampling, relu=True), wanted, atol=1e-12)


@pytest.mark.parametrize("upsampling", [None, *UPSAMPLINGS])
def test_a_relu_that_follows(upsampling):
    layer, x = ReflectConv2d(3, 4), torch.randn(2, 3, 6, 7)
    wanted = layer(x, upsampling=upsampling).relu()
    assert 0.2 < float((wanted == 0).double().mean()) < 0.8
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.allclose(layer(x, upsampling=upsampling, relu=True), wanted, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_a_relu_inside_the_convolution_or_behind_it(dtype, has_bias, fused, monkeypatch):
    """In whatever way it is computed, and for as many channels as go one kernel at a time."""
    if not fused:
        monkeypatch.setattr(layers, "onednn_works", lambda dtype: False)
    elif not onednn_works(dtype):
        pytest.skip(f"this torch has no such convolution in {dtype}")
    torch.manual_seed(0)
    x, w = torch.randn(2, 8, 11, 13).to(dtype), torch.randn(256, 8, 3, 3).to(dtype) / 8
    b = torch.randn(256).to(dtype) if has_bias else None
    x = x.contiguous(memory_format=torch.channels_last)
    exact = x.double(), w.double(), None if b is None else b.double()
    for least in (0, layers.LEAST_TO_CORRECT):
        monkeypatch.setattr(layers, "LEAST_TO_CORRECT", least)
        found = reflect_conv2d(x, w, b, relu=True)
        assert torch.allclose(found.double(), plain(*exact).relu(), atol=16 * torch.finfo(dtype).eps)
    for mode in UPSAMPLINGS:
        wanted = after_upsampling(*exact, mode).relu()
        assert torch.allclose(
            upsampled_conv2d(x, w, b, mode, relu=True).double(), wanted, atol=16 * torch.finfo(dtype).eps
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@torch.inference_mode()
def test_a_convolution_that_is_added(dtype, relu, fused, channels_last, monkeypatch):
    if not fused:
        monkeypatch.setattr(layers, "onednn_adds", lambda dtype: False)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    y, x = (torch.randn(2, c, 7, 9).to(dtype).contiguous(memory_format=layout) for c in (6, 5))
    weight = torch.randn(6, 5, 1, 1).to(dtype)
    wanted = y.double() + F.conv2d(x.double(), weight.double())
    found = layers.add_conv2d(y, x, weight, relu)
    assert found.data_ptr() == y.data_ptr()
    torch.testing.assert_close(
        found.double(), wanted.relu() if relu else wanted, rtol=0, atol=torch.finfo(dtype).eps * 12
    )


def test_what_is_not_there_is_not_taken(monkeypatch):
    """The convolution with a ReLU inside is none of torch's documented ones."""
    x, layer = torch.randn(1, 3, 5, 6), ReflectConv2d(3, 4).requires_grad_(False)
    wanted = layer(x, relu=True)
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", lambda *args: torch.zeros(1, 3, 4, 4))
    onednn_works.cache_clear()
    try:
        assert not onednn_works(torch.float32)
        assert torch.allclose(layer(x, relu=True), wanted, atol=1e-6)
    finally:
        onednn_works.cache_clear()


def test_kernels_are_kept_for_one_weight_only():
    torch.manual_seed(0)
    layer, x = ReflectConv2d(3, 4).requires_grad_(False), torch.randn(1, 3, 5, 6)

    def is_right():
        wanted = after_upsampling(x, layer.weight, layer.bias, "bilinear")
        return torch.allclose(layer(x, upsampling="bilinear"), wanted, atol=1e-5)

    assert is_right() and is_right()
    layer.weight.mul_(2)  # in place, as optimisers and load_state_dict do
    assert is_right()
    for _ in range(3):  # another tensor, as .to() does, perhaps in the place of one of before
        layer.weight.data = torch.randn_like(layer.weight)
        layer.weight.data = torch.randn_like(layer.weight)
        assert is_right()
    other = copy.deepcopy(layer)
    other.weight.mul_(3)
    assert is_right() and torch.allclose(
        other(x, upsampling="nearest"), after_upsampling(x, other.weight, other.bias, "nearest"), atol=1e-5
    )
    with torch.inference_mode():
        assert is_right()
    assert layer.double()(x.double(), upsampling="bilinear").dtype == torch.float64


def test_border_of_nearest_upsampling_may_as_well_be_reflected():
    x, w = torch.randn(1, 3, 4, 5, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    wanted = plain(F.interpolate(x, scale_factor=2.0, mode="nearest"), w, None)
    assert torch.allclose(upsampled_conv2d(x, w), wanted, atol=1e-12)


def test_what_training_offers_is_what_there_is():
    assert set(options.UPSAMPLINGS) == set(UPSAMPLINGS)


@pytest.mark.parametrize("mode", UPSAMPLINGS)
def test_gradients_of_upsampling(mode):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    ours = torch.autograd.grad(upsampled_conv2d(x, w, mode=mode).square().sum(), [x, w])
    theirs = torch.autograd.grad(after_upsampling(x, w, None, mode).square().sum(), [x, w])
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("mode", UPSAMPLINGS)
def test_upsampling_in_low_precision_is_as_good(mode):
    """The sums of filters are rounded once, and no more is lost than in the plain way."""
    x, w = torch.randn(1, 32, 20, 20), torch.randn(16, 32, 3, 3) / 17
    exact = upsampled_conv2d(x.double(), w.double(), mode=mode)
    ours = upsampled_conv2d(x.bfloat16(), w.bfloat16(), mode=mode)
    theirs = after_upsampling(x.bfloat16(), w.bfloat16(), None, mode)
    assert (ours - exact).square().mean() < 1.5 * (theirs - exact).square().mean()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(2, 9), st.integers(2, 9), st.booleans(), st.booleans(),
    st.sampled_from(["reflect", "replicate"]),
)  # fmt: skip
def test_padded_is_the_pad_of_torch_and_keeps_the_layout(batch, height, width, part, channels_last, mode):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(batch, 3, height + part, width + part).contiguous(memory_format=layout)[:, :, part:, part:]
    y = padded(x, mode)
    assert torch.equal(y, F.pad(x, (1, 1, 1, 1), mode=mode))
    assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("mode", [None, *UPSAMPLINGS])
@pytest.mark.parametrize("trained", [names for k in (1, 2, 3) for names in itertools.combinations("xwb", k)])
def test_gradients_flow_and_agree(trained, mode, relu):
    """Whatever wants one: in a frozen network what is added to a bias alone does."""
    torch.manual_seed(0)
    x, layer = torch.randn(2, 3, 5, 6), ReflectConv2d(3, 4).requires_grad_(False)
    each = {"x": x, "w": layer.weight, "b": torch.randn(4)}
    for name in trained:
        each[name].requires_grad_()
    wanted = [each[name] for name in trained]
    theirs = after_upsampling if mode else lambda x, w, b, mode: plain(x, w, b)
    ours = layer(x, upsampling=mode, relu=relu, shift=each["b"])
    plainly = theirs(x.double(), layer.weight.double(), (layer.bias + each["b"]).double(), mode)
    plainly = plainly.relu() if relu else plainly
    outward = torch.randn(ours.shape, dtype=torch.float64)
    found, exact = (torch.autograd.grad((y * outward).sum(), wanted) for y in (ours, plainly))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_kernels_that_inference_has_kept_take_gradients():
    """As when a painting is refined after a photo was stylized."""
    x, layer, shift = torch.randn(1, 3, 5, 6), ReflectConv2d(3, 4).requires_grad_(False), torch.zeros(4)
    with torch.inference_mode():
        wanted = layer(x, upsampling="bilinear")
    found = layer(x, upsampling="bilinear", shift=shift.requires_grad_())
    torch.testing.assert_close(found, wanted)
    assert torch.allclose(torch.autograd.grad(found.sum(), shift)[0], torch.full((4,), 120.0))


def test_input_is_not_changed():
    x, layer = torch.randn(1, 3, 5, 5), ReflectConv2d(3, 4)
    before = x.clone()
    with torch.no_grad():
        layer(x)
    assert torch.equal(x, before)


def test_one_pixel_has_nothing_to_reflect():
    with pytest.raises(ValueError, match="at least 2x2 pixels, got 1x5"):
        reflect_conv2d(torch.zeros(1, 1, 1, 5), torch.zeros(1, 1, 3, 3))


def test_takes_the_state_dict_of_conv2d():
    stock = torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    layer = ReflectConv2d(3, 4)
    layer.load_state_dict(stock.state_dict())
    x = torch.randn(1, 3, 6, 6)
    assert torch.allclose(layer(x), stock(x), atol=1e-6)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_whose_gradient_is_the_same_in_each_run(mode):
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    outward = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    wanted = F.pad(x, (1, 1, 1, 1), mode=mode)
    assert torch.equal(padded(x, mode), wanted)
    with torch.no_grad():
        assert torch.equal(padded(x, mode, 5), F.pad(wanted, (0, 5)))
    found, theirs = (torch.autograd.grad((y * outward).sum(), x)[0] for y in (padded(x, mode), wanted))
    assert torch.allclose(found, theirs, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (8, 1), (5, 9), (2, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_is_that_of_torch(size, layout, dtype):
    x = torch.randn(2, 5, *size).to(dtype).contiguous(memory_format=layout)
    wanted = F.max_pool2d(x, 2, ceil_mode=True)
    assert torch.equal(max_pool2x2(x), wanted)
    with torch.inference_mode():
        found = max_pool2x2(x)
    assert torch.equal(found, wanted) and found.is_contiguous(memory_format=layout)


@torch.inference_mode()
@pytest.mark.parametrize("upsampling", [None, *UPSAMPLINGS])
def test_what_the_benchmark_of_layers_compares_is_the_same(upsampling, monkeypatch):
    layer, x = ReflectConv2d(3, 4), torch.rand(1, 3, 9, 10)
    wanted = layer(x, upsampling=upsampling)
    function, ways = "upsampled_conv2d", bench_layers.UPSAMPLING
    if upsampling is None:
        function, ways = "reflect_conv2d", bench_layers.REFLECTING
    for way in ways.values():
        monkeypatch.setattr(f"styleapp.models.layers.{function}", way)
        torch.testing.assert_close(layer(x, upsampling=upsampling), wanted)
