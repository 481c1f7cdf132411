"""Norms whose statistics reach over several steps, against the papers' formulas written out in numpy, in float64."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from styleapp.norms import (
    BatchNorm,
    CrossIterationBatchNorm,
    MovingAverageBatchNorm,
    OnlineNorm,
    center_weight,
    convert_sync,
)


def stream(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(*shape, dtype=torch.float64, generator=draw) + 1 for _ in range(count)]


def trained(norm: nn.Module, x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What it makes of x, and the gradient of x for that of the output."""
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(g)
    return y.detach(), x.grad


def shaken(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in norm.parameters():
            p.normal_(generator=torch.Generator().manual_seed(1))
    return norm.double()


class TestCrossIteration:
    @staticmethod
    def layers(**options):
        torch.manual_seed(0)
        return nn.Conv2d(2, 3, 3).double(), shaken(CrossIterationBatchNorm(3, **options))

    @pytest.mark.parametrize("window", [1, 4])
    def test_the_first_batch_and_a_window_of_one_are_batch_norm(self, window):
        conv, norm = self.layers(window=window)
        plain = BatchNorm(3).double()
        plain.load_state_dict(norm.state_dict())
        for x in stream(1 if window > 1 else 3, 2, 2, 6, 6):
            found, wanted = norm(conv(x), conv.weight), plain(conv(x))
            assert torch.allclose(found, wanted, atol=1e-12)
            of_found, of_wanted = (torch.autograd.grad(y.square().sum(), conv.weight)[0] for y in (found, wanted))
            assert torch.allclose(of_found, of_wanted, atol=1e-9)
        for key, value in plain.state_dict().items():
            assert torch.allclose(norm.state_dict()[key], value, atol=1e-12)
        x = stream(1, 1, 2, 6, 6, seed=9)[0]
        assert torch.equal(norm.eval()(conv(x), conv.weight), plain.eval()(conv(x)))

    def test_the_papers_formula(self):
        conv, norm = self.layers(window=3)
        past = []
        for x in stream(5, 2, 2, 6, 6):
            y = conv(x)
            found = norm(y, conv.weight).detach()
            mean, square = y.mean((0, 2, 3)), y.square().mean((0, 2, 3))
            slopes = [
                torch.stack([torch.autograd.grad(row[c], conv.weight, retain_graph=True)[0][c] for c in range(3)])
                for row in (mean, square)
            ]
            now = conv.weight.detach().clone()
            past = [(mean.detach(), square.detach(), slopes, now), *past][:3]
            means = torch.stack([m + (s[0] * (now - then)).sum((1, 2, 3)) for m, _, s, then in past])
            squares = torch.stack([q + (s[1] * (now - then)).sum((1, 2, 3)) for _, q, s, then in past])
            mu = means.mean(0)
            var = torch.maximum(squares, means**2).mean(0) - mu**2
            gamma, beta, mu, var = (t.view(1, 3, 1, 1) for t in (norm.weight, norm.bias, mu, var))
            assert torch.allclose(found, (gamma * (y - mu) / (var + norm.eps).sqrt() + beta).detach(), atol=1e-10)
            with torch.no_grad():
                conv.weight += 0.05 * torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(len(past)))

    def test_moments_of_the_past_follow_the_weights(self):
        """The same batch again, through other weights: μ is linear in them, so the carried one is that of now."""
        conv, norm = self.layers(window=2)
        x = stream(1, 2, 2, 6, 6)[0]
        norm(conv(x), conv.weight)
        alone, ignorant = copy.deepcopy(norm), copy.deepcopy(norm)
        alone._past.clear()
        both, slopes, then = ignorant._past[0]
        ignorant._past[0] = both, torch.zeros_like(slopes), then
        with torch.no_grad():
            conv.weight += 1e-4
        y = conv(x)
        found = norm(y, conv.weight)
        assert torch.allclose(found, alone(y, conv.weight), atol=1e-5)  # ν to first order
        assert norm._past[0][0][0].allclose(y.mean((0, 2, 3)))
        assert not torch.allclose(ignorant(y, conv.weight), found, atol=1e-4)

    def test_warmup_frozen_weights_and_no_gradient_are_batch_norm(self):
        conv, norm = self.layers(window=3, warmup=2)
        for x in stream(2, 2, 2, 6, 6):
            norm(conv(x), conv.weight)
        assert not norm._past
        x = stream(1, 2, 2, 6, 6)[0]
        with torch.no_grad():
            norm(conv(x), conv.weight)
        conv.requires_grad_(requires_grad=False)
        norm(conv(x), conv.weight)
        assert not norm._past and norm.num_batches_tracked == 4

    def test_what_is_not_allowed(self):
        conv, norm = self.layers()
        x = stream(1, 2, 2, 6, 6)[0]
        with pytest.raises(ValueError, match="does not come from this weight"):
            norm(conv(x), torch.randn(3, 2, 3, 3, requires_grad=True))
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            norm(conv(x[:1, :, :3, :3]), conv.weight)
        with pytest.raises(ValueError, match="window must be at least 1"):
            CrossIterationBatchNorm(3, window=0)

    def test_is_not_converted(self):
        """What takes its place would be called with a weight."""
        model = nn.Sequential(nn.BatchNorm2d(3), CrossIterationBatchNorm(3))
        assert list(convert_sync(model).converted) == ["0"]

    def test_after_a_linear_layer_copied_and_pickled_on_the_way(self):
        linear, norm = nn.Linear(4, 3), CrossIterationBatchNorm(3, window=2)
        for x in torch.randn(3, 5, 4):
            other = pickle.loads(pickle.dumps(norm))
            assert torch.equal(norm(linear(x), linear.weight), other(linear(x), linear.weight))


