import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from styleapp.norms import Moments, merge, moments, weighted_moments
from styleapp.norms.moments import _single_pass_moments


@given(
    st.tuples(*[st.integers(1, 5)] * 4),
    st.sets(st.integers(0, 3), min_size=1),
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(-100, 100),
)
def test_equals_numpy_in_float64(shape, over, dtype, offset):
    x = (torch.randn(shape, dtype=torch.float64) + offset).to(dtype)
    m = moments(x, sorted(over))
    wide = x.double().numpy()
    axes = tuple(sorted(over))
    assert m.count == np.prod([shape[i] for i in axes])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(m.mean, wide.mean(axes, keepdims=True), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(m.var, wide.var(axes, keepdims=True), rtol=10 * tolerance, atol=tolerance)


def test_large_mean_loses_no_accuracy():
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64) + 1e4
    m = moments(x.float())
    assert torch.allclose(m.var.double(), x.float().double().var((2, 3), correction=0, keepdim=True), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_half_precision_are_float32(dtype):
    x = torch.full((1, 1, 8, 8), 512.0, dtype=dtype)
    x[..., ::2] = -512
    m = moments(x)
    assert m.mean.dtype == m.var.dtype == torch.float32
    assert m.mean.item() == 0
    assert m.var.item() == 512**2


@pytest.mark.parametrize("way", [moments, lambda x: _single_pass_moments(x, (2, 3))], ids=["cpu", "gpu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 3, 300, 257), (2, 5, 8, 8), (3, 1, 1, 1), (1, 2, 3, 70_000), (1, 4, 1_000, 40)])
def test_half_precision_equals_float64(shape, dtype, layout, way):
    """With large means, in both memory formats, whole and cut out of a larger tensor."""
    x = torch.randn(*shape) * 2 + 50 * torch.rand(shape[0], shape[1], 1, 1)
    x = x.to(dtype).contiguous(memory_format=layout)
    for part in (x, x[..., 1:-1, 2:-1]) if shape[2] > 2 else (x,):
        with torch.inference_mode():
            m = way(part)
        wide = part.double()
        assert m.mean.dtype == m.var.dtype == torch.float32
        assert m.mean.shape == m.var.shape == (*shape[:2], 1, 1)
        assert torch.allclose(m.mean.double(), wide.mean((2, 3), keepdim=True), rtol=1e-5)
        assert torch.allclose(m.var.double(), wide.var((2, 3), correction=0, keepdim=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 64, 128, 128), (2, 12, 61, 301), (1, 512, 40, 64), (1, 3, 5, 7)])
def test_the_number_of_threads_changes_no_digit_of_half_precision(shape):
    x = (torch.randn(shape).exp() + 3).bfloat16().contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                found.append(moments(x))
    finally:
        torch.set_num_threads(before)
    for m in found[1:]:
        assert torch.equal(m.mean, found[0].mean) and torch.equal(m.var, found[0].var)


def test_memory_format_does_not_matter():
    x = torch.randn(2, 5, 6, 7)
    a, b = moments(x), moments(x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(a.mean, b.mean, atol=1e-6) and torch.allclose(a.var, b.var, atol=1e-6)


def test_gradients():
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def both(x):
        m = moments(x)
        return m.mean, m.var

    assert torch.autograd.gradcheck(both, x)
    assert torch.autograd.gradgradcheck(both, x)


def test_gradients_of_half_precision():
    """By autograd and by functional transforms, which hide what wants a gradient."""
    x = torch.randn(2, 3, 4, 5).bfloat16()

    def total(x: torch.Tensor) -> torch.Tensor:
        return (moments(x).var * 3 + moments(x).mean).sum()

    wanted = torch.func.grad(total)(x.double())
    leaf = x.clone().requires_grad_()
    total(leaf).backward()
    for found in (leaf.grad, torch.func.grad(total)(x), torch.vmap(torch.func.grad(total))(x[:, None])[:, 0]):
        assert torch.allclose(found.double(), wanted, rtol=2e-2, atol=1e-2)


def test_vmap():
    x = torch.randn(4, 2, 3, 5, 5)
    found = torch.func.vmap(lambda t: moments(t).var)(x)
    assert torch.allclose(found, torch.stack([moments(t).var for t in x]))


@pytest.mark.parametrize(("shape", "over"), [((2, 3, 0, 4), (2, 3)), ((2, 3, 4, 4), ())])
def test_nothing_to_average_is_an_error(shape, over):
    with pytest.raises(ValueError, match="at least one element"):
        moments(torch.zeros(shape), over)


@settings(max_examples=50)
@given(st.integers(2, 40), st.integers(1, 39), st.permutations(range(4)), st.floats(-1e3, 1e3))
def test_parts_merge_into_the_whole_in_any_order(height, cut, order, offset):
    x = torch.randn(2, 3, height, 7, dtype=torch.float64) + offset
    cut = min(cut, height - 1)
    parts = [x[:, :, :cut, :2], x[:, :, :cut, 2:], x[:, :, cut:, :5], x[:, :, cut:, 5:]]
    merged, whole = merge(*(moments(parts[i]) for i in order)), moments(x)
    assert merged.count == whole.count
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-12)
    assert torch.allclose(merged.var, whole.var, rtol=1e-9)


def test_merge_of_one_is_itself_and_of_none_an_error():
    m = Moments(3, torch.ones(1), torch.ones(1))
    assert merge(m) is m
    with pytest.raises(ValueError, match="at least one part"):
        merge()


class TestWeights:
    def test_zeros_and_ones_choose(self):
        x = torch.randn(2, 3, 7, 9)
        weight = (torch.rand(1, 1, 7, 9) < 0.4).float()
        found, wanted = weighted_moments(x, weight), moments(x[..., weight[0, 0] > 0].unsqueeze(2))
        assert found.count == wanted.count
        torch.testing.assert_close(found.mean, wanted.mean)
        torch.testing.assert_close(found.var, wanted.var)

    @given(st.floats(-100, 100), st.integers(0, 99))
    def test_equals_numpy_in_float64(self, offset, seed):
        torch.manual_seed(seed)
        x, weight = torch.randn(2, 3, 6, 5) + offset, torch.rand(1, 1, 6, 5)
        found = weighted_moments(x, weight)
        wide, w = x.double().numpy(), np.broadcast_to(weight.double().numpy(), x.shape)
        mean = np.average(wide, (2, 3), w)[..., None, None]
        np.testing.assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.var, np.average((wide - mean) ** 2, (2, 3), w)[..., None, None], rtol=1e-4)

    def test_one_weight_for_all_is_none(self):
        x = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
        found = weighted_moments(x, torch.full((1, 1, 8, 8), 0.25))
        torch.testing.assert_close((found.mean, found.var), (moments(x).mean, moments(x).var))
        assert found.count == 16 and found.mean.dtype == torch.float32

    def test_parts_merge(self):
        x, weight = torch.randn(1, 3, 12, 10, dtype=torch.float64), torch.rand(1, 1, 12, 10, dtype=torch.float64)
        parts = [weighted_moments(x[..., rows, :], weight[..., rows, :]) for rows in (slice(0, 5), slice(5, 12))]
        found, wanted = merge(*parts), weighted_moments(x, weight)
        assert found.count == pytest.approx(wanted.count)
        torch.testing.assert_close((found.mean, found.var), (wanted.mean, wanted.var))

    def test_finer_weights_are_averaged(self):
        x, weight = torch.randn(1, 3, 4, 4), torch.rand(1, 1, 8, 8)
        coarse = weight.view(1, 1, 4, 2, 4, 2).mean((3, 5))
        torch.testing.assert_close(weighted_moments(x, weight).var, weighted_moments(x, coarse).var)

    def test_gradient(self):
        x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
        weight = torch.rand(1, 1, 3, 4, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda t: weighted_moments(t, weight).var, (x,))

    def test_nothing_that_counts(self):
        with pytest.raises(ValueError, match="a weight above 0"):
            weighted_moments(torch.randn(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))


@torch.no_grad()
def test_of_whole_numbers():
    x = torch.randint(256, (2, 5, 33, 17), dtype=torch.uint8)
    for layout in (torch.contiguous_format, torch.channels_last):
        found, exact = moments(x.contiguous(memory_format=layout)), moments(x.double())
        torch.testing.assert_close(found.mean.double(), exact.mean, rtol=1e-6, atol=0)
        torch.testing.assert_close(found.var.double(), exact.var, rtol=1e-6, atol=0)
