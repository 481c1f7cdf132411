import numpy as np
import pytest
import torch
from torch import nn

from styleapp.norms import (
    BatchInstanceNorm,
    DistributionUncertainty,
    GroupNorm,
    HalfInstanceNorm,
    IBNa,
    IBNb,
    InstanceLayerNorm,
    InstanceNorm,
    MixStyle,
    SwitchableNorm,
    adain,
    l2_normalize,
    min_max_scale,
    moments,
    standardize_weight,
    z_score,
)


def shake(module):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return module.double()


X = 2 * torch.randn(3, 5, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1


def switchable_by_hand(x, norm, batch=None):
    """Equations 2 to 5 of Luo et al. 2019 in numpy; ``batch``: running mean and variance."""
    x = x.numpy()
    softmax = [
        np.exp(w) / np.exp(w).sum() for w in (norm.mean_weight.detach().numpy(), norm.var_weight.detach().numpy())
    ]
    axes = [(2, 3), (1, 2, 3), (0, 2, 3)][: len(softmax[0])]
    means = [np.broadcast_to(x.mean(a, keepdims=True), x.shape) for a in axes]
    variances = [np.broadcast_to(x.var(a, keepdims=True), x.shape) for a in axes]
    if batch is not None:
        means[2], variances[2] = (np.broadcast_to(b.numpy().reshape(1, -1, 1, 1), x.shape) for b in batch)
    mean = sum(w * m for w, m in zip(softmax[0], means, strict=True))
    var = sum(w * v for w, v in zip(softmax[1], variances, strict=True))
    gamma, beta = (p.detach().numpy().reshape(1, -1, 1, 1) for p in (norm.weight, norm.bias))
    return gamma * (x - mean) / np.sqrt(var + norm.eps) + beta


class TestSwitchable:
    @pytest.mark.parametrize("batch", [True, False])
    def test_is_the_paper(self, batch):
        norm = shake(SwitchableNorm(5, batch=batch))
        np.testing.assert_allclose(norm(X).detach(), switchable_by_hand(X, norm), atol=1e-12)

    def test_evaluation_uses_running_statistics_and_is_defined_before_training(self):
        norm = shake(SwitchableNorm(5)).eval()
        assert norm(X).isfinite().all() and norm(X).abs().max() < 100
        norm.train()(X)
        norm.eval()
        wanted = switchable_by_hand(X, norm, (norm.running_mean, norm.running_var))
        np.testing.assert_allclose(norm(X).detach(), wanted, atol=1e-12)

    def test_moving_and_batch_average(self):
        moving, average = SwitchableNorm(5, momentum=0.25).double(), SwitchableNorm(5, momentum=None).double()
        batches = [X, X + 3, 2 * X]
        wanted = torch.zeros(5, dtype=torch.float64)
        for x in batches:
            moving(x), average(x)
            wanted = 0.75 * wanted + 0.25 * x.mean((0, 2, 3))
        assert torch.allclose(moving.running_mean, wanted)
        assert torch.allclose(average.running_mean, torch.stack([x.mean((0, 2, 3)) for x in batches]).mean(0))

    def test_weights_that_prefer_one_kind_give_that_kind(self):
        norm = SwitchableNorm(5).double()
        with torch.no_grad():
            norm.mean_weight.copy_(torch.tensor([100.0, 0, 0]))
            norm.var_weight.copy_(torch.tensor([100.0, 0, 0]))
        assert torch.allclose(norm(X), nn.InstanceNorm2d(5)(X), atol=1e-12)

    def test_one_position_is_an_error_and_not_nan(self):
        with pytest.raises(ValueError, match="at least two positions"):
            SwitchableNorm(5)(torch.randn(4, 5, 1, 1))


@pytest.mark.parametrize("channels", [4, 5])
@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 0.8, 1])
def test_ibn_a(channels, ratio):
    x = torch.randn(3, channels, 4, 4)
    half = int(channels * ratio)
    norm = IBNa(channels, ratio=ratio)
    parts = [nn.InstanceNorm2d(half)(x[:, :half])] if half else []
    parts += [nn.BatchNorm2d(channels - half)(x[:, half:])] if half < channels else []
    assert torch.allclose(norm(x), torch.cat(parts, 1), atol=1e-6)
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        IBNa(4, ratio=2)