class TestMovingAverage:
    def test_the_papers_formula_forwards_and_backwards(self):
        options = {"window": 3, "warmup": 4, "renorm_after": 6, "limit": 1.05, "momentum": 0.3}
        norm = shaken(MovingAverageBatchNorm(2, **options))
        gamma, beta = (p.detach().numpy().reshape(1, 2, 1, 1) for p in (norm.weight, norm.bias))
        running, squares, gradients, clipped = np.ones(2), [], [], 0
        pairs = zip(stream(12, 4, 2, 3, 3), stream(12, 4, 2, 3, 3, seed=5), strict=True)
        for step, pair in enumerate(pairs, 1):
            y, of_x = (t.numpy() for t in trained(norm, *pair))
            x, g = (t.numpy() for t in pair)
            squares.append((x**2).mean((0, 2, 3)))
            chi = np.mean(squares[-3:], 0) if step > 4 else squares[-1]
            r = np.sqrt((chi + norm.eps) / (running + norm.eps)) if step > 6 else np.ones(2)
            clipped += np.any((r < 1 / 1.05) | (r > 1.05))
            r = r.clip(1 / 1.05, 1.05)
            running = 0.7 * running + 0.3 * chi
            scale, r = 1 / np.sqrt(chi + norm.eps).reshape(1, 2, 1, 1), r.reshape(1, 2, 1, 1)
            z, inner = x * scale, g * gamma * r
            assert np.allclose(y, gamma * r * z + beta, atol=1e-12)
            gradients.append((inner * z).mean((0, 2, 3)))
            along = np.mean(gradients[-3:], 0) if step > 4 else gradients[-1]
            assert np.allclose(of_x, scale * (inner - z * along.reshape(1, 2, 1, 1)), atol=1e-12)
        assert 0 < clipped < 6
        x = stream(1, 4, 2, 3, 3, seed=7)[0]
        scale = 1 / np.sqrt(running + norm.eps).reshape(1, 2, 1, 1)
        assert np.allclose(norm.eval()(x).detach().numpy(), gamma * x.numpy() * scale + beta, atol=1e-12)

    def test_what_is_not_allowed(self):
        with pytest.raises(ValueError, match="window and limit must be at least 1"):
            MovingAverageBatchNorm(2, window=0)
        with pytest.raises(ValueError, match=r"takes \(N, 2, \*\), got \(3, 4\)"):
            MovingAverageBatchNorm(2)(torch.zeros(3, 4))


def test_centred_filters_take_the_mean_away():
    weight = center_weight(torch.randn(4, 3, 3, 3, dtype=torch.float64))
    assert weight.mean((1, 2, 3)).abs().max() < 1e-16
    x = torch.full((1, 3, 5, 5), 7.0, dtype=torch.float64)
    assert nn.functional.conv2d(x, weight).abs().max() < 1e-13


