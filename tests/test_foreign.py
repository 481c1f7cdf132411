"""Checkpoints of others: files of exactly their layouts, with random numbers, read once by us and once by hand."""

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from PIL import Image
from torch import nn
from torch.nn import functional as F

from styleapp.errors import WeightsError
from styleapp.export import LEAST_TORCH
from styleapp.foreign import convert, import_weights, read_checkpoint
from styleapp.models import Decoder, Encoder, TransformerNet
from styleapp.weights import Weights

FOUND = tuple(map(int, torch.__version__.split(".")[:2]))


def normalised_vgg() -> nn.Sequential:
    """vgg_normalised.pth, written down from the layout: all of VGG-19 to relu5_4, with ceil-mode pooling."""
    layers: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
    channels = 3
    for item in [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512]:
        if item == "M":
            layers.append(nn.MaxPool2d(2, 2, 0, ceil_mode=True))
        else:
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, item, 3), nn.ReLU()]
            channels = item
    return he(nn.Sequential(*layers))


def adain_decoder() -> nn.Sequential:
    layers: list[nn.Module] = []
    for item in [(512, 256), "up", (256, 256), (256, 256), (256, 256), (256, 128), "up", (128, 128),
                          (128, 64), "up", (64, 64), (64, 3)]:  # fmt: skip
        if item == "up":
            layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        else:
            layers += [nn.ReflectionPad2d(1), nn.Conv2d(*item, 3), nn.ReLU()]
    return he(nn.Sequential(*layers[:-1]))


def he(network: nn.Sequential) -> nn.Sequential:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.normal_(module.bias, std=0.1)
    return network.eval().requires_grad_(False)


def saved(tensors, path: Path) -> Path:
    torch.save(OrderedDict(tensors), path)
    return path


