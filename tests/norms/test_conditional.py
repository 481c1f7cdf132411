import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from styleapp.norms import (
    AdaLNZero,
    AdaptiveNorm,
    AttentiveNorm,
    BatchNorm,
    ConditionalBatchNorm,
    ConditionalGroupNorm,
    ConditionalInstanceNorm,
    ConditionalLayerNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    ModulatedNorm,
    adaattn,
    adabn,
    adagn,
    adain,
    adaln,
    adaptive,
    covariance,
    efdm,
    modulate_weight,
    moments,
    ot,
    statistics,
    wct,
)

G = torch.Generator().manual_seed(0)
C = torch.randn(2, 6, 5, 7, dtype=torch.float64, generator=G)
S = 3 * torch.randn(2, 6, 4, 9, dtype=torch.float64, generator=G) + 2
TRANSFORMS = [adain, adaln, adabn, lambda c, s, a=1.0: adagn(c, s, a, num_groups=3), efdm, wct, ot]
NAMES = ["adain", "adaln", "adabn", "adagn", "efdm", "wct", "ot"]


def table(cls, styles=3, **options):
    module = cls(6, styles, **options).double()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    return module


PAIRS = [
    (ConditionalInstanceNorm, lambda: InstanceNorm(6)),
    (ConditionalBatchNorm, lambda: BatchNorm(6)),
    (ConditionalLayerNorm, lambda: GroupNorm(6, num_groups=1)),
    (ConditionalGroupNorm, lambda: GroupNorm(6, num_groups=3)),
]


@pytest.mark.parametrize(("cls", "plain"), PAIRS)
def test_one_row_is_the_plain_norm(cls, plain):
    module = table(cls, 1, **({"num_groups": 3} if cls is ConditionalGroupNorm else {}))
    norm = plain().double()
    norm.load_state_dict({"weight": module.weight[0].detach(), "bias": module.bias[0].detach()}, strict=False)
    for training in (True, False):
        norm.train(training), module.train(training)
        assert torch.allclose(module(C, 0), norm(C), atol=1e-12)


@pytest.mark.parametrize(("cls", "_"), PAIRS)
def test_ids_and_weights_over_styles(cls, _):
    module = table(cls, **({"num_groups": 3} if cls is ConditionalGroupNorm else {}))
    rows = [module(C, i) for i in range(3)]
    by_id = module(C, torch.tensor([2, 0]))
    assert torch.allclose(by_id, torch.stack([rows[2][0], rows[0][1]]), atol=1e-12)
    assert torch.allclose(module(C, [2, 0]), by_id)
    mixed = module(C, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    assert torch.allclose(mixed, 0.2 * rows[0] + 0.3 * rows[1] + 0.5 * rows[2], atol=1e-12)
    each = module(C, torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]))
    assert torch.allclose(each, torch.stack([rows[0][0], rows[2][1]]), atol=1e-12)


@pytest.mark.parametrize(
    ("style", "error", "message"),
    [
        (3, IndexError, "style must be 0 to 2, got 3"),
        (-1, IndexError, "style must be 0 to 2, got -1"),
        (torch.tensor([0, 5]), IndexError, r"styles must be 0 to 2, got \[0, 5\]"),
        (torch.tensor([0]), ValueError, r"ids of styles have shape \(2,\)"),
        (torch.tensor([0.5, 0.5]), ValueError, r"weights over 3 styles are \(S,\) or \(N, S\), got \(2,\)"),
    ],
)
def test_bad_styles(style, error, message):
    with pytest.raises(error, match=message):
        table(ConditionalInstanceNorm)(C, style)


def test_a_new_style_trains_alone():
    module = table(ConditionalInstanceNorm)
    before = [module(C, i).detach() for i in range(3)]
    target = moments(S)
    new = module.add_style(target.std(1e-5)[0], target.mean[0])
    assert new == 3 and module.num_styles == 4
    assert torch.allclose(module(C[:1], 3), adain(C[:1], S[:1]), atol=1e-12)  # a measured code to start from
    assert [p for p in module.parameters() if p.requires_grad] == [module.weight[3], module.bias[3]]
    # weight decay and momentum reach nothing that is frozen
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        module(C, 3).square().mean().backward()
        optimiser.step()
    assert all(torch.equal(module(C, i), b) for i, b in enumerate(before))
    assert not torch.allclose(module.weight[3], target.std(1e-5)[0].flatten())
    with pytest.raises(ValueError, match="a row has 6 numbers, got 5"):
        module.add_style(torch.ones(5))
    assert module.add_style(freeze=False) == 4


