"""From manifest to checked file to a network that is ready.

The manifest says of each file what it is (architecture and config), what it must be (sha256) and
where it comes from (source, licence). Nothing is ever downloaded or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from styleapp.errors import WeightsError
from styleapp.gallery import BuiltInStyle, StyleGallery, add_saved, code_of, styles_folder
from styleapp.models import (
    CodePredictor,
    Decoder,
    Encoder,
    Int8Encoder,
    ShiftPredictor,
    StyleCode,
    Stylizer,
    TransformerNet,
)
from styleapp.options import Options

__all__ = [
    "Conditional",
    "Entry",
    "Weights",
    "imported_folder",
    "sha256",
    "weights_folder",
]

Network = TypeVar("Network", bound=nn.Module)

ENCODER, DECODER, STYLES, CIN, IN = "vgg19_relu4_1", "adain_decoder", "styles", "cin", "in_"
INT8 = "vgg19_int8"
CIN_SIZES = "cin_sizes"
ADAIN_CODES = "adain_codes"
ABLATION = "ablation_"
LAYERS = ".layers"
TRANSFORMER = "instance-norm-transformer"


def weights_folder() -> Path:
    """$STYLEAPP_WEIGHTS, or the folder inside the installed package, or that of the source tree.

    Raises:
        WeightsError: if none of them has a manifest.
    """
    here = Path(__file__).parent
    given = os.environ.get("STYLEAPP_WEIGHTS")
    places = [Path(given)] if given else [here / "_weights", here.parent / "weights"]
    for place in places:
        if (place / "manifest.json").is_file():
            return place
    raise WeightsError(f"no weights: looked for manifest.json in {' and '.join(map(str, places))}")


def imported_folder() -> Path:
    """Where networks of others are that a user has imported: beside the user's own styles."""
    return styles_folder().parent / "weights"


@dataclass(frozen=True)
class Entry:
    """What the manifest says of one file; ``folder`` where it is not that of the manifest that was asked for."""

    name: str
    file: str
    sha256: str
    architecture: str
    config: dict[str, Any]
    source: str
    licence: str
    encoder_sha256: str | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Conditional:
    """A network with norms inside its decoder, and the codes that were learned with it.

    Attributes:
        stylizer: float32, on the CPU, in evaluation mode.
        codes: by the name of the style: many for CIN, one for IN.
        sizes: by name, the codes at each stroke size that there is one for; the usual one is that of ``codes``.
    """

    stylizer: Stylizer
    codes: dict[str, StyleCode]
    sizes: dict[str, dict[int, StyleCode]]