def test_ibn_b_is_instance_norm_with_affine():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(IBNb(3)(x), InstanceNorm(3)(x)) and IBNb(3).weight is not None


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_half_instance_norm(channels):
    x = torch.randn(2, channels, 4, 4)
    first = (channels + 1) // 2
    y = HalfInstanceNorm(channels)(x)
    assert torch.allclose(y[:, :first], nn.InstanceNorm2d(first)(x[:, :first]), atol=1e-6)
    assert torch.equal(y[:, first:], x[:, first:])


class TestBatchInstance:
    def test_is_the_paper(self):
        norm = shake(BatchInstanceNorm(5))
        with torch.no_grad():
            norm.rho.copy_(torch.tensor([0, 0.2, 0.5, 0.9, 1.0]))
        rho, gamma, beta = (p.detach().view(1, 5, 1, 1) for p in (norm.rho, norm.weight, norm.bias))

        def hat(axes):
            return (X - X.mean(axes, True)) / (X.var(axes, correction=0, keepdim=True) + 1e-5).sqrt()

        wanted = (rho * hat((0, 2, 3)) + (1 - rho) * hat((2, 3))) * gamma + beta
        assert torch.allclose(norm(X), wanted, atol=1e-12)

    def test_rho_is_clipped_after_an_update_and_can_come_back(self):
        norm = BatchInstanceNorm(2)
        optimiser = torch.optim.SGD([norm.rho], lr=1.0)
        x = torch.randn(4, 2, 3, 3)
        norm.rho.grad = torch.tensor([-5.0, 5.0])
        optimiser.step()
        norm(x)
        assert norm.rho.tolist() == [1, 0]
        norm.zero_grad()
        norm(x).pow(3).sum().backward()
        assert (norm.rho.grad != 0).all()


def test_instance_layer_norm():
    norm = shake(InstanceLayerNorm(5))
    with torch.no_grad():
        norm.rho.copy_(torch.tensor([0, 0.2, 0.5, 0.9, 1.0]))
    rho, gamma, beta = (p.detach().view(1, 5, 1, 1) for p in (norm.rho, norm.weight, norm.bias))

    def hat(axes):
        return (X - X.mean(axes, True)) / (X.var(axes, correction=0, keepdim=True) + 1e-5).sqrt()

    mixed = rho * hat((2, 3)) + (1 - rho) * hat((1, 2, 3))
    assert torch.allclose(norm(X), mixed * gamma + beta, atol=1e-12)
    own, other = torch.randn(2, 3, 5, dtype=torch.float64)
    wanted = mixed * own[..., None, None] + other[..., None, None]
    assert torch.allclose(norm(X, own, other), wanted, atol=1e-12)
    for rho, plain in ((1, InstanceNorm(5)), (0, GroupNorm(5, num_groups=1))):
        assert torch.allclose(InstanceLayerNorm(5, rho=rho).double()(X), plain.double()(X), atol=1e-12)
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        InstanceLayerNorm(5, rho=2)


class TestMixStyle:
    def test_moments_lie_between_those_of_two_samples_and_what_is_under_them_stays(self):
        torch.manual_seed(1)
        y = MixStyle(p=1)(X)
        own, found = moments(X), moments(y)
        hat = (X - own.mean) / own.std(1e-6)
        assert torch.allclose(hat * found.std() + found.mean, y, atol=1e-5)
        for x, m in zip(found.mean[..., 0, 0], own.mean[..., 0, 0], strict=True):
            # x = λ m + (1 - λ) m' for one and the same λ in all channels
            partners = [(x - m) / (other - m) for other in own.mean[..., 0, 0] if not torch.equal(other, m)]
            shares = [p for p in partners if torch.allclose(p, p.mean().expand(5), atol=1e-9)]
            assert len(shares) == 1 or torch.allclose(x, m)
            assert all(-1e-9 <= s.mean() <= 1 + 1e-9 for s in shares)

    def test_permuted_adain(self):
        torch.manual_seed(0)
        y = MixStyle(p=1, alpha=None, eps=1e-5)(X)
        candidates = [adain(X[i : i + 1], X[j : j + 1]) for i in range(3) for j in range(3)]
        for i in range(3):
            assert any(torch.allclose(y[i : i + 1], c, atol=1e-12) for c in candidates[3 * i : 3 * i + 3])
        assert not torch.allclose(y, X)

    def test_no_gradient_goes_through_the_moments(self):
        torch.manual_seed(0)
        x = X.clone().requires_grad_()
        y = MixStyle(p=1)(x)
        weight = torch.randn_like(y)
        (y * weight).sum().backward()
        slope = moments(y.detach()).std() / moments(X).std()
        assert torch.allclose(x.grad, weight * slope, rtol=1e-5)

    def test_how_often(self):
        torch.manual_seed(0)
        norm = MixStyle(p=0.25)
        mixed = sum(norm(X) is not X for _ in range(400))
        assert 70 < mixed < 130
        assert norm.eval()(X) is X and norm.train()(X[:1]) is not None and MixStyle(p=1)(X[:1]).shape == X[:1].shape
        for bad in ({"p": 2}, {"alpha": 0}):
            with pytest.raises(ValueError, match="must be"):
                MixStyle(**bad)


