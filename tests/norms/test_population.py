import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from styleapp.norms import (
    BatchNorm,
    FrozenBatchNorm,
    batch_statistics,
    checkpoint_safe,
    momentum_from_keep,
    precise_statistics,
    shuffle_batch,
    unshuffle_batch,
)


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same_state(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def test_momentum_of_the_papers():
    bn, mean = BatchNorm(2, momentum=momentum_from_keep(0.9)), torch.zeros(2)
    for _ in range(3):
        x = torch.randn(5, 2)
        bn(x)
        mean = 0.9 * mean + 0.1 * x.mean(0)
    assert torch.allclose(bn.running_mean, mean, atol=1e-6)
    with pytest.raises(ValueError, match="from 0 to 1, got 1.5"):
        momentum_from_keep(1.5)


class TestFrozen:
    def test_fresh_is_the_identity_exactly(self):
        x = torch.randn(2, 4, 3, 3)
        assert torch.equal(FrozenBatchNorm(4)(x), x)

    @pytest.mark.parametrize("tracked", [True, False])
    def test_loads_checkpoints_of_batch_norm(self, tracked):
        bn = nn.BatchNorm2d(3).eval()
        with torch.no_grad():
            for p in [*bn.parameters(), bn.running_mean]:
                p.normal_()
            bn.running_var.uniform_(0.5, 2)
        saved = bn.state_dict()
        if not tracked:
            del saved["num_batches_tracked"]
        frozen = FrozenBatchNorm(3)
        frozen.load_state_dict(saved)
        x = torch.randn(2, 3, 4, 4)
        assert torch.allclose(frozen(x), bn(x), atol=1e-6)
        assert not list(frozen.parameters())
        other = FrozenBatchNorm2d(3)
        other.load_state_dict(frozen.state_dict())
        assert torch.allclose(other(x), bn(x), atol=1e-6)

    def test_loads_batch_norm_without_affine(self):
        bn = BatchNorm(3, affine=False)
        bn(torch.randn(8, 3))
        frozen = FrozenBatchNorm(3)
        frozen.load_state_dict(bn.state_dict())
        x = torch.randn(4, 3)
        assert torch.allclose(frozen(x), bn.eval()(x), atol=1e-6)

    def test_folds_into_a_convolution(self):
        conv, frozen = nn.Conv2d(2, 3, 3), FrozenBatchNorm(3)
        frozen.running_var.uniform_(0.5, 2)
        frozen.running_mean.normal_()
        x = torch.randn(1, 2, 5, 5)
        wanted = frozen(conv(x))
        scale, shift = frozen.scale_and_shift()
        with torch.no_grad():
            conv.weight *= scale.view(-1, 1, 1, 1)
            conv.bias.copy_(conv.bias * scale + shift)
        assert torch.allclose(conv(x), wanted, atol=1e-5)

    def test_gradient(self):
        frozen = FrozenBatchNorm(2).double()
        frozen.running_var.uniform_(0.5, 2)
        assert torch.autograd.gradcheck(frozen, torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True))