@pytest.mark.parametrize("transform", TRANSFORMS, ids=NAMES)
class TestTransforms:
    def test_own_style_is_the_identity(self, transform):
        assert torch.allclose(transform(C, C), C, atol=1e-4)

    def test_strength_zero_is_the_content_and_between_is_the_lerp(self, transform):
        full = transform(C, S)
        assert torch.allclose(transform(C, S, 0.0), C, atol=1e-10)
        assert torch.allclose(transform(C, S, 0.3), 0.7 * C + 0.3 * full, atol=1e-10)
        strength = torch.linspace(0, 1, 7, dtype=torch.float64).expand(1, 1, 5, 7)
        assert torch.allclose(transform(C, S, strength), (1 - strength) * C + strength * full, atol=1e-10)

    def test_low_precision(self, transform):
        y = transform(C.bfloat16(), S.bfloat16())
        assert y.dtype == torch.bfloat16 and y.isfinite().all()

    def test_gradients_reach_the_content(self, transform):
        c = C.clone().requires_grad_()
        transform(c, S).square().sum().backward()
        assert c.grad.isfinite().all() and c.grad.abs().sum() > 0


def test_adain_gives_the_moments_of_the_style():
    y = adain(C, S, eps=0.0)
    assert torch.allclose(moments(y).mean, moments(S).mean) and torch.allclose(moments(y).var, moments(S).var)
    assert torch.equal(adain(C, moments(S)), adain(C, S))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["batch", "layer", "instance", "group"]))
def test_adaptive_norms_are_the_formula_on_their_axes(over):
    def group(x):
        x = x.numpy()
        return {
            "batch": lambda: (x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)),
            "layer": lambda: (x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)),
            "instance": lambda: (x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)),
            "group": lambda: tuple(
                np.repeat(getattr(x.reshape(2, 3, -1), f)(-1), 2, axis=1)[..., None, None] for f in ("mean", "var")
            ),
        }[over]()

    (mc, vc), (ms, vs) = group(C), group(S)
    wanted = np.sqrt(vs + 1e-5) * (C.numpy() - mc) / np.sqrt(vc + 1e-5) + ms
    found = adaptive(C, S, over=over, num_groups=3)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert torch.equal(AdaptiveNorm(over, num_groups=3)(C, S), found)


def test_group_counts_go_from_layer_to_instance():
    assert torch.allclose(adagn(C, S, num_groups=1), adaln(C, S))
    assert torch.allclose(adagn(C, S, num_groups=6), adain(C, S))
    assert torch.allclose(adabn(C[:1], S[:1]), adain(C[:1], S[:1]))


class TestEFDM:
    def test_values_are_exactly_those_of_a_style_of_the_same_size(self):
        s = torch.randn(2, 6, 5, 7, dtype=torch.float64)
        y = efdm(C, s)
        assert torch.allclose(y.flatten(2).sort().values, s.flatten(2).sort().values, atol=1e-12)
        assert torch.equal(y.flatten(2).argsort(), C.flatten(2).argsort())

    def test_another_size_is_resampled(self):
        y = efdm(C, S).flatten(2)
        assert torch.allclose(y.amin(-1), S.flatten(2).amin(-1)) and torch.allclose(y.amax(-1), S.flatten(2).amax(-1))

    def test_gradient_passes_unchanged(self):
        c = C.clone().requires_grad_()
        efdm(c, S).sum().backward()
        assert torch.equal(c.grad, torch.ones_like(c))


@pytest.mark.parametrize("transform", [wct, ot])
class TestCovariance:
    def test_is_that_of_the_style(self, transform):
        y = transform(C, S, eps=1e-12)
        for n in range(2):
            assert np.allclose(np.cov(y[n].flatten(1), bias=True), np.cov(S[n].flatten(1), bias=True), atol=1e-9)
            assert torch.allclose(y[n].mean((1, 2)), S[n].mean((1, 2)))

    def test_fewer_positions_than_channels(self, transform):
        y = transform(torch.randn(1, 16, 2, 2), torch.randn(1, 16, 8, 8))
        assert y.isfinite().all() and y.abs().max() < 100

    def test_flat_content(self, transform):
        assert transform(torch.ones(1, 4, 3, 3), torch.randn(1, 4, 3, 3)).isfinite().all()


def symmetric_root(a):
    values, vectors = np.linalg.eigh(a)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