def test_normalised_vgg(tmp_path):
    theirs = normalised_vgg()
    file = saved(theirs.state_dict(), tmp_path / "vgg_normalised.pth")
    ours = Encoder()
    ours.load_state_dict(convert(read_checkpoint(file), "x").tensors)
    image = torch.rand(1, 3, 40, 53)
    wanted, x = [], image
    for i, layer in enumerate(theirs[:31]):
        x = layer(x)
        if i in (3, 10, 17, 30):  # relu1_1, relu2_1, relu3_1, relu4_1
            wanted.append(x.clone())
    for a, b in zip(ours.features(image), wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_torchvision_vgg(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.models.vgg19(weights=None).eval()
    he(theirs.features)
    file = saved(theirs.state_dict(), tmp_path / "vgg19.pth")
    ours = Encoder()
    ours.load_state_dict(convert(read_checkpoint(file), "x").tensors)
    image = torch.rand(1, 3, 128, 128)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    first = theirs.features[0]
    padded = F.pad((image - mean) / std, (1,) * 4, mode="reflect")
    wanted = F.relu(F.conv2d(padded, first.weight, first.bias))
    assert torch.allclose(ours.features(image, ["relu1_1"])[0], wanted, rtol=1e-4, atol=1e-4)
    # Away from the borders, which torchvision pads with zeros, the rest agrees too.
    deep = theirs.features[:21]((image - mean) / std)
    assert torch.allclose(ours(image)[..., 8, 8], deep[..., 8, 8], rtol=1e-3, atol=1e-3)


def test_decoder(tmp_path):
    theirs = adain_decoder()
    assert [k for k in theirs.state_dict() if k.endswith("weight")][-1] == "28.weight"
    ours = Decoder()
    ours.load_state_dict(convert(read_checkpoint(saved(theirs.state_dict(), tmp_path / "d.pth")), "x").tensors)
    x = torch.rand(1, 512, 4, 5)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def transformer_state(old: bool = False) -> dict[str, torch.Tensor]:
    """fast_neural_style: names and shapes written down from that repository."""
    state = {}

    def conv(name: str, out: int, into: int, size: int) -> None:
        state[f"{name}.conv2d.weight"] = torch.randn(out, into, size, size) * (2 / (into * size * size)) ** 0.5
        state[f"{name}.conv2d.bias"] = torch.randn(out) * 0.1

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = torch.rand(channels) + 0.5
        state[f"{name}.bias"] = torch.randn(channels) * 0.2
        if old:
            state[f"{name}.running_mean"] = torch.zeros(channels)
            state[f"{name}.running_var"] = torch.ones(channels)

    conv("conv1", 32, 3, 9), norm("in1", 32)
    conv("conv2", 64, 32, 3), norm("in2", 64)
    conv("conv3", 128, 64, 3), norm("in3", 128)
    for i in range(1, 6):
        for j in (1, 2):
            conv(f"res{i}.conv{j}", 128, 128, 3), norm(f"res{i}.in{j}", 128)
    conv("deconv1", 64, 128, 3), norm("in4", 64)
    conv("deconv2", 32, 64, 3), norm("in5", 32)
    conv("deconv3", 3, 32, 9)
    state["deconv3.conv2d.weight"] *= 40
    state["deconv3.conv2d.bias"] += 128
    return state


def by_hand(s: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """The network of that repository, from 0 to 255, written with functions."""

    def conv(name, x, stride=1):
        w = s[f"{name}.conv2d.weight"]
        return F.conv2d(F.pad(x, (w.shape[-1] // 2,) * 4, mode="reflect"), w, s[f"{name}.conv2d.bias"], stride)

    def norm(name, x):
        return F.instance_norm(x, weight=s[f"{name}.weight"], bias=s[f"{name}.bias"])

    x = F.relu(norm("in1", conv("conv1", image * 255)))
    x = F.relu(norm("in2", conv("conv2", x, 2)))
    x = F.relu(norm("in3", conv("conv3", x, 2)))
    for i in range(1, 6):
        y = F.relu(norm(f"res{i}.in1", conv(f"res{i}.conv1", x)))
        x = norm(f"res{i}.in2", conv(f"res{i}.conv2", y)) + x
    for i in (1, 2):
        x = F.relu(norm(f"in{3 + i}", conv(f"deconv{i}", F.interpolate(x, scale_factor=2))))
    return conv("deconv3", x) / 255


@pytest.mark.parametrize("old", [False, True])
def test_fast_neural_style(tmp_path, old):
    state = transformer_state(old)
    found = convert(read_checkpoint(saved(state, tmp_path / "candy.pth")), "candy.pth")
    network = TransformerNet()
    network.load_state_dict(found.tensors)
    image = torch.rand(2, 3, 40, 48)
    assert torch.allclose(network(image), by_hand(state, image), atol=2e-3)
    assert network(image[..., :37, :45]).shape == (2, 3, 37, 45)


def test_what_is_not_known_is_told(tmp_path):
    good = dict(adain_decoder().state_dict())
    cases = {
        "unknown layout": ({"a.weight": torch.rand(3)}, "unknown layout.*vgg_normalised.pth"),
        "missing": ({k: v for k, v in good.items() if k != "5.bias"}, "5.bias is missing"),
        "shape": (good | {"5.bias": torch.rand(7)}, r"5.bias has shape \(7,\), expected \(256,\)"),
        "extra": (good | {"extra.weight": torch.rand(7)}, "do not belong to this layout: extra.weight"),
        "nan": (good | {"5.bias": torch.full((256,), float("nan"))}, "not finite"),
        "transformer": (transformer_state() | {"in9.weight": torch.rand(3)}, "do not belong.*in9.weight"),
    }
    for name, (state, message) in cases.items():
        with pytest.raises(WeightsError, match=message):
            import_weights([saved(state, tmp_path / f"{name}.pth")], tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


def test_no_code_of_a_checkpoint_is_run(tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"0.weight": Evil()}))
    torch.save({"0.weight": Evil()}, tmp_path / "evil2.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    (tmp_path / "empty.pth").touch()
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("evil.pth", "evil2.pth", "text.pth", "empty.pth", "list.pth", "gone.pth"):
        with pytest.raises(WeightsError, match=name):
            read_checkpoint(tmp_path / name)


def test_a_folder_of_others_weights_stylizes(run, tmp_path, photo, monkeypatch):
    saved(normalised_vgg().state_dict(), tmp_path / "vgg_normalised.pth")
    saved(adain_decoder().state_dict(), tmp_path / "decoder.pth")
    noise(64, 64, seed=5).save(tmp_path / "p.png")
    code, out, err = run("weights", "import", "decoder.pth", "vgg_normalised.pth", "--folder", "theirs")
    assert code == 0 and "STYLEAPP_WEIGHTS=theirs" in out, err
    assert set(Weights(tmp_path / "theirs").verify().values()) == {None}
    monkeypatch.setenv("STYLEAPP_WEIGHTS", str(tmp_path / "theirs"))
    assert run("stylize", photo, "-s", "p.png", "--style-size", 64, "-o", "a.png")[0] == 0
    assert run("styles")[0] == 0


def test_an_imported_style_in_stylize_and_compare(run, tmp_path, photo):
    state = transformer_state()
    saved(state, tmp_path / "candy.pth")
    code, out, err = run("weights", "import", "candy.pth")
    assert code == 0 and "--norm in --style candy" in out, err
    assert run("stylize", photo, "-s", "candy", "--norm", "in", "-o", "a.png")[0] == 0
    found = np.asarray(Image.open(tmp_path / "a.png")).astype(float)
    image = torch.from_numpy(np.asarray(Image.open(photo)).copy()).permute(2, 0, 1)[None] / 255
    wanted = by_hand(state, image).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found - wanted).max() <= 1
    assert found.std() > 20
    code, out, _ = run("compare", photo, "-s", "candy", "--methods", "in,adain", "--size", 32, "--json", "-o", "c.png")
    cells = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and cells[0]["reason"] == "" and "unknown style 'candy'" in cells[1]["reason"]
    code, _, err = run("stylize", photo, "-s", "candy", "--norm", "in", "--detail", 0, "-o", "b.png")
    assert code == 2 and "a detail of 1" in err and not (tmp_path / "b.png").exists()
    run("stylize", photo, "-s", "candy", "--norm", "in", "--alpha", 0, "-o", "b.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), np.asarray(Image.open(photo)))
    assert run("weights", "import", "candy.pth", "--name", "sweet")[0] == 0
    assert "in_sweet" in run("weights", "list", "--json")[1]
    code, _, err = run("weights", "import", "photo.png")
    assert code == 1 and "not a checkpoint" in err


@pytest.mark.skipif(FOUND < LEAST_TORCH, reason="an older PyTorch")
def test_an_imported_style_as_onnx(run, tmp_path, photo):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    state = transformer_state()
    saved(state, tmp_path / "candy.pth")
    run("weights", "import", "candy.pth")
    code, _, err = run("export", "-s", "candy", "--norm", "in", "--alpha", 0.5, "-o", "candy.onnx")
    assert code == 0, err
    session = onnxruntime.InferenceSession("candy.onnx")
    for height, width in ((40, 56), (37, 45)):
        image = torch.rand(2, 3, height, width)
        found = torch.from_numpy(session.run(None, {"photo": image.numpy()})[0])
        wanted = by_hand(state, image).clamp(0, 1)[..., :height, :width]
        assert torch.allclose(found, 0.5 * (wanted + image), atol=2e-3)