class Weights:
    """The weight files of one folder. Reads the manifest at once and each file when it is asked for.

    Raises:
        WeightsError: here and in every method: a file missing, altered, or not fitting another.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or weights_folder()
        self.entries, self.styles = _read_manifest(self.folder / "manifest.json")
        imported = imported_folder()
        if (imported / "manifest.json").is_file():
            entries, _ = _read_manifest(imported / "manifest.json")
            for name, entry in entries.items():
                if entry.architecture == TRANSFORMER:
                    self.entries.setdefault(name, replace(entry, folder=imported))

    def load(self, name: str) -> dict[str, Tensor]:
        """The tensors of a file whose checksum is right."""
        if name not in self.entries:
            raise WeightsError(f"{self.folder}/manifest.json: has no {name!r}; it has {', '.join(self.entries)}")
        entry = self.entries[name]
        path = (entry.folder or self.folder) / entry.file
        try:
            found = sha256(path)
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None
        if found != entry.sha256:
            raise WeightsError(
                f"{path}: wrong checksum (sha256 {found[:12]}…, expected {entry.sha256[:12]}…): "
                "the file was altered or cut off; restore it from the distribution"
            )
        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{path}: not a safetensors file ({error})") from None

    def check_pair(self, name: str) -> None:
        """Refuse a file that was made with another encoder than ours."""
        encoder, entry = self.entries[ENCODER], self.entries[name]
        if entry.encoder_sha256 != encoder.sha256:
            raise WeightsError(
                f"{self.folder / entry.file} was made with another encoder "
                f"({(entry.encoder_sha256 or 'unknown')[:12]}…) than {encoder.file} ({encoder.sha256[:12]}…)"
            )

    def encoder(self) -> Encoder:
        """The encoder, float32, on the CPU."""
        encoder = Encoder(**self.entries[ENCODER].config) if ENCODER in self.entries else Encoder()
        return _filled(encoder, self.load(ENCODER), self.folder)

    @property
    def has_int8(self) -> bool:
        """Whether there is an encoder of 8-bit integers."""
        return INT8 in self.entries

    def int8_encoder(self, encoder: Encoder) -> Int8Encoder:
        """``encoder`` in 8-bit integers."""
        tensors = self.load(INT8)
        self.check_pair(INT8)
        try:
            return Int8Encoder(encoder, tensors)
        except ValueError as error:
            raise WeightsError(f"{self.folder / self.entries[INT8].file}: {error}") from None

    def stylizer(self) -> Stylizer:
        """Encoder and AdaIN decoder, float32, on the CPU, in evaluation mode."""
        encoder = self.encoder()
        tensors = self.load(DECODER)
        self.check_pair(DECODER)
        told = {k.removeprefix("shifts."): tensors.pop(k) for k in list(tensors) if k.startswith("shifts.")}
        decoder = _filled(self._decoder(DECODER, **self.entries[DECODER].config), tensors, self.folder)
        shifts = None
        if told:
            seen = sum(encoder.layer_channels.values()) - encoder.num_channels
            shifts = _filled(ShiftPredictor(seen, sum(decoder.hidden.values())), told, self.folder)
        return Stylizer(encoder, decoder, shifts=shifts).eval().requires_grad_(False)

    def adain_codes(self, stylizer: Stylizer) -> dict[str, dict[int, StyleCode]]:
        """Learned codes of built-in styles for the AdaIN network, by name and stroke size; none where there are none.

        Raises:
            WeightsError: for codes of another decoder.
        """
        found: dict[str, dict[int, StyleCode]] = {}
        if ADAIN_CODES in self.entries:
            for of_style, rows in self._codes(ADAIN_CODES, DECODER, stylizer.code_channels).items():
                style, _, size = of_style.rpartition(".")
                found.setdefault(style, {})[int(size)] = code_of(rows)
        return found

    def conditional(self, name: str, encoder: Encoder) -> Conditional:
        """The network of conditional instance norm, "cin", or one of instance norm, "in_" and the style."""
        tensors = self.load(name)
        self.check_pair(name)
        entry = self.entries[name]
        config = {k: v for k, v in entry.config.items() if k != "styles"}
        decoder = self._decoder(name, in_channels=encoder.num_channels, **config)
        state = {k.removeprefix("decoder."): v for k, v in tensors.items() if k.startswith("decoder.")}
        stylizer = Stylizer(encoder, _filled(decoder, state, self.folder), conditional=True)
        if state := {k.removeprefix("predictor."): v for k, v in tensors.items() if k.startswith("predictor.")}:
            seen = sum(encoder.layer_channels.values())
            predictor = CodePredictor(seen, stylizer.code_channels, hidden=len(state["first.bias"]))
            stylizer.predictor = _filled(predictor, state, self.folder)
        codes = tensors.get("codes", torch.empty(0))
        names = entry.config["styles"]
        if codes.shape != (len(names), 2, stylizer.code_channels):
            raise WeightsError(
                f"{self.folder / entry.file}: codes of shape {tuple(codes.shape)}, "
                f"expected {(len(names), 2, stylizer.code_channels)}"
            )
        learned = {n: code_of(rows) for n, rows in zip(names, codes, strict=True)}
        sizes = {n: {Options.style_size: code} for n, code in learned.items()}
        if name == CIN and CIN_SIZES in self.entries:
            for of_style, rows in self._codes(CIN_SIZES, CIN, stylizer.code_channels).items():
                style, _, size = of_style.rpartition(".")
                if style in sizes:
                    sizes[style][int(size)] = code_of(rows)
        return Conditional(stylizer.eval().requires_grad_(False), learned, sizes)

    def _codes(self, name: str, network: str, channels: int) -> dict[str, Tensor]:
        """The codes in a file for that network, (2, channels) by "style.size"."""
        tensors, entry = self.load(name), self.entries[name]
        path = self.folder / entry.file
        if entry.config.get(f"{network}_sha256") != self.entries[network].sha256:
            raise WeightsError(f"{path} was made with another network than {self.entries[network].file}")
        for of_style, rows in tensors.items():
            if rows.shape != (2, channels) or not of_style.rpartition(".")[2].isdigit():
                raise WeightsError(f"{path}: {of_style!r} of shape {tuple(rows.shape)}, expected {(2, channels)}")
        return tensors

    def ablation(self, norm: str, encoder: Encoder) -> Stylizer:
        """AdaIN with the small decoder that has this norm inside."""
        name = ABLATION + norm
        tensors = self.load(name)
        self.check_pair(name)
        decoder = _filled(self._decoder(name, **self.entries[name].config), tensors, self.folder)
        return Stylizer(encoder, decoder).eval().requires_grad_(False)

    def _decoder(self, name: str, **config: Any) -> Decoder:
        try:
            return Decoder(**config)
        except (AttributeError, TypeError, ValueError) as error:
            message = f"{self.folder}/manifest.json: the config of {name!r} fits no decoder ({error})"
            raise WeightsError(message) from None

    @property
    def ablation_norms(self) -> list[str]:
        """The norms for which there is such a decoder."""
        return [name.removeprefix(ABLATION) for name in self.entries if name.startswith(ABLATION)]

    def transformer(self, name: str) -> TransformerNet:
        """A network of instance norm of another's making, float32, on the CPU, in evaluation mode."""
        network = _filled(TransformerNet(**self.entries[name].config), self.load(name), self.folder)
        return network.eval().requires_grad_(False)

    @property
    def instance_styles(self) -> list[str]:
        """The styles that have a network of instance norm of their own."""
        return [name.removeprefix(IN) for name in self.entries if name.startswith(IN)]

    def gallery(self) -> StyleGallery:
        """The codes of the built-in styles and of those that the user has saved; a damaged one stops no other."""
        tensors = self.load(STYLES)
        self.check_pair(STYLES)
        sizes = tuple(int(size) for size in self.entries[STYLES].config["sizes"])
        layers = {k.removesuffix(LAYERS): tensors.pop(k) for k in list(tensors) if k.endswith(LAYERS)}
        gallery = StyleGallery({s.name: s for s in self.styles}, tensors, sizes, layers=layers)
        if missing := set(gallery.styles) - set(tensors):
            raise WeightsError(f"{self.folder / self.entries[STYLES].file}: lacks {', '.join(sorted(missing))}")
        add_saved(gallery, self.entries[ENCODER].sha256, self.entries[CIN].sha256 if CIN in self.entries else None)
        return gallery

    def verify(self) -> dict[str, str | None]:
        """For each file the error, or None if it is as it should be."""
        result: dict[str, str | None] = {}
        for name in self.entries:
            try:
                self.load(name)
                if name != ENCODER and self.entries[name].architecture != TRANSFORMER:
                    self.check_pair(name)
                result[name] = None
            except WeightsError as error:
                result[name] = str(error)
        return result


def _read_manifest(path: Path) -> tuple[dict[str, Entry], tuple[BuiltInStyle, ...]]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        entries = {name: Entry(name=name, **entry) for name, entry in manifest["files"].items()}
        return entries, tuple(BuiltInStyle(**style) for style in manifest["styles"])
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not a manifest of weights ({error})") from None


def _filled(network: Network, tensors: dict[str, Tensor], folder: Path) -> Network:
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise WeightsError(f"{folder}: weights do not fit the {type(network).__name__}: {error}") from None
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{folder}: {type(network).__name__} {name} has values that are not finite")
    return network


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