class TestPrecise:
    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.floats(-1e3, 1e3), st.integers(0, 2))
    def test_equals_numpy_whatever_the_batches(self, sizes, offset, dims):
        sizes[0] += 1
        batches = [torch.randn(n, 3, *[3] * dims) + offset for n in sizes]
        batches = [b if b[:, 0].numel() > 1 else torch.cat([b, b + 1]) for b in batches]
        bn = BatchNorm(3)
        assert precise_statistics(bn, batches) == []
        everything = torch.cat([b.movedim(1, -1).flatten(0, -2) for b in batches]).double().numpy()
        np.testing.assert_allclose(bn.running_mean, everything.mean(0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(bn.running_var, everything.var(0), rtol=1e-5)

    def test_layers_see_what_batch_statistics_make_of_the_layers_before(self):
        model = nn.Sequential(BatchNorm(2), nn.ReLU(), nn.Conv2d(2, 3, 1), BatchNorm(3)).eval()
        batches = [torch.randn(4, 2, 5, 5) for _ in range(3)]
        with torch.no_grad():
            inner = [model[2](torch.relu(nn.BatchNorm2d(2)(b))) for b in batches]
        precise_statistics(model, batches)
        assert torch.allclose(model[3].running_mean, torch.cat(inner).mean((0, 2, 3)), atol=1e-6)

    def test_everything_else_is_as_before(self):
        model = nn.Sequential(BatchNorm(2, momentum=None), nn.Dropout(0.5), nn.Linear(2, 2)).eval()
        model[0].train()
        model(torch.randn(3, 2))
        before = state(model)
        precise_statistics(model, [torch.randn(4, 2)])
        after = state(model)
        assert torch.equal(before["0.num_batches_tracked"], after["0.num_batches_tracked"])
        assert model[0].momentum is None and model[0].training and not model[1].training
        assert not model[0]._forward_hooks
        assert not torch.equal(before["0.running_mean"], after["0.running_mean"])

    def test_an_error_changes_nothing(self):
        model = nn.Sequential(BatchNorm(2), nn.Linear(2, 2)).eval()
        model.train()(torch.randn(5, 2))
        before = state(model.eval())
        with pytest.raises(ValueError, match="channels"):
            precise_statistics(model, [torch.randn(4, 2), torch.randn(4, 3)])
        assert same_state(state(model), before)
        assert model[0].momentum == 0.1 and not model[0].training and not model[0]._forward_hooks

    def test_a_layer_that_never_ran_is_named_and_untouched(self):
        model = nn.ModuleDict({"used": BatchNorm(2), "unused": BatchNorm(2)})
        before = state(model["unused"])
        left = precise_statistics(model, [torch.randn(4, 2)], lambda m, x: m["used"](x))
        assert left == ["unused"] and same_state(state(model["unused"]), before)

    def test_a_layer_used_twice(self):
        bn = BatchNorm(2)
        a, b = torch.randn(4, 2), torch.randn(6, 2) + 5
        precise_statistics(bn, [(a, b)], lambda m, pair: [m(x) for x in pair])
        assert torch.allclose(bn.running_mean, torch.cat([a, b]).mean(0), atol=1e-6)

    def test_ema_lags_behind_precise(self):
        """What docs/norms.md says: while weights move the EMA mixes in statistics of older weights."""
        torch.manual_seed(0)
        data = [torch.randn(32, 4) for _ in range(20)]
        model = nn.Sequential(nn.Linear(4, 4), BatchNorm(4, momentum=0.01))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        for x in data:
            optimiser.zero_grad()
            (model(x) - x.roll(1, 1)).square().mean().backward()
            optimiser.step()
        ema = model[1].running_var.clone()
        precise_statistics(model, data)
        with torch.no_grad():
            truth = model[0](torch.cat(data)).var(0, correction=0)
        assert (model[1].running_var - truth).abs().max() < 1e-5
        assert (ema - truth).abs().max() > 0.1


def test_batch_statistics_in_evaluation():
    bn = BatchNorm(3).eval()
    before = state(bn)
    x = torch.randn(5, 3, 4, 4) + 2
    with batch_statistics(bn):
        found = bn(x)
    assert torch.equal(found, nn.BatchNorm2d(3)(x))
    assert same_state(state(bn), before) and not bn.training and bn.momentum == 0.1
    with pytest.raises(ZeroDivisionError), batch_statistics(bn):
        bn(x)
        _ = 1 / 0
    assert same_state(state(bn), before) and not bn.training


def test_shuffle_and_back():
    x = torch.arange(12.0).view(6, 2)
    shuffled, order = shuffle_batch(x, torch.Generator().manual_seed(1))
    assert not torch.equal(shuffled, x)
    assert torch.equal(unshuffle_batch(shuffled, order), x)


class TestCheckpointing:
    def train(self, bn, reentrant, steps=3):
        """The state after some steps under checkpointing, or in the plain way."""
        torch.manual_seed(7)
        for _ in range(steps):
            x = torch.randn(6, 3, 4, 4, requires_grad=True)
            y = bn(x) if reentrant is None else checkpoint(bn, x, use_reentrant=reentrant)
            y.square().sum().backward()
        return state(bn)

    @pytest.mark.parametrize("reentrant", [True, False])
    @pytest.mark.parametrize("momentum", [0.1, 0.7, None])
    def test_exact_equals_plain_training(self, reentrant, momentum):
        plain = self.train(nn.BatchNorm2d(3, momentum=momentum), None)
        safe = self.train(checkpoint_safe(nn.BatchNorm2d(3, momentum=momentum)), reentrant)
        twice = self.train(nn.BatchNorm2d(3, momentum=momentum), reentrant)
        assert same_state(plain, safe)
        assert twice["num_batches_tracked"] == 6 and safe["num_batches_tracked"] == 3
        if momentum is not None:
            assert not torch.allclose(plain["running_mean"], twice["running_mean"])

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_momentum_rule_equals_plain_training(self, reentrant):
        plain = self.train(BatchNorm(3, momentum=0.3), None)
        ruled = self.train(checkpoint_safe(BatchNorm(3, momentum=0.3), exact=False), reentrant)
        for key in ("running_mean", "running_var"):
            assert torch.allclose(plain[key], ruled[key], atol=1e-6)
        assert ruled["num_batches_tracked"] == 6  # the rule cannot know; the exact way can
        assert checkpoint_safe(BatchNorm(3, momentum=0.3), exact=False).momentum == 1 - math.sqrt(0.7)
        with pytest.raises(ValueError, match="needs a momentum"):
            checkpoint_safe(BatchNorm(3, momentum=None), exact=False)

    def test_gradients_are_those_of_plain_training(self):
        bn, x = checkpoint_safe(BatchNorm(3)), torch.randn(5, 3, 2, 2, requires_grad=True)
        a = torch.autograd.grad(checkpoint(bn, x, use_reentrant=False).pow(3).sum(), x)[0]
        b = torch.autograd.grad(nn.BatchNorm2d(3)(x).pow(3).sum(), x)[0]
        assert torch.allclose(a, b, atol=1e-5)

    def test_outside_a_checkpoint_nothing_changes(self):
        assert same_state(self.train(nn.BatchNorm2d(3), None), self.train(checkpoint_safe(nn.BatchNorm2d(3)), None))
