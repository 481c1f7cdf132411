"""The styles that have a name: the built-in ones, and those that the user has saved, one small file each."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from styleapp.errors import OptionError, StyleError, WeightsError, unknown_name
from styleapp.files import save_tensors
from styleapp.models import StyleCode

__all__ = [
    "BuiltInStyle",
    "StyleGallery",
    "add_saved",
    "between",
    "check_style_name",
    "code_of",
    "remove_style",
    "save_style",
    "styles_folder",
]


def styles_folder() -> Path:
    """Where a user's own styles are: $STYLEAPP_STYLES, or styleapp/styles in the user's data folder."""
    given = os.environ.get("STYLEAPP_STYLES")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(given) if given else data / "styleapp" / "styles"


@dataclass(frozen=True)
class BuiltInStyle:
    """A painting whose code is shipped, or one that the user has saved."""

    name: str
    title: str
    artist: str
    year: str
    museum: str
    licence: str


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
        found = between(dict(zip(self.sizes, map(code_of, rows), strict=True)), size)
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
    """Keep a user's style as one small file that :func:`add_saved` finds.

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
    metadata = {"encoder_sha256": encoder_sha256, "sizes": json.dumps(gallery.sizes), **(about or {})}
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


def add_saved(gallery: StyleGallery, encoder_sha256: str, cin_sha256: str | None) -> None:
    """Add the styles that the user has saved, under the names of their files; a damaged one stops no other.

    One that was measured with another encoder or at other sizes is left out, and so are codes that were learned for
    another CIN network.
    """
    for file in sorted(styles_folder().glob("*.safetensors")):
        name = file.stem
        if name in gallery.styles:
            continue
        try:
            tensors = load_file(file)
            with safe_open(file, "pt") as stored:
                about = stored.metadata() or {}
            code, layers = tensors["code"], tensors.get("layers")
            learned = {int(k.removeprefix("cin.")): code_of(v) for k, v in tensors.items() if k.startswith("cin.")}
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            gallery.damaged[name] = (
                f"{file}: not a saved style ({error}); save it again, or styleapp styles remove {name}"
            )
            continue
        if about.get("encoder_sha256") != encoder_sha256 or about.get("sizes") != json.dumps(gallery.sizes):
            continue
        gallery.styles[name] = BuiltInStyle(name, name, "", "", "saved by you", "")
        gallery.codes[name] = code
        if layers is not None:
            gallery.layers[name] = layers
        if learned and about.get("cin_sha256") == cin_sha256:
            gallery.learned[name] = learned


def code_of(rows: Tensor) -> StyleCode:
    """(2, C), γ and β as they are stored, as a code."""
    gamma, beta = rows.float().view(2, 1, -1, 1, 1)
    return StyleCode(gamma, beta)