class TestOnline:
    @staticmethod
    def loop(x, g, state, eps):
        """Sample by sample, as the paper has it."""
        y, of_x = np.empty_like(x), np.empty_like(x)
        stds = []
        for t, sample in enumerate(x):
            mean, var = (a.reshape(-1, 1, 1) for a in (state["mean"], state["var"]))
            stds.append(np.sqrt(var + eps))
            y[t] = (sample - mean) / stds[-1]
            apart = sample.mean((1, 2)) - state["mean"]
            state["var"] = 0.9 * state["var"] + 0.1 * sample.var((1, 2)) + 0.9 * 0.1 * apart**2
            state["mean"] = state["mean"] + 0.1 * apart
        for t, gradient in enumerate(g):
            held = gradient - 0.2 * state["scale_error"].reshape(-1, 1, 1) * y[t]
            state["scale_error"] = state["scale_error"] + (held * y[t]).mean((1, 2))
            of_x[t] = held / stds[t] - 0.2 * state["mean_error"].reshape(-1, 1, 1)
            state["mean_error"] = state["mean_error"] + of_x[t].mean((1, 2))
        return y, of_x

    def test_the_papers_algorithm_forwards_and_backwards(self):
        norm = OnlineNorm(2, alpha_fwd=0.9, alpha_bkw=0.8, guard="none", affine=False).double()
        state = {"mean": np.zeros(2), "var": np.ones(2), "mean_error": np.zeros(2), "scale_error": np.zeros(2)}
        for x, g in zip(stream(4, 5, 2, 3, 3), stream(4, 5, 2, 3, 3, seed=5), strict=True):
            y, of_x = trained(norm, x, g)
            wanted = self.loop(x.numpy(), g.numpy(), state, norm.eps)
            assert np.allclose(y.numpy(), wanted[0], atol=1e-12)
            assert np.allclose(of_x.numpy(), wanted[1], atol=1e-12)
        for name in ("mean", "var"):
            assert np.allclose(getattr(norm, f"running_{name}").numpy(), state[name], atol=1e-12)
        x = stream(1, 1, 2, 3, 3, seed=7)[0]
        plain = BatchNorm(2, affine=False).double().eval()
        plain.running_mean, plain.running_var = norm.running_mean, norm.running_var
        assert torch.allclose(norm.eval()(x), plain(x), atol=1e-12)

    def test_batches_of_any_size_are_the_same_stream(self):
        x, g = stream(1, 6, 2, 3, 3)[0], stream(1, 6, 2, 3, 3, seed=5)[0]
        norms = [shaken(OnlineNorm(2, alpha_fwd=0.9, alpha_bkw=0.8)) for _ in range(2)]
        whole = trained(norms[0], x, g)
        parts = [trained(norms[1], *pair) for pair in zip(x.split(1), g.split(1), strict=True)]
        for found, wanted in zip(zip(*parts, strict=True), whole, strict=True):
            assert torch.allclose(torch.cat(found), wanted, atol=1e-12)
        for key, value in norms[0].state_dict().items():
            assert torch.allclose(norms[1].state_dict()[key], value, atol=1e-12)

    def test_the_gradient_is_that_of_batch_norm_in_the_long_run(self):
        """Orthogonal to 1 and to y, as batch norm's is, over a stream whose own gradient is far from that."""
        norm = OnlineNorm(1, guard="none", affine=False).double()
        along_1 = along_y = raw = 0.0
        for x in stream(400, 8, 1, 4, 4):
            y, of_x = trained(norm, x, 1 + x)
            along_1, along_y, raw = along_1 + of_x.mean(), along_y + (of_x * y).mean(), raw + (1 + x).mean()
        assert abs(along_1) < 0.05 * raw and abs(along_y) < 0.05 * raw

    @pytest.mark.parametrize("guard", ["scaling", "clamping"])
    def test_guards(self, guard):
        norm = shaken(OnlineNorm(3, guard=guard))
        bare = copy.deepcopy(norm)
        bare.guard = "none"
        x = 4 * stream(1, 2, 3, 4, 4)[0]
        found, y = norm(x), bare(x)
        scaled = y / (y.square().mean((1, 2, 3), keepdim=True) + norm.eps).sqrt()
        assert torch.allclose(found, scaled if guard == "scaling" else y.clamp(-5, 5), atol=1e-12)
        assert not torch.equal(found, y)

    def test_single_values_are_samples_of_no_variance(self):
        norm = OnlineNorm(2, alpha_fwd=0.5, guard="none", affine=False).double()
        x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
        norm(x)
        assert torch.allclose(norm.running_mean, torch.tensor([1.75, 2.5], dtype=torch.float64))

    def test_what_is_not_allowed(self):
        with pytest.raises(ValueError, match="guard must be scaling, clamping or none, got 'clip'"):
            OnlineNorm(2, guard="clip")
        with pytest.raises(ValueError, match="from 0 to 1"):
            OnlineNorm(2, alpha_fwd=1.5)
