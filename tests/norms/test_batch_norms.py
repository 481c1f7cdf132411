import copy

import numpy as np
import pytest
import torch
from test_population import same_state, state
from torch import nn

from styleapp.norms import (
    BatchNorm,
    BatchRenorm,
    DecorrelatedBatchNorm,
    DomainBatchNorm,
    GhostBatchNorm,
    ModeNorm,
    RepresentativeBatchNorm,
    VirtualBatchNorm,
)


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


class TestVirtual:
    X, REFERENCE = (3 * torch.randn(n, 4, 5, 6, dtype=torch.float64) + 2 for n in (3, 7))

    def test_each_sample_is_normalised_with_the_reference_batch(self):
        norm = VirtualBatchNorm(4).double()
        with torch.no_grad():
            for p in norm.parameters():
                p.normal_()
        plain = nn.BatchNorm2d(4).double()
        plain.load_state_dict(norm.state_dict(), strict=False)
        wanted = torch.cat([plain(torch.cat([self.REFERENCE, x]))[-1:] for x in self.X.split(1)])
        assert torch.allclose(norm(self.X, self.REFERENCE), wanted, atol=1e-12)
        assert torch.equal(norm.eval()(self.X, self.REFERENCE)[:1], norm(self.X[:1], self.REFERENCE))

    def test_the_reference_batch_itself_is_batch_norm(self):
        wanted = nn.BatchNorm2d(4).double()(self.REFERENCE)
        assert torch.allclose(VirtualBatchNorm(4).double()(self.REFERENCE, self.REFERENCE), wanted, atol=1e-12)

    def test_other_shapes(self):
        norm = VirtualBatchNorm(4, affine=False)
        assert norm(torch.randn(2, 4, 9), torch.randn(5, 4, 3)).shape == (2, 4, 9)
        with pytest.raises(ValueError, match=r"takes \(N, 4, \*\) with a spatial part, got \(5, 3, 2, 2\)"):
            norm(torch.randn(2, 4, 9), torch.randn(5, 3, 2, 2))


class TestRepresentative:
    X = 3 * torch.randn(5, 4, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 2

    def test_starts_as_batch_norm_times_a_number(self):
        wanted = nn.BatchNorm2d(4).double()(self.X) * torch.tensor(1.0, dtype=torch.float64).sigmoid()
        assert torch.allclose(RepresentativeBatchNorm(4).double()(self.X), wanted, atol=1e-12)
        assert torch.allclose(RepresentativeBatchNorm(4, affine=False).double()(self.X), wanted, atol=1e-12)

    def test_the_formula(self):
        norm = RepresentativeBatchNorm(4).double()
        with torch.no_grad():
            for p in norm.parameters():
                p.normal_()
        w_m, w_v, w_b, gamma, beta = (
            p.detach().view(1, 4, 1, 1)
            for p in (norm.center_weight, norm.scale_weight, norm.scale_bias, norm.weight, norm.bias)
        )
        for mode in (True, False):  # the running statistics are those of x', once
            x = self.X + w_m * self.X.mean((2, 3), keepdim=True)
            if mode:
                mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
            else:
                count = x.numel() / 4
                mean, var = 0.1 * mean, 0.9 + 0.1 * var * count / (count - 1)
            hat = (x - mean) / (var + 1e-5).sqrt()
            wanted = gamma * hat * (w_v * hat.mean((2, 3), keepdim=True) + w_b).sigmoid() + beta
            assert torch.allclose(norm.train(mode)(self.X), wanted, atol=1e-9)
