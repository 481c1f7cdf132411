"""Checkpoints of well-known repositories, turned into our weight files.

Four layouts are known, told by their keys and shapes:

- ``vgg_normalised.pth`` of naoto0804/pytorch-AdaIN: VGG-19 behind a 1x1 convolution that does its preprocessing;
- ``decoder.pth`` of the same;
- the ``.pth`` files of pytorch/examples, fast_neural_style: one style each, instance norm;
- torchvision's ``vgg19`` state dict.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from styleapp.errors import OptionError, WeightsError
from styleapp.files import atomic_path, save_tensors
from styleapp.models.decoder import decoder_channels
from styleapp.models.transformer import TransformerNet
from styleapp.models.vgg import VGG19_TO_RELU4_1, conv_names
from styleapp.weights import DECODER, ENCODER, IN, STYLES, TRANSFORMER, imported_folder, sha256

__all__ = ["Converted", "convert", "import_weights", "read_checkpoint"]

CONVS = [name for name in conv_names(VGG19_TO_RELU4_1) if name != "M"]
NORMALISED_VGG = (2, 5, 9, 12, 16, 19, 22, 25, 29)
TORCHVISION_VGG = (0, 2, 5, 7, 10, 12, 14, 16, 19)
ADAIN_DECODER = (1, 5, 8, 11, 14, 18, 21, 25, 28)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KNOWN = (
    "vgg_normalised.pth and decoder.pth of naoto0804/pytorch-AdaIN, the .pth files of pytorch/examples' "
    "fast_neural_style, and torchvision's vgg19"
)


@dataclass(frozen=True)
class Converted:
    """Tensors in our layout, and what the manifest says of them.

    Attributes:
        kind: "encoder", "decoder" or "transformer".
    """

    kind: str
    tensors: dict[str, Tensor]
    source: str


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file, without running any code that it may hold.

    Raises:
        WeightsError: if it cannot be read, or holds anything but tensors.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read ({error.strerror})") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{file}: not a checkpoint of tensors alone ({reason})") from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise WeightsError(f"{file}: not a dictionary of tensors")
    return {str(k).removeprefix("module."): v for k, v in found.items()}


def convert(tensors: Mapping[str, Tensor], name: str) -> Converted:
    """A known checkpoint in our layout.

    Args:
        name: of the file, for messages.

    Raises:
        WeightsError: for an unknown layout, or a known one with a key or shape that does not fit.
    """
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    if shapes.get("0.weight") == (3, 3, 1, 1):
        return Converted("encoder", _normalised_vgg(tensors, name), "naoto0804/pytorch-AdaIN, vgg_normalised.pth")
    if "features.0.weight" in shapes:
        return Converted("encoder", _torchvision_vgg(tensors, name), "torchvision, vgg19")
    if shapes.get("1.weight", ())[1:] == (512, 3, 3):
        return Converted("decoder", _adain_decoder(tensors, name), "naoto0804/pytorch-AdaIN, decoder.pth")
    if "conv1.conv2d.weight" in shapes and "res1.conv1.conv2d.weight" in shapes:
        return Converted("transformer", _transformer(tensors, name), "pytorch/examples, fast_neural_style")
    some = ", ".join(list(shapes)[:3])
    raise WeightsError(f"{name}: a checkpoint of an unknown layout (it begins with {some}); known are {KNOWN}")


def _taken(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], name: str) -> dict[str, Tensor]:
    """Those of the keys and shapes that are wanted."""
    found = {}
    for key, shape in wanted.items():
        if key not in tensors:
            raise WeightsError(f"{name}: {key} is missing")
        if tuple(tensors[key].shape) != shape:
            raise WeightsError(f"{name}: {key} has shape {tuple(tensors[key].shape)}, expected {shape}")
        if not torch.isfinite(tensors[key]).all():
            raise WeightsError(f"{name}: {key} has values that are not finite")
        found[key] = tensors[key].float()
    return found


def _vgg_shapes(prefix: str, indices: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    channels = [3, *(c for c in VGG19_TO_RELU4_1 if isinstance(c, int))]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, index in enumerate(indices):
        shapes[f"{prefix}{index}.weight"] = (channels[i + 1], channels[i], 3, 3)
        shapes[f"{prefix}{index}.bias"] = (channels[i + 1],)
    return shapes


def _no_others(tensors: Mapping[str, Tensor], allowed: str, name: str) -> None:
    if others := [key for key in tensors if not re.fullmatch(allowed, key)]:
        raise WeightsError(f"{name}: keys that do not belong to this layout: {', '.join(others[:3])}")


def _normalised_vgg(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """W1(W0 x + b0) + b1: the 1x1 convolution goes into the first 3x3, exactly, as reflection pads with real pixels."""
    _no_others(tensors, r"\d+\.(weight|bias)", name)
    shapes = {"0.weight": (3, 3, 1, 1), "0.bias": (3,), **_vgg_shapes("", NORMALISED_VGG)}
    found = _taken(tensors, shapes, name)
    renamed = _renamed(found, "", NORMALISED_VGG, CONVS)
    first = renamed["conv1_1.weight"]
    renamed["conv1_1.bias"] = renamed["conv1_1.bias"] + torch.einsum("ojhw,j->o", first, found["0.bias"])
    renamed["conv1_1.weight"] = torch.einsum("ojhw,ji->oihw", first, found["0.weight"][:, :, 0, 0])
    return renamed


def _torchvision_vgg(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """(x - mean) / std goes into the first convolution."""
    _no_others(tensors, r"(features|classifier)\.\d+\.(weight|bias)", name)
    found = _taken(tensors, _vgg_shapes("features.", TORCHVISION_VGG), name)
    renamed = _renamed(found, "features.", TORCHVISION_VGG, CONVS)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    first = renamed["conv1_1.weight"]
    renamed["conv1_1.bias"] = renamed["conv1_1.bias"] - torch.einsum("oihw,i->o", first, mean / std)
    renamed["conv1_1.weight"] = first / std.view(1, 3, 1, 1)
    return renamed


def _adain_decoder(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    _no_others(tensors, r"\d+\.(weight|bias)", name)
    layers = [layer for layer in decoder_channels() if layer[0] != "up"]
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (_, before, after) in zip(ADAIN_DECODER, layers, strict=True):
        shapes[f"{index}.weight"], shapes[f"{index}.bias"] = (after, before, 3, 3), (after,)
    return _renamed(_taken(tensors, shapes, name), "", ADAIN_DECODER, [layer[0] for layer in layers])


def _transformer(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Old files have statistics that instance norm does not use."""
    kept = {k: v for k, v in tensors.items() if not re.search(r"in\d\.(running_(mean|var)|num_batches_tracked)$", k)}
    wanted = {k: tuple(v.shape) for k, v in TransformerNet().state_dict().items()}
    if others := [key for key in kept if key not in wanted]:
        raise WeightsError(f"{name}: keys that do not belong to this layout: {', '.join(others[:3])}")
    return _taken(kept, wanted, name)


