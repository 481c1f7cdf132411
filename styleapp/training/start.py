"""What a training begins with: weights from a file, of a network of the same width or of a narrower one.

A narrower one is widened as Net2Net does it (Chen, Goodfellow and Shlens 2016): what it does is kept. Further channels
are those of the new network, and count for nothing in what was there before; so the picture is the same at first, and
everything has a gradient after one step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import v2

from styleapp.errors import ImageError, WeightsError
from styleapp.files import example_photos, read_image
from styleapp.models import CodePredictor, Decoder, Encoder, ShiftPredictor, StyleCode, Stylizer, code_from_moments
from styleapp.norms import moments
from styleapp.training.data import ImagePool, painting_crops

__all__ = [
    "Start",
    "centre",
    "layer_codes",
    "probe_of_examples",
    "probes_of_examples",
    "spread",
    "statistics",
    "table_of",
    "widened",
]

_PREDICTOR, _DECODER, _SHIFTS = "predictor.", "decoder.", "shifts."
"""What the names of their tensors begin with in a file."""


@dataclass(frozen=True)
class Start:
    """A decoder, and what else the file of a conditional network has.

    Attributes:
        file: where it comes from.
        decoder, predictor: their state; empty where there is none.
        codes: (styles, 2, channels of all norms).
        styles: the names of the rows.
        shifts: what is predicted for an AdaIN decoder, its state; empty where there is none.
    """

    file: Path
    decoder: Mapping[str, Tensor]
    predictor: Mapping[str, Tensor]
    codes: Tensor
    styles: Sequence[str]
    shifts: Mapping[str, Tensor]

    @staticmethod
    def read(file: Path) -> Start:
        """From the file of a decoder, or of a conditional network.

        Raises:
            WeightsError: if it cannot be read.
        """
        try:
            tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
            with safe_open(file, "pt") as stored:
                styles = json.loads((stored.metadata() or {}).get("styles", "[]"))
        except (OSError, ValueError, SafetensorError) as error:
            raise WeightsError(f"{file}: not a file of weights: {error}") from None
        codes = tensors.pop("codes", torch.empty(0))
        shifts = {k.removeprefix(_SHIFTS): tensors.pop(k) for k in list(tensors) if k.startswith(_SHIFTS)}
        predictor = {k.removeprefix(_PREDICTOR): v for k, v in tensors.items() if k.startswith(_PREDICTOR)}
        decoder = {k.removeprefix(_DECODER): v for k, v in tensors.items() if not k.startswith(_PREDICTOR)}
        return Start(file, decoder, predictor, codes, styles, shifts)

    def fill_decoder(self, decoder: Decoder) -> None:
        """Put the decoder of the file in this one.

        Raises:
            WeightsError: if it does not fit.
        """
        try:
            decoder.load_state_dict(widened(self.decoder, decoder.state_dict()))
        except ValueError as error:
            raise WeightsError(f"{self.file}: no decoder of width {decoder.width:g} or less: {error}") from None

    def fill_shifts(self, shifts: ShiftPredictor, decoder: Decoder) -> bool:
        """Put what the file has for these in them; false where it has nothing. Further channels are told nothing.

        Raises:
            WeightsError: if it does not fit.
        """
        if not self.shifts:
            return False
        small = [len(self.decoder[f"{name}.bias"]) for name in decoder.hidden]
        wide = list(decoder.hidden.values())
        try:
            known = {name: value for name, value in self.shifts.items() if name != "probe"}  # of 0.17 and before
            last = spread(self.shifts["last.weight"], shifts.last.weight.detach(), small, wide)
            shifts.load_state_dict({"probes": shifts.probes, **known, "last.weight": last})
        except (KeyError, RuntimeError, ValueError) as error:
            raise WeightsError(f"{self.file}: no prediction of this shape: {error}") from None
        return True

    def code(self, style: str, measured: StyleCode, stylizer: Stylizer) -> StyleCode:
        """The code of a style in the file, with further channels as measured; as measured altogether if it has none."""
        if style not in self.styles:
            return measured
        rows = self.codes[list(self.styles).index(style)][:, None, :, None, None]
        sizes = self._sizes(stylizer), list(stylizer.norms.values())
        gamma, beta = (spread(*pair, *sizes, dim=1) for pair in zip(rows, (measured.gamma, measured.beta), strict=True))
        return StyleCode(gamma, beta)

    def fill_predictor(self, predictor: CodePredictor, stylizer: Stylizer) -> bool:
        """Put the predictor of the file in this one; false where the file has none. Further channels stay as measured.

        Raises:
            WeightsError: if it does not fit.
        """
        if not self.predictor:
            return False
        sizes = 2 * self._sizes(stylizer), 2 * list(stylizer.norms.values())
        try:
            state = dict(self.predictor)
            for name, wide in predictor.state_dict().items():
                if name.startswith(("last.", "correct.")):
                    state[name] = spread(state[name], torch.zeros_like(wide), *sizes)
            predictor.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise WeightsError(f"{self.file}: no predictor of this shape: {error}") from None
        return True

    def _sizes(self, stylizer: Stylizer) -> list[int]:
        """The channels of each norm of the network in the file."""
        return [stylizer.encoder.num_channels, *(len(self.decoder[f"{name}.bias"]) for name in stylizer.decoder.hidden)]


@torch.no_grad()
def statistics(encoder: Encoder, paintings: ImagePool, size: int, batches: int = 32, count: int = 8) -> StyleCode:
    """Joined codes of relu1_1 to relu4_1 of random crops: what a prediction is standardised by."""
    dtype = next(encoder.parameters()).dtype
    crops = (painting_crops(paintings, count, size).to(dtype) for _ in range(batches))
    return table_of([StyleCode.join(layer_codes(encoder, crop)) for crop in crops])


def table_of(codes: Sequence[StyleCode]) -> StyleCode:
    """One table of them."""
    return StyleCode(torch.cat([c.gamma for c in codes]), torch.cat([c.beta for c in codes]))


def layer_codes(encoder: Encoder, image: Tensor) -> list[StyleCode]:
    """Moments of a picture at relu1_1 to relu4_1: what the style loss compares."""
    return [code_from_moments(moments(f)) for f in encoder.features(image)]


def probe_of_examples(size: int) -> Tensor:
    """The middles of the photos of the demo side by side, (1, 3, size, size): what codes are tried on."""
    photos = probes_of_examples(size)
    width = math.ceil(size / len(photos))
    return torch.cat([v2.functional.center_crop(photo, [size, width]) for photo in photos.split(1)], -1)[..., :size]


def probes_of_examples(size: int) -> Tensor:
    """The middle square of each photo of the demo, (P, 3, size, size)."""
    photos = [centre(read_image(path).rgb, size) for path in example_photos()]
    if not photos:
        raise ImageError("the photos of the demo, which codes of paintings are tried on, are not there")
    return torch.cat(photos)


def centre(photo: Tensor, size: int) -> Tensor:
    """The middle square, (1, 3, size, size)."""
    side = min(photo.shape[-2:])
    crop = v2.functional.center_crop(photo, [side])
    return cast(Tensor, v2.functional.resize(crop, [size], antialias=True).clamp(0, 1))


def spread(small: Tensor, wide: Tensor, small_sizes: Sequence[int], wide_sizes: Sequence[int], dim: int = 0) -> Tensor:
    """``wide`` with ``small`` in it: each block of ``small`` at the beginning of the block of ``wide``.

    Args:
        small, wide: alike but for ``dim``, along which the channels of several layers lie one after another.
        small_sizes, wide_sizes: how many each layer has, in both.

    Raises:
        ValueError: if these are not the sizes, or a layer of ``wide`` is the narrower one.
    """
    if sum(small_sizes) != small.shape[dim] or sum(wide_sizes) != wide.shape[dim]:
        raise ValueError(f"{small.shape[dim]} and {wide.shape[dim]} channels, not {small_sizes} and {wide_sizes}")
    if any(a > b for a, b in zip(small_sizes, wide_sizes, strict=True)):
        raise ValueError(f"layers of {small_sizes} channels do not fit into {wide_sizes}")
    parts: list[Tensor] = []
    for old, new in zip(small.split(list(small_sizes), dim), wide.split(list(wide_sizes), dim), strict=True):
        kept = old.shape[dim]
        parts += [old.to(new.device), new.narrow(dim, kept, new.shape[dim] - kept)]
    return torch.cat(parts, dim)


def widened(small: Mapping[str, Tensor], wide: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a decoder: that of a narrower one, and the further channels of a wide one, which do not reach it.

    Args:
        small: filters (O, C, 3, 3) and biases (O,) by their names. Where it does not see the encoder's layers that
            ``wide`` sees, nothing comes in from them at first.
        wide: the same of a new decoder.

    Raises:
        ValueError: if the names differ, or a layer of ``wide`` is the narrower one.
    """
    added = {name for name in wide.keys() - small.keys() if name.startswith("skip_")}
    if small.keys() != wide.keys() - added:
        raise ValueError(f"it has {', '.join(small) or 'nothing'}, not {', '.join(wide)}")
    state = {}
    for name, new in wide.items():
        if name in added:
            state[name] = torch.zeros_like(new)
            continue
        old = small[name]
        if any(a > b for a, b in zip(old.shape, new.shape, strict=True)):
            raise ValueError(f"{name} of {tuple(old.shape)} does not fit into {tuple(new.shape)}")
        state[name] = new.clone()
        if old.dim():
            state[name][: len(old)] = 0
        state[name][tuple(slice(n) for n in old.shape)] = old.to(new)
    return state