class TestDistributionUncertainty:
    def test_the_formula(self):
        torch.manual_seed(3)
        y = DistributionUncertainty(p=1, factor=0.5)(X)
        torch.manual_seed(3)
        torch.rand(())
        std = (X.var((2, 3), correction=0, keepdim=True) + 1e-6).sqrt()
        mean = X.mean((2, 3), keepdim=True)
        gamma, beta = (
            t + 0.5 * torch.randn_like(t) * (t.var(0, correction=0, keepdim=True) + 1e-6).sqrt() for t in (std, mean)
        )
        assert torch.allclose(y, gamma * (X - mean) / std + beta, atol=1e-12)

    def test_it_draws_around_the_moments_by_as_much_as_samples_differ(self):
        torch.manual_seed(0)
        norm, own = DistributionUncertainty(p=1), moments(X)
        means = torch.stack([moments(norm(X)).mean for _ in range(2000)])
        spread = own.mean.std(0, correction=0)
        assert torch.allclose(means.mean(0), own.mean, atol=0.1 * float(spread.max()))
        assert torch.allclose(means.std(0), spread.expand_as(own.mean), rtol=0.1)

    def test_gradients_go_through_the_moments(self):
        def drawn(x):
            torch.manual_seed(1)
            return DistributionUncertainty(p=1)(x)

        assert torch.autograd.gradcheck(drawn, torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True))

    def test_how_often(self):
        torch.manual_seed(0)
        norm = DistributionUncertainty(p=0.25)
        assert 70 < sum(norm(X) is not X for _ in range(400)) < 130
        assert norm.eval()(X) is X
        one = X[:1]  # nothing it could differ from
        assert DistributionUncertainty(p=1)(one) is one
        for bad in ({"p": 2}, {"factor": -1}):
            with pytest.raises(ValueError, match="must be"):
                DistributionUncertainty(**bad)


@pytest.mark.parametrize(
    "module",
    [
        SwitchableNorm(4),
        SwitchableNorm(4, batch=False),
        IBNa(4, ratio=0.5),
        HalfInstanceNorm(4),
        BatchInstanceNorm(4, track_running_stats=False),
        InstanceLayerNorm(4),
    ],
    ids=lambda m: type(m).__name__,
)
def test_gradients(module):
    module = shake(module)
    if hasattr(module, "rho"):
        with torch.no_grad():
            module.rho.fill_(0.4)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(module.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *parameters.values()))


class TestScaling:
    def test_weight_standardisation(self):
        w = standardize_weight(torch.randn(6, 3, 3, 3, dtype=torch.float64) * 5 + 2, eps=0)
        assert torch.allclose(w.mean((1, 2, 3)), torch.zeros(6, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(w.var((1, 2, 3), correction=0), torch.ones(6, dtype=torch.float64))

    def test_l2(self):
        assert torch.allclose(l2_normalize(X), torch.nn.functional.normalize(X))
        assert torch.equal(l2_normalize(torch.zeros(2, 3)), torch.zeros(2, 3))

    def test_min_max(self):
        y = min_max_scale(X, (2, 3))
        assert y.amin() == 0 and y.amax() == 1
        assert torch.equal(min_max_scale(torch.full((2, 3), 7.0)), torch.zeros(2, 3))

    def test_z_score(self):
        y = z_score(X, (0, 2, 3), eps=0)
        wanted = (X.numpy() - X.numpy().mean((0, 2, 3), keepdims=True)) / X.numpy().std((0, 2, 3), keepdims=True)
        np.testing.assert_allclose(y, wanted, atol=1e-12)
