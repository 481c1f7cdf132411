"""Stock norms against torch.nn, the grid against float64 written from the equations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from styleapp.norms import (
    OVER,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LayerNorm2d,
    Norm,
    RMSNorm,
    pool_moments,
    statistics,
)

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
dtypes = st.sampled_from([torch.float32, torch.float64])
spatial = st.lists(st.integers(2, 5), min_size=1, max_size=3)


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    return module


def agree(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """Output, gradients and buffers, after a state dict moved from ours to theirs and back."""
    randomised(ours).to(x.dtype)
    theirs.to(x.dtype).load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    tolerance = TOLERANCE[x.dtype]
    results = []
    for module in (ours, theirs):
        t = x.clone().requires_grad_()
        y = module(t)
        weight = torch.linspace(-1, 1, y.numel(), dtype=x.dtype).view(y.shape)
        grads = torch.autograd.grad((y * weight).sum(), [t, *module.parameters()])
        results.append([y, *grads, *module.buffers()])
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b.double()).abs().max() <= tolerance * max(1, float(b.detach().abs().max()))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 4), st.integers(1, 6), st.lists(st.integers(1, 5), max_size=3), dtypes, st.booleans(), st.booleans()
)
def test_batch_norm(n, c, shape, dtype, training, affine):
    theirs = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(shape)](c, affine=affine)
    ours = BatchNorm(c, affine=affine)
    for _ in range(2):  # the second time with running statistics that are not fresh
        agree(ours.train(training), theirs.train(training), torch.randn(n, c, *shape, dtype=dtype))


@pytest.mark.parametrize(
    "options", [{"momentum": None}, {"momentum": 0.3}, {"track_running_stats": False}, {"eps": 0.1}, {"affine": False}]
)
@pytest.mark.parametrize("training", [True, False])
def test_options_of_batch_norm(options, training):
    agree(
        BatchNorm(3, **options).train(training), nn.BatchNorm2d(3, **options).train(training), torch.randn(4, 3, 5, 5)
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), spatial, dtypes, st.booleans(), st.booleans())
def test_instance_norm(n, c, shape, dtype, affine, track):
    theirs = [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d][len(shape) - 1]
    options = {"affine": affine, "track_running_stats": track}
    agree(InstanceNorm(c, **options), theirs(c, **options), torch.randn(n, c, *shape, dtype=dtype))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.sampled_from([(4, 1), (4, 2), (6, 3), (5, 5)]), spatial, dtypes)
def test_group_norm(n, groups, shape, dtype):
    c, g = groups
    agree(GroupNorm(c, num_groups=g), nn.GroupNorm(g, c), torch.randn(n, c, *shape, dtype=dtype))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=2), st.lists(st.integers(1, 5), min_size=1, max_size=3), dtypes)
def test_layer_and_rms_norm(leading, trailing, dtype):
    x = torch.randn(*leading, *trailing, dtype=dtype)
    agree(LayerNorm(trailing), nn.LayerNorm(trailing), x)
    agree(LayerNorm(trailing, bias=False), nn.LayerNorm(trailing, bias=False), x)
    agree(RMSNorm(trailing), nn.RMSNorm(trailing, eps=1e-5), x)


def test_layer_norm_2d_is_layer_norm_at_each_position():
    x = torch.randn(2, 5, 3, 4)
    ours, theirs = randomised(LayerNorm2d(5)), nn.LayerNorm(5)
    theirs.load_state_dict(ours.state_dict())
    wanted = theirs(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.equal(ours(x), wanted)
    assert torch.equal(ours(x.contiguous(memory_format=torch.channels_last)), wanted)


def test_layer_norm_of_tokens_ignores_padding():
    norm, text = LayerNorm(8), torch.randn(1, 4, 8)
    padded = torch.cat([text, torch.full((1, 3, 8), 100.0)], 1)
    assert torch.equal(norm(padded)[:, :4], norm(text))


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (BatchNorm(3), (3,), r"BatchNorm takes 2 to 5 dims"),
        (BatchNorm(3), (2, 4, 5), r"BatchNorm has 3 channels, the input 4"),
        (BatchNorm(3), (1, 3), "more than 1 value per channel"),
        (InstanceNorm(3), (2, 3), "InstanceNorm takes 3 to 5 dims"),
        (InstanceNorm(3), (2, 3, 1, 1), "more than 1 spatial element"),
    ],
)
def test_bad_shapes(module, shape, message):
    with pytest.raises(ValueError, match=message):
        module(torch.randn(shape))


def test_empty_batch():
    """As torch: nothing in, nothing out, and running statistics stay."""
    empty = torch.randn(0, 4, 5, 5)
    for norm in (GroupNorm(4, num_groups=2), LayerNorm((4, 5, 5)), LayerNorm2d(4), RMSNorm(5), BatchNorm(4)):
        assert norm(empty).shape == empty.shape
    bn = BatchNorm(4)
    bn(empty)
    assert bn.running_mean.tolist() == [0] * 4 and bn.running_var.tolist() == [1] * 4


def by_hand(x, over, groups, eps):
    """y = (x - μ) / sqrt(σ² + ε) in float64 with loops over what shares a mean."""
    x = x.double().numpy()
    y = np.empty_like(x)
    n, c = x.shape[:2]
    size = c // (groups or c)
    for i in range(n):
        for j in range(c):
            k = j // size * size
            part = {"batch": x[:, j], "layer": x[i], "instance": x[i, j], "group": x[i, k : k + size]}.get(over, x[i])
            axis = 0 if over == "position" else None
            y[i, j] = (x[i, j] - part.mean(axis)) / np.sqrt(part.var(axis) + eps)
    return y


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(OVER), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), spatial, dtypes)
def test_the_grid_is_the_formula(over, n, groups, size, shape, dtype):
    x = 2 * torch.randn(n, groups * size, *shape).to(dtype) + 1
    norm = Norm(groups * size, over, num_groups=groups, eps=1e-3, affine=False)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(norm(x), by_hand(x, over, groups if over == "group" else None, 1e-3), atol=tolerance)


class TestEquivalences:
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def same(self, a, b):
        assert (a - b).abs().max() < 1e-12

    def test_group_norm_of_c_groups_is_instance_norm(self):
        self.same(GroupNorm(6, num_groups=6).double()(self.x), InstanceNorm(6).double()(self.x))
        self.same(Norm(6, "group", num_groups=6).double()(self.x), Norm(6, "instance").double()(self.x))

    def test_group_norm_of_one_group_is_layer_norm_over_chw(self):
        self.same(GroupNorm(6, num_groups=1).double()(self.x), LayerNorm((6, 4, 5)).double()(self.x))
        self.same(Norm(6, "group", num_groups=1).double()(self.x), Norm(6, "layer").double()(self.x))

    def test_batch_norm_of_one_sample_is_instance_norm(self):
        one = self.x[:1]
        self.same(BatchNorm(6).double()(one), InstanceNorm(6).double()(one))

    @pytest.mark.parametrize(
        ("over", "named"),
        [
            ("batch", BatchNorm(6)),
            ("layer", GroupNorm(6, num_groups=1)),
            ("instance", InstanceNorm(6)),
            ("group", GroupNorm(6, num_groups=2)),
            ("position", LayerNorm2d(6)),
        ],
    )
    def test_named_norms_are_points_of_the_grid(self, over, named):
        plain = Norm(6, over, num_groups=2).double()
        randomised(plain)
        named.double().load_state_dict(plain.state_dict(), strict=False)
        self.same(named(self.x), plain(self.x))


def test_statistics_name_what_is_wrong():
    with pytest.raises(ValueError, match="unknown statistics 'chanel'; choices: batch, layer, instance, group"):
        statistics(torch.zeros(1, 4, 2, 2), "chanel")
    with pytest.raises(ValueError, match="must divide the 4 channels, got 3"):
        statistics(torch.zeros(1, 4, 2, 2), "group", 3)
    with pytest.raises(ValueError, match="unknown statistics"):
        Norm(4, "chanel")


def test_moments_of_positions_do_not_follow_from_those_of_instances():
    with pytest.raises(ValueError, match="no statistics 'position' follow from those of instances; choices: instance"):
        pool_moments(statistics(torch.randn(1, 4, 2, 2)), "position")