class TestOT:
    def test_moves_least(self):
        """By the distance of Bures and Wasserstein, which is less than what WCT moves."""
        for c, s in zip(C, S, strict=True):
            a, b = (np.cov(t.flatten(1), bias=True) for t in (c, s))
            root = symmetric_root(a)
            shift = (c.mean((1, 2)) - s.mean((1, 2))).square().sum()
            least = float(shift) + np.trace(a + b) - 2 * np.trace(symmetric_root(root @ b @ root))
            moved = [float((f(c[None], s[None], eps=1e-12) - c).square().sum(1).mean()) for f in (ot, wct)]
            assert moved[0] == pytest.approx(least, rel=1e-9) and moved[0] < moved[1]

    def test_there_and_back_and_half_way(self):
        y = ot(C, S, eps=1e-12)
        assert torch.allclose(ot(y, C, eps=1e-12), C, atol=1e-9)
        half = ot(C, S, 0.5, eps=1e-12)  # the rest of the way goes on in a straight line
        assert torch.allclose(ot(half, S, eps=1e-12), y, atol=1e-9)

    def test_of_channels_that_do_not_go_together_is_adain(self):
        signs = torch.tensor([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], dtype=torch.float64)
        c = signs.view(1, 3, 2, 2) * torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).view(1, 3, 1, 1)
        s = signs.roll(1, 0).view(1, 3, 2, 2) * 3 + 1
        assert torch.allclose(ot(c, s), adain(c, s, eps=0.0), atol=1e-9)

    def test_in_float32_what_is_small_is_matched_too(self):
        """Where the covariances have a wide range, and their product has its square."""
        c, s = (torch.randn(1, 64, 30, 30).cumsum(1) for _ in range(2))
        found, wanted = (covariance(t.flatten(2).double())[1] for t in (ot(c, s), s))
        axes = torch.linalg.eigh(wanted[0])[1]
        found, wanted = (torch.diagonal(axes.T @ t[0] @ axes) for t in (found, wanted))
        assert wanted.max() > 5e3 * wanted.min() and torch.allclose(found, wanted, rtol=1e-2)


