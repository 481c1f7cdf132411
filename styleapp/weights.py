"""From manifest to checked file to a network that is ready; and the codes of the built-in styles.

The manifest says of each file what it is (architecture and config), what it must be (sha256) and
where it comes from (source, licence). Nothing is ever downloaded or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from styleapp.errors import OptionError, StyleError, WeightsError, unknown_name
from styleapp.files import save_tensors
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
    "BuiltInStyle",
    "Conditional",
    "Entry",
    "StyleGallery",
    "Weights",
    "between",
    "remove_style",
    "save_style",
    "styles_folder",
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


def styles_folder() -> Path:
    """Where a user's own styles are: $STYLEAPP_STYLES, or styleapp/styles in the user's data folder."""
    given = os.environ.get("STYLEAPP_STYLES")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(given) if given else data / "styleapp" / "styles"


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
class BuiltInStyle:
    """A painting whose code is shipped."""

    name: str
    title: str
    artist: str
    year: str
    museum: str
    licence: str


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
                found.setdefault(style, {})[int(size)] = _code(rows)
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
        learned = {n: _code(rows) for n, rows in zip(names, codes, strict=True)}
        sizes = {n: {Options.style_size: code} for n, code in learned.items()}
        if name == CIN and CIN_SIZES in self.entries:
            for of_style, rows in self._codes(CIN_SIZES, CIN, stylizer.code_channels).items():
                style, _, size = of_style.rpartition(".")
                if style in sizes:
                    sizes[style][int(size)] = _code(rows)
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
        for file in sorted(styles_folder().glob("*.safetensors")):
            cin = self.entries[CIN].sha256 if CIN in self.entries else None
            try:
                saved = _saved_style(file, self.entries[ENCODER].sha256, sizes, cin)
            except WeightsError as error:
                gallery.damaged[file.stem] = str(error)
                continue
            if saved is not None and saved.style.name not in gallery.styles:
                gallery.styles[saved.style.name] = saved.style
                gallery.codes[saved.style.name] = saved.code
                if saved.learned:
                    gallery.learned[saved.style.name] = saved.learned
                if saved.layers is not None:
                    gallery.layers[saved.style.name] = saved.layers
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


@dataclass(frozen=True)
class StyleGallery:
    """Codes of paintings, measured at several sizes.

    Attributes:
        styles: by name.
        codes: by name, (len(sizes), 2, C): γ and β at each size.
        sizes: short sides in pixels, rising.
        learned: codes for the CIN network that the user has learned, by name and stroke size.
        layers: codes at relu1_1, relu2_1 and relu3_1, one after the other, (len(sizes), 2, ΣC), by name where known:
            with them a style loss can be told without the painting.
        damaged: what is wrong with files of saved styles that cannot be read, by their names.
    """

    styles: dict[str, BuiltInStyle]
    codes: dict[str, Tensor]
    sizes: tuple[int, ...]
    learned: dict[str, dict[int, StyleCode]] = field(default_factory=dict)
    layers: dict[str, Tensor] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)

    def missing(self, name: str) -> StyleError:
        """What to raise for a name that is not among :attr:`styles`."""
        return WeightsError(self.damaged[name]) if name in self.damaged else unknown_name("style", name, self.styles)

    def code(self, name: str, size: int) -> StyleCode:
        """The code of a built-in style measured at a short side of ``size``.

        Between the sizes that are stored the codes are interpolated over log(size).

        Raises:
            OptionError: for an unknown name or a size outside what is stored.
            WeightsError: for a saved style whose file is damaged.
        """
        if name not in self.styles:
            raise self.missing(name)
        return self._between(self.codes[name], size)

    def layer_code(self, name: str, size: int) -> StyleCode | None:
        """The code at relu1_1 to relu3_1, joined; None where it is not known."""
        return self._between(self.layers[name], size) if name in self.layers else None

    def _between(self, rows: Tensor, size: int) -> StyleCode:
        found = between(dict(zip(self.sizes, map(_code, rows), strict=True)), size)
        if found is None:
            raise OptionError(f"style size of a built-in style must be {self.sizes[0]} to {self.sizes[-1]}, got {size}")
        return found


def between(codes: Mapping[int, StyleCode], size: int) -> StyleCode | None:
    """The code at a stroke size, interpolated over log(size) between those that there are; None outside of them."""
    smaller = max((s for s in codes if s <= size), default=0)
    larger = min((s for s in codes if s >= size), default=0)
    if not smaller or not larger:
        return None
    if smaller == larger:
        return codes[size]
    return codes[smaller].lerp(codes[larger], math.log(size / smaller) / math.log(larger / smaller))


def save_style(
    name: str,
    rows: Tensor,
    gallery: StyleGallery,
    encoder_sha256: str,
    *,
    overwrite: bool = False,
    layers: Tensor | None = None,
    learned: Mapping[int, StyleCode] | None = None,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Keep a user's style as one small file that :meth:`Weights.gallery` finds.

    In float32: refining begins with its moments, and would lead from rounded ones to another picture.

    Args:
        name: letters, digits, ".", "_" and "-".
        rows: (len(gallery.sizes), 2, C): γ and β measured at each size.
        layers: (len(gallery.sizes), 2, ΣC): γ and β at relu1_1 to relu3_1.
        learned: its codes for the CIN network, by stroke size; its sha256 is then in ``about`` as "cin_sha256".
        about: what else is to be known of it.

    Raises:
        OptionError: for a name that is not allowed or taken.
        WeightsError: if it cannot be written.
    """
    path = check_style_name(name, gallery, overwrite=overwrite)
    metadata = {"name": name, "encoder_sha256": encoder_sha256, "sizes": json.dumps(gallery.sizes), **(about or {})}
    tensors = {"code": rows.float()}
    if layers is not None:
        tensors["layers"] = layers.float()
    for size, learned_code in (learned or {}).items():
        tensors[f"cin.{size}"] = torch.stack([learned_code.gamma.flatten(), learned_code.beta.flatten()]).float()
    try:
        save_tensors(tensors, path, metadata)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def check_style_name(name: str, gallery: StyleGallery, *, overwrite: bool = False) -> Path:
    """Where a user's style of that name is kept; the folder is made.

    Raises:
        OptionError: for a name that is not allowed or taken.
        WeightsError: if nothing can be written there.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise OptionError(
            f"the name of a style is made of letters, digits, '.', '_' and '-' (at most 64), got {name!r}"
        )
    path = styles_folder() / f"{name}.safetensors"
    if name in gallery.styles and not (overwrite and path.exists()):
        raise OptionError(f"there is a style {name!r} already" + ("; --overwrite replaces it" if path.exists() else ""))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror or error})") from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise WeightsError(f"{path}: cannot be written")
    return path


def remove_style(name: str, gallery: StyleGallery) -> Path:
    """Delete the file of a user's style, also of a damaged one, and tell where it was.

    Raises:
        OptionError: for a name that no saved style has.
        WeightsError: if it cannot be deleted.
    """
    saved = {file.stem: file for file in sorted(styles_folder().glob("*.safetensors"))}
    if name not in saved:
        if name in gallery.styles:
            raise OptionError(
                f"the style {name!r} is built in; only saved ones can be removed: {', '.join(saved) or 'none'}"
            )
        raise unknown_name("saved style", name, saved)
    try:
        saved[name].unlink()
    except OSError as error:
        raise WeightsError(f"{saved[name]}: cannot be removed ({error.strerror or error})") from None
    return saved[name]


@dataclass(frozen=True)
class _SavedStyle:
    style: BuiltInStyle
    code: Tensor
    layers: Tensor | None
    learned: dict[int, StyleCode]


def _saved_style(file: Path, encoder_sha256: str, sizes: tuple[int, ...], cin_sha256: str | None) -> _SavedStyle | None:
    """A user's style, and its learned codes; None for one that was measured with another encoder or at other sizes.

    Codes that were learned for another CIN network are left out.
    """
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as stored:
            about = stored.metadata() or {}
        code, layers = tensors["code"], tensors.get("layers")
        learned = {}
        if about.get("cin_sha256") == cin_sha256:
            learned = {int(k.removeprefix("cin.")): _code(v) for k, v in tensors.items() if k.startswith("cin.")}
        style = BuiltInStyle(file.stem, file.stem, "", "", "saved by you", "")
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{file}: not a saved style ({error}); remove it or save it again") from None
    if about.get("encoder_sha256") != encoder_sha256 or about.get("sizes") != json.dumps(sizes):
        return None
    return _SavedStyle(style, code, layers, learned)


def _code(rows: Tensor) -> StyleCode:
    gamma, beta = rows.float().view(2, 1, -1, 1, 1)
    return StyleCode(gamma, beta)


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
