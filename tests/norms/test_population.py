import copy
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
    BatchRenorm,
    DecorrelatedBatchNorm,
    DomainBatchNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    ModeNorm,
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


class TestGhost:
    def test_parts_are_normalised_by_themselves_and_tracked_in_turn(self):
        x = torch.randn(10, 3, 4, 4)
        ghost, plain = GhostBatchNorm(3, virtual_batch_size=4), nn.BatchNorm2d(3)
        wanted = torch.cat([plain(part) for part in x.tensor_split(3)])
        assert torch.equal(ghost(x), wanted)
        assert same_state(ghost.state_dict(), plain.state_dict())
        assert torch.equal(ghost.eval()(x), plain.eval()(x))

    def test_large_virtual_batch_is_batch_norm(self):
        x = torch.randn(6, 3, 2, 2)
        assert torch.equal(GhostBatchNorm(3, virtual_batch_size=6)(x), nn.BatchNorm2d(3)(x))
        with pytest.raises(ValueError, match="at least 1"):
            GhostBatchNorm(3, virtual_batch_size=0)


def test_domains_have_their_own_statistics_and_a_common_affine():
    norm = DomainBatchNorm(3, 2)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict({"weight": norm.weight, "bias": norm.bias}, strict=False)
    x = torch.randn(4, 3, 5, 5) + 3
    assert torch.allclose(norm(x, 1), plain(x), atol=1e-5)
    assert norm.domains[0].num_batches_tracked == 0
    assert torch.equal(norm.domains[1].running_mean, plain.running_mean)
    with pytest.raises(IndexError, match="domain must be 0 to 1, got 2"):
        norm(x, 2)


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


class TestRenorm:
    X = 2 * torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1

    def renorm(self, **options):
        norm = BatchRenorm(3, **options).double()
        with torch.no_grad():
            for p in norm.parameters():
                p.normal_()
            norm.running_mean.copy_(torch.tensor([0.0, 1.0, 9.0]))
            norm.running_var.copy_(torch.tensor([4.0, 0.3, 1.0]))
        return norm

    def test_is_algorithm_1(self):
        norm = self.renorm(r_max=1.5, d_max=0.7, momentum=0.2)
        x = self.X.numpy()
        mean, std = x.mean((0, 2, 3)), np.sqrt(x.var((0, 2, 3)) + 1e-5)
        running, deviation = norm.running_mean.numpy().copy(), np.sqrt(norm.running_var.numpy() + 1e-5)
        r, d = np.clip(std / deviation, 1 / 1.5, 1.5), np.clip((mean - running) / deviation, -0.7, 0.7)
        assert r[1] == 1.5 and d[2] == -0.7  # the limits hold

        def column(t):
            return t.reshape(1, 3, 1, 1)

        gamma, beta = (p.detach().numpy() for p in (norm.weight, norm.bias))
        hat = (x - column(mean)) / column(std) * column(r) + column(d)
        np.testing.assert_allclose(norm(self.X).detach(), column(gamma) * hat + column(beta), atol=1e-12)
        np.testing.assert_allclose(norm.running_mean, running + 0.2 * (mean - running), atol=1e-12)
        new = deviation + 0.2 * (std - deviation)
        np.testing.assert_allclose((norm.running_var + 1e-5).sqrt(), new, atol=1e-12)
        wanted = column(gamma) * (x - column(running + 0.2 * (mean - running))) / column(new) + column(beta)
        np.testing.assert_allclose(norm.eval()(self.X).detach(), wanted, atol=1e-12)

    def test_without_room_it_is_batch_norm(self):
        norm, plain = self.renorm(r_max=1, d_max=0), BatchNorm(3).double()
        plain.load_state_dict(norm.state_dict())
        assert torch.allclose(norm(self.X), plain(self.X), atol=1e-12)

    def test_within_the_limits_training_gives_what_evaluation_gives(self):
        norm = self.renorm(r_max=100, d_max=100)
        wanted = copy.deepcopy(norm).eval()(self.X)
        assert torch.allclose(norm(self.X), wanted, atol=1e-12)

    def test_gradients_see_the_moments_of_the_batch_but_not_r_and_d(self):
        norm = self.renorm(r_max=1.5, d_max=0.7)
        before = state(norm)
        x = self.X.clone().requires_grad_()
        weight = torch.randn_like(x)
        (norm(x) * weight).sum().backward()
        std = (self.X.var((0, 2, 3), correction=0) + 1e-5).sqrt()
        r = (std / (before["running_var"] + 1e-5).sqrt()).clamp(1 / 1.5, 1.5)
        z = self.X.clone().requires_grad_()
        (nn.functional.batch_norm(z, None, None, norm.weight * r, None, training=True) * weight).sum().backward()
        assert torch.allclose(x.grad, z.grad, atol=1e-12)

    def test_average_of_all_and_errors(self):
        norm = BatchRenorm(3, momentum=None).double()
        for x in (self.X, 3 * self.X):
            norm(x)
        assert torch.allclose(norm.running_mean, 2 * self.X.mean((0, 2, 3))) and norm.num_batches_tracked == 2
        with pytest.raises(ValueError, match="r_max must be at least 1 and d_max at least 0, got 0.5 and 1"):
            BatchRenorm(3, r_max=0.5, d_max=1)
        with pytest.raises(ValueError, match="more than 1 value"):
            BatchRenorm(3)(torch.randn(1, 3))


