import warnings

import pytest
import torch
import torchvision
from torch import nn

from styleapp.norms import (
    NORMS,
    BatchNorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    SyncBatchNorm,
    convert_norms,
    convert_sync,
    freeze,
    make_norm,
    unfreeze,
)


@pytest.mark.parametrize("name", NORMS)
def test_every_name_makes_a_norm_of_32_channels(name):
    norm = make_norm(name, 32)
    x = torch.randn(2, 32, 6, 6)
    if name in ("layernorm", "rms", "scalenorm"):
        x = x.movedim(1, -1)
    y = norm(x, 0) if name == "cin" else norm(x)
    assert y.shape == x.shape and y.isfinite().all()


def test_arguments_callables_and_none():
    assert make_norm("gn:8", 32).num_groups == 8
    assert make_norm("GN:8", 32, eps=1e-3).eps == 1e-3
    assert make_norm("ibn_a:0.25", 32).sizes == [8, 24]
    assert make_norm("cin:24", 8).num_styles == 24
    assert make_norm("ln", 32).num_groups == 1
    assert make_norm("iternorm:4", 32).num_groups == make_norm("evonorm_s0:4", 32).num_groups == 4
    assert make_norm("modenorm:3", 32).modes == 3
    assert make_norm("dbn", 32).iterations is None and make_norm("lrn:3", 32).size == 3
    assert make_norm("pono", 4).over == "position"
    assert isinstance(make_norm(nn.BatchNorm2d, 4), nn.BatchNorm2d)
    assert isinstance(make_norm(None, 4), nn.Identity) and isinstance(make_norm("none", 4), nn.Identity)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("switchible", "unknown norm 'switchible', did you mean 'switchable'"),
        ("xyz", "unknown norm 'xyz'; choices: bn, syncbn"),
        ("in:3", "norm 'in' takes no argument"),
        ("gn:many", "must be a number, got 'gn:many'"),
        ("gn:5", "num_channels"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(ValueError, match=message):
        make_norm(name, 32)


def randomise(model):
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5), m.bias.normal_(), m.running_mean.normal_(), m.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("build", [torchvision.models.resnet18, torchvision.models.vgg11_bn])
def test_whole_networks_there_and_back(build):
    model = randomise(build())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model(x)
        report = convert_norms(model, "gn:16")
        assert len(report.converted) == len(report.kept_affine) == count and not report.lost_affine
        assert set(report.converted.values()) == {"BatchNorm2d → GroupNorm"}
        assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        assert model(x).isfinite().all() and not torch.allclose(model(x), wanted)
        name = next(iter(report.converted))
        assert torch.equal(model.get_submodule(name).weight, before[f"{name}.weight"])
        convert_norms(model, report.original)
        assert torch.equal(model(x), wanted)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_batch_norm_to_ours_and_frozen_gives_the_same_network():
    model = randomise(torchvision.models.resnet18())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model(x)
        convert_norms(model, "bn")
        assert torch.equal(model(x), wanted)
        report = freeze(model)
        assert len(report.converted) == 20
        assert torch.allclose(model.train()(x), wanted, atol=1e-3)
        assert not [n for n, _ in model.named_parameters() if "bn" in n]
        unfreeze(model)
        assert torch.equal(model.eval()(x), wanted)
        assert sum(isinstance(m, BatchNorm) for m in model.modules()) == 20


def test_what_is_kept_and_what_is_lost():
    model = nn.Sequential(
        nn.BatchNorm2d(4, eps=1e-3).double(), nn.InstanceNorm2d(4), nn.LayerNorm((4, 5, 5)), nn.Conv2d(4, 4, 1)
    ).eval()
    report = convert_norms(model, "in")
    assert report.converted == {"0": "BatchNorm2d → InstanceNorm", "1": "InstanceNorm2d → InstanceNorm"}
    assert report.kept_affine == ["0"]
    assert model[0].eps == 1e-3 and model[0].weight.dtype == torch.float64 and not model[0].training
    assert convert_norms(model, "half-in").lost_affine == ["0", "1"]


def test_tokens_to_dynamic_tanh_and_batch_norm_to_what_has_no_eps():
    model = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0.0, batch_first=True
    )  # its short way in evaluation is layer norm
    x = torch.randn(2, 5, 8)
    report = convert_norms(model, "dyt", dim=-1)
    assert set(report.converted) == {"norm1", "norm2"} == set(report.kept_affine)
    assert model(x).shape == x.shape
    convert_norms(model, report.original)
    assert isinstance(model.norm1, nn.LayerNorm)
    model = nn.Sequential(nn.BatchNorm2d(8))
    for name in NORMS:
        if name not in ("none", "cin", "layernorm", "rms", "scalenorm"):
            report = convert_norms(model, f"{name}:2" if name in ("gn", "evonorm-s0") else name)
            assert model(torch.randn(2, 8, 4, 4)).isfinite().all()
            convert_norms(model, report.original)


def test_where_and_errors_that_change_nothing():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(6))
    report = convert_norms(model, "in", where=lambda name, m: m.num_features == 6)
    assert list(report.converted) == ["1"]
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(6))
    with pytest.raises(ValueError, match="1: BatchNorm2d of 6 channels"):
        convert_norms(model, "gn:8")
    assert isinstance(model[0], nn.BatchNorm2d)
    with pytest.raises(ValueError, match="did you mean 'gn'"):
        convert_norms(model, "gm")


def test_a_shared_module_stays_shared():
    bn = nn.BatchNorm2d(4)
    model = nn.Sequential(bn, nn.ReLU(), bn)
    convert_norms(model, "gn:2")
    assert model[0] is model[2] and isinstance(model[0], GroupNorm)


def test_sync():
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.InstanceNorm2d(4)))
    x = torch.randn(2, 3, 8, 8)
    wanted = model(x)
    report = convert_sync(model)
    assert list(report.converted) == ["1"] and isinstance(model[1], SyncBatchNorm)
    assert torch.equal(model(x), wanted)
    assert torch.allclose(model.train()(x), model.train()(x))


def test_freeze_says_when_there_is_nothing():
    with pytest.warns(UserWarning, match="no batch norm"):
        freeze(nn.Sequential(InstanceNorm(3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        freeze(nn.Sequential(nn.BatchNorm2d(3)))
    frozen = torchvision.ops.FrozenBatchNorm2d(4)
    model = nn.Sequential(frozen)
    convert_norms(model, "frozenbn")
    assert isinstance(model[0], FrozenBatchNorm)