class TestAdaAttN:
    def test_is_the_paper(self):
        q, k = (0.3 * torch.randn(2, 4, *t.shape[2:], dtype=torch.float64) for t in (C, S))
        attention = (q.flatten(2).mT @ k.flatten(2)).exp()
        attention = attention / attention.sum(-1, keepdim=True)
        v = S.flatten(2).mT
        mean = attention @ v
        std = (attention @ v.square() - mean.square()).sqrt()
        hat = (C - C.mean((2, 3), True)) / (C.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        wanted = std.mT.view(C.shape) * hat + mean.mT.view(C.shape)
        assert torch.allclose(adaattn(C, S, query=q, key=k), wanted, atol=1e-10)
        assert torch.allclose(adaattn(C, S, 0.3, query=q, key=k), 0.7 * C + 0.3 * wanted, atol=1e-10)

    def test_without_a_preference_it_is_adain(self):
        nothing = torch.zeros(1, 2, 5, 7, dtype=torch.float64).expand(2, -1, -1, -1)
        assert torch.allclose(
            adaattn(C, S, query=nothing, key=torch.randn(2, 2, 4, 9, dtype=torch.float64)), adain(C, S), atol=1e-3
        )

    def test_where_one_place_is_meant_its_values_are_taken(self):
        """Each position looks for the place of its own number."""
        s = torch.randn(1, 6, 5, 7, dtype=torch.float64)
        q = 50 * torch.eye(35, dtype=torch.float64).view(1, 35, 5, 7)
        assert torch.allclose(adaattn(C[:1], s, query=q, key=q), s, atol=1e-9)

    def test_by_default_features_are_compared(self):
        y = adaattn(C, S[:1])
        hat = (C - C.mean((2, 3), True)) / (C.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        key = (S - S.mean((2, 3), True)) / (S.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(y, adaattn(C, S[:1], query=hat, key=key[:1]), atol=1e-10)
        assert adaattn(C.bfloat16(), S.bfloat16()).dtype == torch.bfloat16


class TestModulated:
    BASES = (
        InstanceNorm(6, affine=False),
        GroupNorm(6, num_groups=3, affine=False),
        BatchNorm(6, affine=False, track_running_stats=False),
        nn.Identity(),
    )
    CONDITION = torch.randn(2, 4, dtype=torch.float64, generator=G)

    @pytest.mark.parametrize("base", BASES, ids=lambda b: type(b).__name__)
    def test_starts_as_the_base_and_follows_the_condition(self, base):
        norm = ModulatedNorm(base, 6, 4).double()
        assert torch.allclose(norm(C, self.CONDITION), base(C), atol=1e-12)
        nn.init.normal_(norm.linear.weight), nn.init.normal_(norm.linear.bias)
        out = self.CONDITION @ norm.linear.weight.T + norm.linear.bias
        gamma, beta = (part[..., None, None] for part in (out[:, :6], out[:, 6:]))
        assert torch.allclose(norm(C, self.CONDITION), base(C) * (1 + gamma) + beta, atol=1e-12)

    def test_tokens(self):
        x = torch.randn(2, 5, 6, dtype=torch.float64)
        norm = ModulatedNorm(LayerNorm(6, affine=False), 6, 4, dim=-1).double()
        nn.init.normal_(norm.linear.weight)
        gamma, beta = (self.CONDITION @ norm.linear.weight.T)[:, None].chunk(2, -1)
        hat = (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(norm(x, self.CONDITION), hat * (1 + gamma) + beta, atol=1e-12)

    def test_adaln_zero(self):
        x = torch.randn(2, 5, 6, dtype=torch.float64)
        norm, block = AdaLNZero(6, 4).double(), nn.Linear(6, 6).double()
        assert torch.equal(norm(x, self.CONDITION, block), x)
        nn.init.normal_(norm.linear.weight)
        gamma, beta, gate = (self.CONDITION @ norm.linear.weight.T)[:, None].chunk(3, -1)
        hat = (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        wanted = x + gate * block(hat * (1 + gamma) + beta)
        assert torch.allclose(norm(x, self.CONDITION, block), wanted, atol=1e-12)


def test_modulated_weights():
    """Equations 1 and 3 of Karras et al. 2020; noise of variance s² comes out with variance 1."""
    w, s = torch.randn(5, 6, 3, 3, dtype=torch.float64), torch.rand(2, 6, dtype=torch.float64) + 0.5
    scaled = torch.einsum("oikl,ni->noikl", w, s)
    assert torch.allclose(modulate_weight(w, s, demodulate=False), scaled)
    found = modulate_weight(w, s)
    wanted = scaled / (scaled.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    assert torch.allclose(found, wanted)
    y = nn.functional.conv2d(torch.randn(1, 12, 80, 80, dtype=torch.float64), found.flatten(0, 1), groups=2)
    assert (y.var((0, 2, 3)) - 1).abs().max() < 0.1
    assert modulate_weight(torch.randn(3, 4), torch.ones(2, 4)).shape == (2, 3, 4)


def test_moments_of_each_position_and_their_shortcut():
    """PONO: what each position loses, a later layer gets back."""
    m = statistics(C, "position")
    assert m.mean.shape == (2, 1, 5, 7) and m.count == 6
    normalised = (C - C.mean(1, keepdim=True)) / (C.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(adaptive(C, C * 0 + S.mean(), over="position", eps=1e-5) - S.mean(), normalised * 1e-5**0.5)
    assert torch.allclose(normalised * m.std(1e-5) + m.mean, C, atol=1e-12)


def test_gradients_of_conditional_norms():
    module = table(ConditionalInstanceNorm, 2)
    x = torch.randn(2, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: module(t, torch.tensor([1, 0])), x)
    assert torch.autograd.gradcheck(
        lambda c, s: adaptive(c, s, over="group", num_groups=2), (x, x.detach().clone().requires_grad_())
    )
    assert isinstance(module.weight, nn.ParameterList)
    assert torch.autograd.gradcheck(adaattn, (x, torch.randn(1, 6, 2, 2, dtype=torch.float64, requires_grad=True)))
    weight, style = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(modulate_weight, (weight, style))


class TestAttentive:
    X = 3 * torch.randn(5, 4, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 2

    def test_the_formula(self):
        norm = AttentiveNorm(4, mixtures=3).double()
        a = self.X.mean((2, 3)) / (self.X.var((2, 3), correction=0) + 1e-3).sqrt()
        z = a @ norm.gate.weight.T
        z = (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()
        shares = ((z + 3) / 6).clamp(0, 1)
        gamma, beta = ((shares @ table).view(5, 4, 1, 1) for table in (norm.gamma, norm.beta))
        wanted = nn.BatchNorm2d(4, affine=False).double()(self.X) * gamma + beta
        assert torch.allclose(norm(self.X), wanted, atol=1e-9)

    def test_in_evaluation_a_sample_stands_alone(self):
        norm = AttentiveNorm(4, base=InstanceNorm(4, affine=False)).double()
        norm(self.X)
        norm.eval()
        assert torch.allclose(norm(self.X), torch.cat([norm(x) for x in self.X.split(1)]), atol=1e-12)
        with pytest.raises(ValueError, match="mixtures must be at least 1, got 0"):
            AttentiveNorm(4, mixtures=0)