class TestDecorrelated:
    X = torch.randn(6, 8, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    MIXED = torch.einsum("oc,nchw->nohw", torch.linspace(-1, 2, 64, dtype=torch.float64).view(8, 8).cos(), X) + X + 5

    @staticmethod
    def covariance(x):
        return np.cov(x.detach().transpose(0, 1).flatten(1).numpy(), bias=True)

    def test_zca_by_numpy(self):
        norm = DecorrelatedBatchNorm(8, iterations=None).double()
        y = norm(self.MIXED)
        flat = self.MIXED.transpose(0, 1).flatten(1).numpy()
        centred = flat - flat.mean(1, keepdims=True)
        values, vectors = np.linalg.eigh(centred @ centred.T / flat.shape[1] + 1e-5 * np.eye(8))
        wanted = vectors @ np.diag(values**-0.5) @ vectors.T @ centred
        np.testing.assert_allclose(y.detach().transpose(0, 1).flatten(1), wanted, atol=1e-9)
        np.testing.assert_allclose(self.covariance(y), np.eye(8), atol=1e-3)

    def test_newton_goes_there(self):
        def whitened(iterations):
            return DecorrelatedBatchNorm(8, iterations=iterations, affine=False).double()(self.MIXED)

        errors = [float((whitened(t) - whitened(None)).abs().max()) for t in (2, 5, 20, 100)]
        assert errors[0] > errors[1] > errors[2] and max(errors[2:]) < 1e-9  # and rounding does not grow

    def test_iternorm_is_algorithm_1(self):
        norm = DecorrelatedBatchNorm(8, num_groups=2).double()
        flat = self.MIXED.transpose(0, 1).reshape(2, 4, -1).numpy()
        wanted = []
        for group in flat:
            centred = group - group.mean(1, keepdims=True)
            sigma = centred @ centred.T / group.shape[1] + 1e-5 * np.eye(4)
            p = np.eye(4)
            for _ in range(5):
                p = (3 * p - p @ p @ p @ (sigma / np.trace(sigma))) / 2
            wanted.append(p / np.sqrt(np.trace(sigma)) @ centred)
        found = norm(self.MIXED).detach().transpose(0, 1).reshape(2, 4, -1)
        np.testing.assert_allclose(found, np.stack(wanted), atol=1e-10)

    def test_groups_of_one_channel_are_batch_norm(self):
        norm, plain = DecorrelatedBatchNorm(8, num_groups=8, iterations=None).double(), BatchNorm(8).double()
        assert torch.allclose(norm(self.MIXED), plain(self.MIXED), atol=1e-12)

    def test_evaluation_takes_the_averages(self):
        norm = DecorrelatedBatchNorm(8, num_groups=2, momentum=None).double()
        for x in (self.MIXED, 2 * self.MIXED):
            norm(x)
        assert torch.allclose(norm.running_mean, 1.5 * self.MIXED.mean((0, 2, 3)))
        centred = (self.MIXED - norm.running_mean.view(1, 8, 1, 1)).transpose(0, 1).reshape(2, 4, -1)
        wanted = (norm.running_whitening @ centred).view(8, 6, 5, 4).transpose(0, 1)
        assert torch.allclose(norm.eval()(self.MIXED), wanted, atol=1e-12)
        assert torch.equal(DecorrelatedBatchNorm(8).eval()(self.X.float()), self.X.float())

    def test_errors(self):
        with pytest.raises(ValueError, match="divisible by num_groups, got 8 and 3"):
            DecorrelatedBatchNorm(8, num_groups=3)
        with pytest.raises(ValueError, match=r"takes \(N, 8, \*\), got \(2, 4\)"):
            DecorrelatedBatchNorm(8)(torch.randn(2, 4))
        with pytest.raises(ValueError, match="more than 1 value"):
            DecorrelatedBatchNorm(8)(torch.randn(1, 8))


class TestModeNorm:
    x = 3 * torch.randn(5, 4, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 2

    def norm(self, modes: int, **options) -> ModeNorm:
        torch.manual_seed(7)
        norm = ModeNorm(4, modes=modes, **options).double()
        for parameter in norm.parameters():
            nn.init.normal_(parameter, 0.5)
        return norm

    def test_the_formula(self):
        norm, x = self.norm(3), self.x
        shares = (x.mean((2, 3)) @ norm.gate.weight.T + norm.gate.bias).softmax(1)
        wanted = torch.zeros_like(x)
        for k in range(3):
            g = shares[:, k].view(-1, 1, 1, 1)
            mean = (g * x).mean((2, 3), keepdim=True).sum(0, keepdim=True) / g.sum()
            var = (g * (x - mean) ** 2).mean((2, 3), keepdim=True).sum(0, keepdim=True) / g.sum()
            wanted += g * (x - mean) / (var + norm.eps).sqrt()
        wanted = wanted * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        assert torch.allclose(norm(x), wanted, atol=1e-12)

    @pytest.mark.parametrize("shape", [(6, 4, 9), (6, 4, 3, 5)])
    def test_one_mode_is_batch_norm(self, shape):
        norm, plain = ModeNorm(4, modes=1, momentum=1.0), BatchNorm(4, momentum=1.0)
        x = torch.randn(shape)
        assert torch.allclose(norm(x), plain(x), atol=1e-5)
        count = x.numel() / 4
        assert torch.allclose(norm.running_var[0] * count / (count - 1), plain.running_var, atol=1e-5)
        assert torch.allclose(norm.eval()(x), norm.train()(x), atol=1e-5)

    def test_modes_that_are_apart_are_normalised_apart(self):
        norm = ModeNorm(4).double()
        with torch.no_grad():
            norm.gate.weight.copy_(torch.tensor([[100.0] * 4, [-100.0] * 4]))
        light, dark = self.x.abs() + 3, -2 * self.x.abs() - 1
        found = norm(torch.cat([light, dark]))
        for part, y in zip((light, dark), found.chunk(2), strict=True):
            assert torch.allclose(y, BatchNorm(4).double()(part), atol=1e-9)
        assert torch.allclose(norm(light), found[:5], atol=1e-9)  # a mode that has no samples does no harm

    @pytest.mark.parametrize("momentum", [0.3, None])
    def test_running_averages_are_those_of_x_and_of_its_square(self, momentum):
        norm = self.norm(2, momentum=momentum)
        mean, square = torch.zeros(2, 4), torch.ones(2, 4)
        for i in range(3):
            x = (i + 1) * self.x + i
            shares = (x.mean((2, 3)) @ norm.gate.weight.T + norm.gate.bias).softmax(1).T.detach()
            shares = shares / shares.sum(1, keepdim=True)
            new = momentum or 1 / (i + 1)
            mean = (1 - new) * mean + new * shares @ x.mean((2, 3))
            square = (1 - new) * square + new * shares @ (x**2).mean((2, 3))
            norm(x)
        assert torch.allclose(norm.running_mean, mean.double(), atol=1e-12)
        assert torch.allclose(norm.running_var, square - mean**2, atol=1e-10)
        assert norm.num_batches_tracked == 3

        norm.eval()
        before = state(norm)
        whole = norm(self.x)
        assert same_state(before, state(norm))
        assert torch.allclose(whole, torch.cat([norm(x) for x in self.x.split(1)]), atol=1e-12)

    def test_what_it_refuses(self):
        with pytest.raises(ValueError, match="modes must be at least 1, got 0"):
            ModeNorm(4, modes=0)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            ModeNorm(4)(torch.zeros(1, 4, 1, 1))
        with pytest.raises(ValueError, match="4"):
            ModeNorm(4)(torch.zeros(2, 3, 5, 5))
        assert torch.equal(ModeNorm(4)(torch.zeros(2, 4, 3, 3)), torch.zeros(2, 4, 3, 3))
