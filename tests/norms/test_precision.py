"""Statistics are float32 in low precision, for every norm."""

import pytest
import torch
from torch import nn

from styleapp.norms import (
    CLADE,
    SEAN,
    SPADE,
    ActNorm,
    AdaptiveNorm,
    AttentiveNorm,
    BatchInstanceNorm,
    BatchNorm,
    BatchRenorm,
    ConditionalInstanceNorm,
    DecorrelatedBatchNorm,
    DomainBatchNorm,
    DynamicErf,
    DynamicTanh,
    EvoNormB0,
    EvoNormS0,
    FilterResponseNorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    GlobalResponseNorm,
    GroupNorm,
    HalfInstanceNorm,
    IBNa,
    InstanceLayerNorm,
    InstanceNorm,
    LayerNorm,
    LayerNorm2d,
    LocalContrastNorm,
    LocalResponseNorm,
    ModeNorm,
    ModulatedNorm,
    MovingAverageBatchNorm,
    Norm,
    OnlineNorm,
    RegionNorm,
    RepresentativeBatchNorm,
    RMSNorm,
    ScaleNorm,
    SwitchableNorm,
    VirtualBatchNorm,
    efdm,
    ot,
    wct,
)

CHANNELS = 8
MAP = torch.ones(2, 3, 8, 8)
CONDITION = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
CODES = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
NORMS = {
    "bn": BatchNorm(CHANNELS),
    "ghost": GhostBatchNorm(CHANNELS, virtual_batch_size=1),
    "frozen": FrozenBatchNorm(CHANNELS),
    "renorm": BatchRenorm(CHANNELS),
    "dbn": DecorrelatedBatchNorm(CHANNELS, num_groups=2, iterations=None),
    "iternorm": DecorrelatedBatchNorm(CHANNELS, num_groups=2),
    "in": InstanceNorm(CHANNELS),
    "gn": GroupNorm(CHANNELS, num_groups=2),
    "ln": GroupNorm(CHANNELS, num_groups=1),
    "ln2d": LayerNorm2d(CHANNELS),
    "layernorm": LayerNorm((CHANNELS, 8, 8)),
    "rms": RMSNorm((CHANNELS, 8, 8)),
    "scalenorm": ScaleNorm(CHANNELS),
    "lrn": LocalResponseNorm(CHANNELS),
    "lcn": LocalContrastNorm(CHANNELS, kernel_size=5),
    "actnorm": ActNorm(CHANNELS),
    "switchable": SwitchableNorm(CHANNELS),
    "ibn-a": IBNa(CHANNELS),
    "half-in": HalfInstanceNorm(CHANNELS),
    "bin": BatchInstanceNorm(CHANNELS),
    "iln": InstanceLayerNorm(CHANNELS, rho=0.5),
    "frn": FilterResponseNorm(CHANNELS),
    "grn": GlobalResponseNorm(CHANNELS),
    "evonorm-b0": EvoNormB0(CHANNELS),
    "evonorm-s0": EvoNormS0(CHANNELS, num_groups=2),
    "dyt": DynamicTanh(CHANNELS),
    "derf": DynamicErf(CHANNELS),
    "cin": ConditionalInstanceNorm(CHANNELS),
    "domain": DomainBatchNorm(CHANNELS, 1),
    "mode": ModeNorm(CHANNELS),
    "virtual": VirtualBatchNorm(CHANNELS),
    "rbn": RepresentativeBatchNorm(CHANNELS),
    "mabn": MovingAverageBatchNorm(CHANNELS),
    "online": OnlineNorm(CHANNELS),
    "attentive": AttentiveNorm(CHANNELS),
    "clade": CLADE(CHANNELS, 3),
    "region": RegionNorm(CHANNELS, 3),
    "spade": SPADE(CHANNELS, 3),
    "sean": SEAN(CHANNELS, 3, style_channels=16),
    "adain": AdaptiveNorm(),
    "adagn": AdaptiveNorm("group", num_groups=2),
    "norm": Norm(CHANNELS, "layer"),
    "position": Norm(CHANNELS, "position"),
    "modulated": ModulatedNorm(InstanceNorm(CHANNELS, affine=False), CHANNELS, 4),
}


def call(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    more = {
        ConditionalInstanceNorm: (0,),
        DomainBatchNorm: (0,),
        VirtualBatchNorm: (x.flip(0) * 0.5 + 1,),
        CLADE: (torch.arange(64).view(1, 8, 8) % 3,),
        RegionNorm: (MAP,),
        SPADE: (MAP,),
        SEAN: (MAP, CODES.to(x.dtype)),
        ModulatedNorm: (CONDITION.to(x.dtype),),
        AdaptiveNorm: (x.flip(0) * 0.5 + 1,),
    }.get(type(norm), ())
    return norm(x, *more)


@pytest.fixture(params=NORMS)
def norm(request) -> nn.Module:
    import copy

    torch.manual_seed(0)
    return copy.deepcopy(NORMS[request.param])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_plus_minus_512_is_finite_and_right(norm, dtype, channels_last):
    """The squares of ±512 overflow fp16: statistics in it give infinity, and 0 for the result."""
    x = 512 * torch.ones(2, CHANNELS, 8, 8)
    x[..., ::2] = -512
    x[1] *= 0.5
    wanted = call(norm.float(), x)
    x = x.to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    found = call(norm.to(dtype), x)
    assert found.dtype == dtype and found.isfinite().all()
    scale = wanted.abs().max()
    assert (found.float() - wanted).abs().max() <= (2e-3 if dtype == torch.float16 else 2e-2) * scale


def test_autocast(norm):
    """Under autocast activations come in bfloat16 while parameters and buffers are float32."""
    x = 3 * torch.randn(2, CHANNELS, 8, 8) + 2
    wanted = call(norm, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = call(norm, x.bfloat16())
    assert (found.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_large_mean_loses_no_accuracy(norm, channels_last):
    """Mean 1e4, variance 1: E[x²] - E[x]² in float32 would leave nothing of the variance."""
    no_mean = (
        FrozenBatchNorm,
        FilterResponseNorm,
        RMSNorm,
        GlobalResponseNorm,
        EvoNormB0,
        EvoNormS0,
        LocalResponseNorm,
    )
    if isinstance(norm, (*no_mean, DynamicTanh, AdaptiveNorm, AttentiveNorm)):
        pytest.skip("subtracts no mean of the input, adds a style's of the same size, or compares means")
    x = (torch.randn(2, CHANNELS, 8, 8, dtype=torch.float64) + 1e4).float()
    wanted = call(norm.double(), x.double())
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    found = call(norm.float(), x)
    # float32 holds 1e4 to within 5e-4: what the mean itself can be known to
    assert (found.detach().double() - wanted).abs().max() < 2e-3 * max(1.0, float(wanted.detach().abs().max()))


def test_transforms_in_half_precision():
    x, s = torch.randn(1, 4, 8, 8), 100 * torch.randn(1, 4, 8, 8)
    for transform in (efdm, wct, ot):
        wanted = transform(x, s)
        found = transform(x.half(), s.half())
        assert found.isfinite().all() and (found.float() - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize("name", ["gn", "ln", "ln2d", "layernorm"])
def test_parameters_of_another_dtype_where_torch_refuses_them(name, monkeypatch):
    """As on a GPU: in float32, and back to the dtype of the input."""
    monkeypatch.setattr("styleapp.norms.named._mixed", lambda x, weight: x.dtype != weight.dtype)
    norm = NORMS[name]
    x = torch.randn(2, CHANNELS, 8, 8).bfloat16()
    found = norm(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, norm(x.float()).bfloat16())
