"""Tiny random networks and pictures: no test needs a download, a GPU or the shipped weights unless it says so."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from styleapp.models import CodePredictor, Decoder, Encoder, ShiftPredictor, Stylizer
from styleapp.models.predictor import PROBES
from styleapp.pipeline import StyleTransfer

# Processes side by side (`make test`) share the cores; those that a test starts inherit the environment.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(threads)

TINY_VGG = (4, 4, "M", 6, 6, "M", 8, 8, 8, 8, "M", 16)
SIZES = (32, 64, 128)
FILES = [
    "vgg19_relu4_1",
    "adain_decoder",
    "styles",
    "cin",
    "cin_sizes",
    "adain_codes",
    "ablation_none",
    "ablation_bn",
    "ablation_in",
    "in_great-wave",
]
STYLES = ("great-wave", "wheat-field", "the-visit")


def alive(network: Stylizer) -> Stylizer:
    """Filters that keep every channel at work, on average; with torch's own every picture comes out as one flat grey.

    Each convolution is scaled and shifted until its output on a random picture has mean 0 and deviation 1 in every
    channel, the last one 0.5 and 0.2 (as LSUV does, Mishkin and Matas 2016).
    """
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), (48, 48), mode="bilinear")
    with torch.no_grad():
        for part in (network.encoder, network.decoder):
            for name in part.names:
                if name == "M":
                    x = torch.nn.functional.max_pool2d(x, 2, ceil_mode=True)
                elif name == "up":
                    x = torch.nn.functional.interpolate(x, scale_factor=2.0)
                else:
                    layer = part.get_submodule(name)
                    torch.nn.init.kaiming_normal_(layer.weight)
                    torch.nn.init.zeros_(layer.bias)
                    y = layer(x)
                    last = part is network.decoder and name == part.names[-1]
                    scale = (0.2 if last else 1.0) / y.std((0, 2, 3))
                    layer.weight *= scale.view(-1, 1, 1, 1)
                    layer.bias += (0.5 if last else 0.0) - scale * y.mean((0, 2, 3))
                    x = torch.relu(layer(x))
    return network.eval().requires_grad_(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each process is dealt its share of what takes long, and begins with it: none waits for another at the end."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.get_closest_marker("long")]
    rest = [item for item in items if not item.get_closest_marker("long")]
    share = -(-len(rest) // count)
    items[:] = [item for i in range(count) for item in (*long[i::count], *rest[i * share : (i + 1) * share])]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_styles_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["STYLEAPP_STYLES"] = str(tmp_path_factory.mktemp("no-styles"))
    os.environ["STYLEAPP_CODES"] = str(tmp_path_factory.mktemp("no-codes"))


@pytest.fixture
def stylizer() -> Stylizer:
    return alive(Stylizer(Encoder(TINY_VGG), Decoder(16)))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights like the shipped one, of a tiny random network."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("weights")
    network = alive(Stylizer(Encoder(TINY_VGG), Decoder(16)))
    decoder = {f"decoder.{k}": v for k, v in network.decoder.state_dict().items()}
    with torch.random.fork_rng():  # what is told of a painting moves a channel by a tenth of its deviation
        shifts = ShiftPredictor(4 + 6 + 8, sum(network.decoder.hidden.values())).requires_grad_(False)
        torch.nn.init.normal_(shifts.last.weight, std=0.02)
    shifts.mean.fill_(-0.5)
    shifts.probes.copy_(torch.linspace(0, 1, math.prod(PROBES)).reshape(2, 224, 224, 3).movedim(-1, 1).roll(60, 2))
    told = {f"shifts.{k}": v for k, v in shifts.state_dict().items()}
    skips, above = {"relu1_1": 4, "relu2_1": 6}, {"relu1_1": 4, "relu2_1": 6, "relu3_1": 8}

    def seeing_more(skips: dict[str, int]) -> Decoder:
        """The same filters, and some for what the encoder has at these layers."""
        decoder = Decoder(16, skips=skips).requires_grad_(False)
        decoder.load_state_dict(network.decoder.state_dict(), strict=False)
        return decoder

    sees_more = seeing_more(skips)
    with torch.random.fork_rng():
        shown = seeing_more(above)
    seeing = {f"decoder.{k}": v for k, v in sees_more.state_dict().items()}

    def table(decoder: Decoder, count: int) -> Tensor:
        conditional = Stylizer(network.encoder, decoder, conditional=True)
        codes = [conditional.measure(torch.rand(1, 3, 32, 32)) for _ in range(count)]
        return torch.stack([torch.cat([c.gamma, c.beta]).flatten(1) for c in codes])

    def told_table(seed: int) -> Tensor:
        """γ and β at relu4_1 and the layers above, and behind them what the convolutions are told, unscaled."""
        scaled, told = 16 + 4 + 6 + 8, sum(network.decoder.hidden.values())
        rows = torch.rand(2, scaled + told, generator=torch.Generator().manual_seed(seed))
        rows[0, scaled:] = 0
        rows[1, scaled:] -= 0.5
        return rows

    def with_norm(norm: str) -> dict[str, Tensor]:
        """The same filters with a norm inside; running statistics as a training would have left them."""
        other = Decoder(16, norm=norm)
        other.load_state_dict(network.decoder.state_dict(), strict=False)
        for _ in range(50):
            other(network.encoder(torch.rand(2, 3, 32, 32)))
        return other.state_dict()

    files = {
        "vgg19_relu4_1": (network.encoder.state_dict(), {"layers": TINY_VGG}),
        "adain_decoder": (
            shown.state_dict() | told,
            {"width": 1.0, "in_channels": 16, "skips": above},
        ),
        "styles": (
            {name: torch.rand(len(SIZES), 2, 16) for name in STYLES}
            | {f"{name}.layers": torch.rand(len(SIZES), 2, 4 + 6 + 8) for name in STYLES},
            {"sizes": SIZES},
        ),
        "cin": (
            seeing | {"codes": table(sees_more, len(STYLES))},
            {"width": 1.0, "styles": STYLES, "skips": skips},
        ),
        "cin_sizes": ({f"{name}.{size}": table(sees_more, 1)[0] for name in STYLES for size in SIZES[1:]}, {}),
        # Of one style only: the others are predicted.
        "adain_codes": ({f"the-visit.{size}": told_table(size) for size in SIZES[::2]}, {}),
        "ablation_none": (network.decoder.state_dict(), {"width": 1.0, "in_channels": 16}),
        "ablation_bn": (with_norm("bn"), {"width": 1.0, "in_channels": 16, "norm": "bn"}),
        "ablation_in": (with_norm("in"), {"width": 1.0, "in_channels": 16, "norm": "in"}),
        "in_great-wave": (decoder | {"codes": table(network.decoder, 1)}, {"width": 1.0, "styles": ["great-wave"]}),
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
    entries["cin_sizes"]["config"]["cin_sha256"] = entries["cin"]["sha256"]
    entries["adain_codes"]["config"]["adain_decoder_sha256"] = entries["adain_decoder"]["sha256"]
    about = {"title": "T", "artist": "A", "year": "1900", "museum": "M", "licence": "CC0"}
    manifest = {"files": entries, "styles": [{"name": name, **about} for name in STYLES]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def transfer(weights: Path) -> StyleTransfer:
    return StyleTransfer("cpu", "fp32", weights=weights)


@pytest.fixture
def foreseeing(weights: Path) -> StyleTransfer:
    """With a predictor, so that its CIN network takes any painting."""
    transfer = StyleTransfer("cpu", "fp32", weights=weights)
    network = transfer.networks.conditional("cin").stylizer
    torch.manual_seed(0)
    predictor = CodePredictor(sum(network.encoder.layer_channels.values()), network.code_channels, hidden=8)
    for layer in (predictor.last, predictor.correct):
        torch.nn.init.normal_(layer.weight, std=0.1)
    predictor.probe.uniform_()
    network.predictor = predictor.requires_grad_(False)
    return transfer


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
    monkeypatch.setenv("STYLEAPP_CODES", str(tmp_path / "codes"))
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


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs of torch.compile, which run as they are: its code generator takes a minute or two for a network."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend=backend))
    return graphs


# The page


@pytest.fixture(scope="session")
def service(transfer: StyleTransfer):
    from styleapp.web import Service

    return Service(transfer)


@pytest.fixture(scope="session")
def url(service) -> Iterator[str]:
    """A served page with the tiny network."""
    from styleapp.web.server import Server, make_app

    with Server(make_app(service), "127.0.0.1", 0) as server:
        yield server.url


@pytest.fixture(scope="session")
def browser():
    from visitor import chromium

    yield from chromium()


@pytest.fixture
def visit(browser, url):
    """Open the page in a window of its own; afterwards nothing may have failed in it."""
    from visitor import Visitor

    visitors: list[Visitor] = []

    def open_page(**more) -> Visitor:
        visitors.append(Visitor(browser, url, **more))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.close()


@pytest.fixture
def one_step(monkeypatch: pytest.MonkeyPatch) -> float:
    """Minutes in which a training takes one step: its clock goes on by a second whenever it is read."""
    clock = SimpleNamespace(monotonic=map(float, itertools.count()).__next__)
    monkeypatch.setattr("styleapp.training.loop.time", clock)
    return 3 / 60
