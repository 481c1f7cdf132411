"""Tiny random networks and pictures: no test needs a download, a GPU or the shipped weights unless it says so."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from styleapp.models import Decoder, Encoder, Stylizer
from styleapp.pipeline import StyleTransfer

TINY_VGG = (4, 4, "M", 6, 6, "M", 8, 8, 8, 8, "M", 16)
SIZES = (32, 64, 128)
STYLES = ("great-wave", "wheat-field", "the-visit")


def alive(network: Stylizer) -> Stylizer:
    """Filters of a scale that keeps activations alive; with torch's own every picture comes out as one flat grey."""
    with torch.no_grad():
        for layer in [*network.encoder.children(), *network.decoder.children()]:
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.nn.init.zeros_(layer.bias)
        network.decoder.conv1_1.bias.fill_(0.5)
    return network.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_styles_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["STYLEAPP_STYLES"] = str(tmp_path_factory.mktemp("no-styles"))


@pytest.fixture
def stylizer() -> Stylizer:
    return alive(Stylizer(Encoder(TINY_VGG), Decoder(16)))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights like the shipped one, of a tiny random network."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("weights")
    network = alive(Stylizer(Encoder(TINY_VGG), Decoder(16)))
    files = {
        "vgg19_relu4_1": (network.encoder.state_dict(), {"layers": TINY_VGG}),
        "adain_decoder": (network.decoder.state_dict(), {"width": 1.0, "in_channels": 16}),
        "styles": ({name: torch.rand(len(SIZES), 2, 16) for name in STYLES}, {"sizes": SIZES}),
    }
    entries = {}
    for name, (tensors, config) in files.items():
        path = folder / f"{name}.safetensors"
        save_file({k: v.half().contiguous() for k, v in tensors.items()}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries[name] = {
            "file": path.name,
            "sha256": digest,
            "architecture": "tiny",
            "config": config,
            "source": "random",
            "licence": "none",
        }
        if name != "vgg19_relu4_1":
            entries[name]["encoder_sha256"] = entries["vgg19_relu4_1"]["sha256"]
    about = {"title": "T", "artist": "A", "year": "1900", "museum": "M", "licence": "CC0"}
    manifest = {"files": entries, "styles": [{"name": name, **about} for name in STYLES]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def transfer(weights: Path) -> StyleTransfer:
    return StyleTransfer("cpu", "fp32", weights=weights)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    """A picture that compresses well and has structure: smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    array = small[..., 0] if channels == 1 else small
    return Image.fromarray(array, mode).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    noise(40, 56).save(path)
    return path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of four photos and three paintings."""
    root = tmp_path_factory.mktemp("folders")
    for kind, count in (("content", 4), ("style", 3)):
        (root / kind).mkdir()
        for i in range(count):
            noise(48 + 8 * i, 64, seed=100 * count + i).save(root / kind / f"{i}.png")
    return root / "content", root / "style"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call the entry point with arguments, in a folder of its own: (exit code, stdout, stderr)."""
    from styleapp import cli

    monkeypatch.setenv("STYLEAPP_WEIGHTS", str(weights))
    monkeypatch.setenv("STYLEAPP_STYLES", str(tmp_path / "styles"))
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["styleapp", *map(str, args)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call