def _renamed(found: Mapping[str, Tensor], prefix: str, indices: tuple[int, ...], names: list[str]) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": found[f"{prefix}{index}.{part}"]
        for index, name in zip(indices, names, strict=True)
        for part in ("weight", "bias")
    }


def import_weights(files: list[Path], folder: Path | None = None, name: str = "") -> list[str]:
    """Convert checkpoints and add them to a folder of weights; the names that they get.

    An encoder and a decoder, given together or one after the other, make the folder a complete set, to be used by
    setting STYLEAPP_WEIGHTS to it. A transformer network of one style becomes that style's network for the norm
    "in" at once, under the name of its file.

    Args:
        folder: where to; by default one in the user's data folder.
        name: of a single transformer network.

    Raises:
        WeightsError: for a checkpoint that is not known, or a folder that cannot be written.
        OptionError: for a name that is not allowed.
    """
    converted = [(file, convert(read_checkpoint(file), str(file))) for file in files]  # all before anything is written
    converted.sort(key=lambda pair: pair[1].kind != "encoder")  # the others name the encoder that they go with
    folder = folder or imported_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "manifest.json"
        manifest: dict[str, Any] = {"files": {}, "styles": []}
        if path.exists():
            manifest = json.loads(path.read_text(encoding="utf-8"))
        names = []
        for file, found in converted:
            chosen = {"encoder": ENCODER, "decoder": DECODER}.get(found.kind) or IN + (name or file.stem)
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", chosen.removeprefix(IN)):
                raise OptionError(
                    f"a name is made of letters, digits, '.', '_' and '-', got {chosen.removeprefix(IN)!r}"
                )
            _add(folder, manifest, chosen, found, found.tensors)
            names.append(chosen)
        if {ENCODER, DECODER} <= set(manifest["files"]) and STYLES not in manifest["files"]:
            _add(folder, manifest, STYLES, Converted("styles", {}, "none: measured with another encoder"), {})
        for of_encoder in (DECODER, STYLES):
            if of_encoder in manifest["files"] and ENCODER in manifest["files"]:
                manifest["files"][of_encoder]["encoder_sha256"] = manifest["files"][ENCODER]["sha256"]
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder}: cannot be written ({error})") from None
    return names


def _add(folder: Path, manifest: dict[str, Any], name: str, found: Converted, tensors: dict[str, Tensor]) -> None:
    file = folder / f"{name}.safetensors"
    save_tensors(tensors, file)
    configs: dict[str, dict[str, Any]] = {
        "decoder": {"width": 1.0},
        "styles": {"sizes": [256, 362, 512, 724, 1024]},
    }
    architectures = {"encoder": "vgg19", "decoder": "adain-decoder", "styles": "style-codes"}
    manifest["files"][name] = {
        "file": file.name,
        "sha256": sha256(file),
        "architecture": architectures.get(found.kind, TRANSFORMER),
        "config": configs.get(found.kind, {}),
        "source": f"imported: {found.source}",
        "licence": "that of its authors",
    }
