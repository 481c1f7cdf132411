"""The Python in the documentation runs."""

import re
from pathlib import Path

import pytest
import torch
from conftest import noise
from PIL import Image

from styleapp.export import LEAST_TORCH, export_onnx
from styleapp.options import Options

FOUND = tuple(map(int, torch.__version__.split(".")[:2]))
ROOT = Path(__file__).parents[1]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in sorted([*ROOT.glob("docs/*.md")])
    if page.name != "export.md"
    for i, block in enumerate(PYTHON.findall(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_examples_run(block):
    exec(compile(block, "docs", "exec"), {})


@pytest.mark.long
def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "painting.jpg"):
        noise(48, 64).save(name)
    (block,) = PYTHON.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    exec(compile(block, "README", "exec"), {})
    assert all((tmp_path / name).exists() for name in ("out.png", "mixed.png"))


@pytest.mark.skipif(FOUND < LEAST_TORCH, reason="an older PyTorch")
def test_the_example_of_export_runs(transfer, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    noise(48, 64).save("photo.jpg")
    export_onnx(transfer, Path("great-wave.onnx"), "great-wave", Options(style_size=64))
    (block,) = PYTHON.findall((ROOT / "docs/export.md").read_text(encoding="utf-8"))
    exec(compile(block, "export.md", "exec"), {})
    assert Image.open("out.png").size == (64, 48)


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("weights/*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_numbers_of_the_docs_are_those_of_the_benchmarks(monkeypatch):
    monkeypatch.chdir(ROOT)
    import readme_numbers

    assert readme_numbers.readme() in Path("README.md").read_text(encoding="utf-8")
    assert readme_numbers.everything() == Path("docs/numbers.md").read_text(encoding="utf-8")
    losses = {what: measured for what, measured, _ in readme_numbers.losses()}
    assert all(norm in losses["style loss of small AdaIN decoders by the norm inside"] for norm in ("bn", "switchable"))
    assert len(set(losses.values())) == len(losses), "a number stands in two rows"
