import pytest
import torch
from torch import nn

from styleapp.norms import (
    TLU,
    ActNorm,
    DynamicErf,
    DynamicTanh,
    EvoNormB0,
    EvoNormS0,
    FilterResponseNorm,
    GlobalResponseNorm,
    LocalContrastNorm,
    LocalResponseNorm,
    RMSNorm,
    ScaleNorm,
)

X = 2 * torch.randn(3, 8, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1


def shake(module):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return module.double()


def columns(*parameters):
    return (p.detach().view(1, 8, 1, 1) for p in parameters)


def test_filter_response_norm_and_tlu():
    norm, tlu = shake(FilterResponseNorm(8, learn_eps=True)), shake(TLU(8))
    nu2 = X.square().mean((2, 3), keepdim=True)
    gamma, beta, tau = columns(norm.weight, norm.bias, tlu.tau)
    wanted = gamma * X / (nu2 + norm.eps.detach().abs()).sqrt() + beta
    assert torch.allclose(norm(X), wanted, atol=1e-12)
    assert torch.equal(tlu(X), torch.maximum(X, tau))
    assert "eps" in dict(FilterResponseNorm(3).named_buffers())


def test_global_response_norm():
    norm = GlobalResponseNorm(8).double()
    assert torch.equal(norm(X), X)
    gamma, beta = columns(*(shake(norm).gamma, norm.beta))
    strength = X.square().sum((2, 3), keepdim=True).sqrt()
    relative = strength / (strength.sum(1, keepdim=True) / 8 + 1e-6)
    assert torch.allclose(norm(X), gamma * (X * relative) + beta + X, atol=1e-12)


class TestEvoNorm:
    def test_b0(self):
        norm = shake(EvoNormB0(8, momentum=0.3))
        gamma, beta, v = columns(norm.weight, norm.bias, norm.v)
        batch = (X.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        instance = (X.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(norm(X), gamma * X / torch.maximum(batch, v * X + instance) + beta, atol=1e-12)
        running = 0.7 + 0.3 * X.var((0, 2, 3))
        assert torch.allclose(norm.running_var, running) and norm.num_batches_tracked == 1
        below = torch.maximum((running.view(1, 8, 1, 1) + 1e-5).sqrt(), v * X + instance)
        assert torch.allclose(norm.eval()(X), gamma * X / below + beta, atol=1e-12)
        with pytest.raises(ValueError, match="more than 1 value"):
            EvoNormB0(8)(torch.randn(1, 8, 1, 1))

    def test_b0_averages_all_batches(self):
        norm = EvoNormB0(8, momentum=None).double()
        for x in (X, 2 * X, X + 5):
            norm(x)
        assert torch.allclose(norm.running_var, 2 * X.var((0, 2, 3)))

    @pytest.mark.parametrize("groups", [1, 2, 8])
    def test_s0(self, groups):
        norm = shake(EvoNormS0(8, num_groups=groups))
        gamma, beta, v = columns(norm.weight, norm.bias, norm.v)
        var = X.view(3, groups, -1).var(-1, correction=0).repeat_interleave(8 // groups, 1)[..., None, None]
        wanted = X / (1 + (-v * X).exp()) / (var + 1e-5).sqrt() * gamma + beta
        assert torch.allclose(norm(X), wanted, atol=1e-12)

    def test_groups_that_do_not_fit(self):
        with pytest.raises(ValueError, match="divisible by num_groups, got 8 and 3"):
            EvoNormS0(8, num_groups=3)


@pytest.mark.parametrize(
    "module",
    [
        FilterResponseNorm(8, learn_eps=True),
        TLU(8),
        GlobalResponseNorm(8),
        EvoNormB0(8),
        EvoNormS0(8, num_groups=4),
        DynamicTanh(8),
        DynamicErf(8),
    ],
    ids=lambda m: type(m).__name__,
)
def test_gradients(module):
    module = shake(module)
    if isinstance(module, FilterResponseNorm):
        with torch.no_grad():
            module.eps.fill_(0.1)
    x = torch.randn(2, 8, 2, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(module.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *parameters.values()))


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("kind", [DynamicTanh, DynamicErf])
def test_dynamic_squashing(kind, dim):
    norm = shake(kind(8, dim=dim))
    gamma, beta = columns(norm.weight, norm.bias)
    inner = norm.alpha * X + (norm.shift if kind is DynamicErf else 0)
    if kind is DynamicTanh:
        squashed = (inner.exp() - (-inner).exp()) / (inner.exp() + (-inner).exp())
    else:  # 2 Φ(√2 x) - 1
        squashed = 2 * torch.distributions.Normal(0.0, 0.5**0.5).cdf(inner) - 1
    wanted = gamma * squashed + beta
    found = norm(X) if dim == 1 else norm(X.movedim(1, -1)).movedim(-1, 1)
    assert torch.allclose(found, wanted, atol=1e-12)
    assert kind(8).alpha == 0.5
    with pytest.raises(ValueError, match="has 8 channels, got shape"):
        norm(X.movedim(1, 2))


def test_local_response_norm_is_alexnets_and_torchs():
    norm = LocalResponseNorm(8, size=5, alpha=5e-4, k=2)
    assert torch.equal(norm(X), nn.LocalResponseNorm(5, 5e-4, 0.75, 2)(X))
    squares = nn.functional.pad(X.square(), (0, 0, 0, 0, 2, 2))
    near = sum(squares[:, i : i + 8] for i in range(5))
    assert torch.allclose(norm(X), X / (2 + 1e-4 * near) ** 0.75, atol=1e-12)
    assert LocalResponseNorm(8)(torch.full((1, 8, 2, 2), 1000.0).half()).isfinite().all()
    with pytest.raises(ValueError, match="has 8 channels, the input 4"):
        norm(X[:, :4])


class TestLocalContrast:
    def test_the_formula(self):
        """As in the paper, with one filter over all channels and positions at once."""
        offsets = torch.arange(5, dtype=torch.float64) - 2
        line = torch.exp(-0.5 * (offsets / 1.25) ** 2)
        window = torch.outer(line, line).expand(1, 8, 5, 5) / (8 * line.sum() ** 2)

        def near(x):
            return nn.functional.conv2d(nn.functional.pad(x, (2, 2, 2, 2), mode="replicate"), window)

        apart = X - near(X)
        std = near(apart**2).sqrt()
        wanted = apart / torch.maximum(std, std.mean((2, 3), keepdim=True))
        assert torch.allclose(LocalContrastNorm(8, kernel_size=5)(X), wanted, atol=1e-12)

    def test_light_and_contrast_make_no_difference(self):
        norm = LocalContrastNorm(8)
        assert torch.allclose(norm(7 * X + 3), norm(X), atol=1e-9)
        assert torch.equal(norm(torch.full_like(X, 2)).abs() < 1e-9, torch.ones_like(X, dtype=torch.bool))
        with pytest.raises(ValueError, match="must be odd, got 4"):
            LocalContrastNorm(8, kernel_size=4)


def test_scale_norm():
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    norm = ScaleNorm(16).double()
    assert torch.allclose(norm(x), RMSNorm(16, eps=0.0, affine=False).double()(x), atol=1e-12)
    with torch.no_grad():
        norm.scale.fill_(3.0)
    assert torch.allclose(norm(x).norm(dim=-1), torch.full((2, 5), 3.0, dtype=torch.float64))
    assert torch.equal(norm(0 * x), 0 * x)
    with pytest.raises(ValueError, match=r"takes \(\*, 16\), got \(2, 16, 5\)"):
        norm(x.mT)


class TestActNorm:
    def test_the_first_batch_sets_it(self):
        norm = ActNorm(8).double()
        assert torch.equal(norm.eval()(X), X)
        first = norm.train()(X)
        assert torch.allclose(first, nn.BatchNorm2d(8, affine=False).double()(X), atol=1e-12)
        assert torch.allclose(norm(2 * X), 2 * first - norm.bias.view(1, 8, 1, 1), atol=1e-12)  # and no other
        assert torch.equal(norm.eval()(X), first)

    def test_a_state_dict_is_set_already(self):
        norm, other = ActNorm(8).double(), ActNorm(8).double()
        norm(X)
        other.load_state_dict(norm.state_dict())
        assert torch.equal(other(X + 1), norm(X + 1))

    def test_is_learned(self):
        norm = ActNorm(8).double()
        norm(X).pow(3).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in norm.parameters())
        with pytest.raises(ValueError, match=r"takes \(N, 8, \*\), got \(8, 3\)"):
            norm(torch.zeros(8, 3))
