import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from styleapp.norms import (
    AdaptiveNorm,
    BatchNorm,
    ConditionalBatchNorm,
    ConditionalGroupNorm,
    ConditionalInstanceNorm,
    ConditionalLayerNorm,
    GroupNorm,
    InstanceNorm,
    adabn,
    adagn,
    adain,
    adaln,
    adaptive,
    efdm,
    moments,
    wct,
)

G = torch.Generator().manual_seed(0)
C = torch.randn(2, 6, 5, 7, dtype=torch.float64, generator=G)
S = 3 * torch.randn(2, 6, 4, 9, dtype=torch.float64, generator=G) + 2
TRANSFORMS = [adain, adaln, adabn, lambda c, s, a=1.0: adagn(c, s, a, num_groups=3), efdm, wct]
NAMES = ["adain", "adaln", "adabn", "adagn", "efdm", "wct"]


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


class TestWCT:
    def test_covariance_is_that_of_the_style(self):
        y = wct(C, S, eps=1e-12)
        for n in range(2):
            assert np.allclose(np.cov(y[n].flatten(1), bias=True), np.cov(S[n].flatten(1), bias=True), atol=1e-9)
            assert torch.allclose(y[n].mean((1, 2)), S[n].mean((1, 2)))

    def test_fewer_positions_than_channels(self):
        y = wct(torch.randn(1, 16, 2, 2), torch.randn(1, 16, 8, 8))
        assert y.isfinite().all() and y.abs().max() < 100

    def test_flat_content(self):
        assert wct(torch.ones(1, 4, 3, 3), torch.randn(1, 4, 3, 3)).isfinite().all()


def test_gradients_of_conditional_norms():
    module = table(ConditionalInstanceNorm, 2)
    x = torch.randn(2, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: module(t, torch.tensor([1, 0])), x)
    assert torch.autograd.gradcheck(
        lambda c, s: adaptive(c, s, over="group", num_groups=2), (x, x.detach().clone().requires_grad_())
    )
    assert isinstance(module.weight, nn.ParameterList)
