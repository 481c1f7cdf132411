"""The network as an ONNX file, run by ONNX Runtime."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import noise
from PIL import Image

from styleapp.errors import ImageError, OptionError
from styleapp.export import LEAST_TORCH, export_onnx
from styleapp.images import from_pil
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

FOUND = tuple(map(int, torch.__version__.split(".")[:2]))
new_enough = pytest.mark.skipif(FOUND < LEAST_TORCH, reason="an older PyTorch")

SIZES = ((1, 40, 56), (1, 17, 33), (3, 16, 16), (2, 77, 130))


def ran(path, **inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items()})[0])


def photos(count, height, width):
    """With some grain: in what is quite flat a norm makes much of rounding."""
    smooth = torch.cat([from_pil(noise(height, width, seed=i)).rgb for i in range(count)])
    return smooth.lerp(torch.rand_like(smooth), 0.3)


@new_enough
@pytest.mark.parametrize("norm, alpha", [("adain", 1), ("adain", 0.6), ("cin", 1), ("cin", 0.6), ("in", 1)])
def test_one_style(transfer, tmp_path, norm, alpha):
    options = Options(norm=norm, alpha=alpha, style_size=64)
    about = export_onnx(transfer, tmp_path / "style.onnx", "great-wave", options)
    network = transfer.networks.of(norm, ["great-wave"])
    code = transfer.styles.code("great-wave", 64, norm)
    for count, height, width in SIZES:
        photo = photos(count, height, width)
        found = ran(tmp_path / "style.onnx", photo=photo)
        assert found.shape == photo.shape
        assert torch.allclose(found, network(photo, code, alpha).clamp(0, 1), atol=5e-4)  # CIN in float32: 2.6e-4
    model = onnx.load(tmp_path / "style.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {p.key: p.value for p in model.metadata_props}.items() >= about.items()
    assert about["style"] == "great-wave" and about["norm"] == norm
    sizes = [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", 3, "height", "width"]


@pytest.mark.long
@new_enough
@pytest.mark.parametrize("norm", ["auto", "cin"])
def test_any_painting(foreseeing, tmp_path, norm):
    about = export_onnx(foreseeing, tmp_path / "any.onnx", options=Options(norm=norm))
    assert about["norm"] == ("adain" if norm == "auto" else norm)
    network = foreseeing.networks.of(about["norm"])
    for (count, height, width), painting in zip(SIZES, ((48, 64), (16, 16), (33, 50), (64, 64)), strict=True):
        photo, style = photos(count, height, width), photos(1, *painting)
        found = ran(tmp_path / "any.onnx", photo=photo, painting=style)
        assert torch.allclose(found, network(photo, network.measure(style)).clamp(0, 1), atol=2e-4)


@new_enough
def test_a_painting_and_a_mix(foreseeing, photo, tmp_path):
    """With the code that was found for them inside, refined."""
    style = [(str(photo), 0.7), ("great-wave", 0.3)]
    options = Options(style_size=64, refine=2, detail=0.25)
    about = export_onnx(foreseeing, tmp_path / "mix.onnx", style, options)
    assert (about["norm"], about["style"]) == ("cin", "0.7 photo + 0.3 great-wave")
    code = foreseeing.styles.code(style, 64, "cin", 2)
    x = photos(1, 40, 56)
    wanted = foreseeing.networks.of("cin", detail=0.25)(x, code).clamp(0, 1)
    assert torch.allclose(ran(tmp_path / "mix.onnx", photo=x), wanted, atol=2e-4)


@new_enough
def test_bad_input(transfer, weights, tmp_path, monkeypatch):
    out = tmp_path / "a.onnx"
    with pytest.raises(OptionError, match=r"ends with \.onnx"):
        export_onnx(transfer, tmp_path / "a.pt", "great-wave")
    with pytest.raises(OptionError, match="auto, cin, adain, in, not wct"):
        export_onnx(transfer, out, "great-wave", Options(norm="wct"))
    with pytest.raises(OptionError, match="name one"):
        export_onnx(transfer, out, None, Options(norm="in"))
    with pytest.raises(OptionError, match="detail other than 1 needs a style"):
        export_onnx(transfer, out, None, Options(norm="cin", detail=0.5))
    with pytest.raises(ImageError, match="does not exist"):
        export_onnx(transfer, tmp_path / "no" / "a.onnx", "great-wave")
    with pytest.raises(OptionError, match="bf16"):
        export_onnx(StyleTransfer("cpu", "bf16", weights=weights), out, "great-wave")
    out.write_bytes(b"mine")
    with pytest.raises(ImageError, match="--overwrite"):
        export_onnx(transfer, out, "great-wave")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(OptionError, match=r"styleapp\[onnx\]"):
        export_onnx(transfer, out, "great-wave", Options(norm="adain", style_size=64), overwrite=True)
    assert out.read_bytes() == b"mine" and [f.name for f in tmp_path.iterdir()] == ["a.onnx"]


@new_enough
def test_command_line(run, photo):
    code, out, err = run("export", "--style", "great-wave", "-o", "wave.onnx", "--style-size", 64, "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert (record["output"], record["style"], record["norm"]) == ("wave.onnx", "great-wave", "cin")
    assert run("stylize", photo, "-s", "great-wave", "-o", "a.png", "--style-size", 64, "--precision", "fp32")[0] == 0
    found, wanted = (from_pil(Image.open(path)).rgb for path in (photo, "a.png"))
    assert (ran(Path("wave.onnx"), photo=found) - wanted).abs().max() < 1.01 / 255
    code, out, err = run("export", "--style", "great-wave", "-o", "wave.onnx")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "--overwrite" in err
    code, out, err = run("export", "--style", "grate-wave", "-o", "other.onnx")
    assert code == 2 and "great-wave" in err and not Path("other.onnx").exists()


def test_an_older_torch_is_told(transfer, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.8.0+cpu")
    with pytest.raises(OptionError, match=r"PyTorch 2.14 or later, found 2.8.0"):
        export_onnx(transfer, tmp_path / "a.onnx", "great-wave")
    assert not [*tmp_path.iterdir()]
