"""Which network a norm needs; each is loaded when it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from styleapp.devices import check_compiler, find_precision
from styleapp.errors import OptionError
from styleapp.models import Stylizer, TransformerNet
from styleapp.models.decoder import DETAIL
from styleapp.weights import ABLATION, ADAIN_CODES, CIN, DECODER, IN, TRANSFORMER, Conditional, Weights

__all__ = ["Networks"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of all but the encoder of photos: beside integers, what else the device computes in."""
    return _DTYPES[find_precision("auto", device, integers=False) if precision == "int8" else precision]


class Networks:
    """The networks of some weight files, on one device, in one precision.

    Args:
        precision: "fp32", "bf16", "fp16" or "int8": 8-bit integers for the features of photos, what "auto" is without
            them for the rest, and where that is float32, integers for decoders with norms inside as well
            (:meth:`Stylizer.int8_decoder`). Statistics are always in float32.
        compile: run encoder and AdaIN decoder through torch.compile.

    Attributes:
        adain: the network of AdaIN and its kin; the others share its encoder.
        adain_codes: its learned codes of built-in styles, by name and stroke size.
        dtype: of their weights.
    """

    def __init__(self, files: Weights, device: torch.device, precision: str, *, compile: bool = False) -> None:
        self.files = files
        self.device = device
        self.dtype = _dtype(precision, device)
        self._conditional: dict[str, Conditional] = {}
        self._transformers: dict[str, TransformerNet] = {}
        self._ablations: dict[str, Stylizer] = {}
        self._lock = threading.Lock()
        with torch.inference_mode(False):  # gradients of codes go through it
            self.adain: Stylizer = files.stylizer().to(device)
            self.adain_codes = files.adain_codes(self.adain)
            for part in (self.adain.encoder, self.adain.decoder):  # what is predicted is, as all statistics, in float32
                part.to(self.dtype).to(memory_format=torch.channels_last)
        if precision == "int8":
            self.adain.use_int8(files.int8_encoder(self.adain.encoder))
        if compile:
            check_compiler(device)
            encoder = self.adain.encoder
            # For each size anew: a graph for any takes longer to compile than that of two, and others than that again.
            anew = torch.compile(encoder.features, dynamic=False)
            encoder.features = anew  # type: ignore[method-assign] # forward calls it too
            self.adain.decoder.compile(dynamic=False)

    def of(self, norm: str, styles: Sequence[object] = (), detail: float = 1.0) -> Stylizer:
        """The network that a norm needs: that of AdaIN with its kin, of CIN, of IN for one style, or a small one.

        Args:
            detail: how much of the photo's fine texture it sees, 0 to 1, for the same codes.

        Raises:
            OptionError: for "in" and anything but one style that has a network; for "decoder" and no norm there is;
                for a detail other than 1 and a network that sees none, or whose colours would change with it.
            WeightsError: for a network that is not there.
        """
        found = self._of(norm, styles)
        if detail == 1:
            return found
        if not found.conditional or DETAIL not in found.decoder.skips.values():
            raise OptionError(f"the network of norm {norm} has no detail to set: detail must be 1 there")
        return found.with_detail(detail)

    def _of(self, norm: str, styles: Sequence[object]) -> Stylizer:
        name, _, inside = norm.partition(":")
        if name == "decoder":
            return self.ablation(inside)
        if name not in ("cin", "in"):
            return self.adain
        return self.conditional(CIN if norm == "cin" else IN + self._only_style(styles)).stylizer

    def conditional(self, name: str) -> Conditional:
        """The network of that name, "cin" or "in_" and a style, on our device, with its learned codes."""
        if not self.has(name):
            raise OptionError(f"there is no {name.partition('_')[0].upper()} network in these weights")
        with self._lock, torch.inference_mode(False):  # learning goes through it too
            if name not in self._conditional:
                found = self.files.conditional(name, self.adain.encoder)
                if self.adain.int8 is not None:
                    found.stylizer.use_int8(self.adain.int8)
                found.stylizer.decoder.to(self.device, self.dtype).to(memory_format=torch.channels_last)
                if found.stylizer.predictor is not None:
                    found.stylizer.predictor.to(self.device)  # in float32, as all statistics
                self._conditional[name] = found
            return self._conditional[name]

    def ablation(self, inside: str) -> Stylizer:
        """AdaIN with the small decoder that has this norm inside."""
        if inside not in self.ablation_norms:
            raise OptionError(
                f"decoder takes a norm that a small decoder was trained with, such as decoder:bn; got {inside!r}, "
                f"there are {', '.join(self.ablation_norms) or 'none in these weights'}"
            )
        with self._lock:
            if inside not in self._ablations:
                found = self.files.ablation(inside, self.adain.encoder)
                if self.adain.int8 is not None:
                    found.use_int8(self.adain.int8)
                found.decoder.to(self.device, self.dtype).to(memory_format=torch.channels_last)
                if found.decoder.own_norms is not None:
                    found.decoder.own_norms.float()  # running statistics have no digits to give away
                self._ablations[inside] = found
            return self._ablations[inside]

    def transformer(self, style: str) -> TransformerNet:
        """An imported network of one style, in float32."""
        with self._lock:
            if style not in self._transformers:
                network = self.files.transformer(IN + style).to(self.device).to(memory_format=torch.channels_last)
                self._transformers[style] = network
            return self._transformers[style]

    def has(self, name: str) -> bool:
        """Whether there is a network of that name, such as "cin"."""
        return name in self.files.entries

    def is_transformer(self, style: object) -> bool:
        """Whether it is the name of a style that has an imported network."""
        entry = self.files.entries.get(f"{IN}{style}") if isinstance(style, str) else None
        return entry is not None and entry.architecture == TRANSFORMER

    @property
    def instance_styles(self) -> list[str]:
        """The styles for which the norm "in" has a network."""
        return self.files.instance_styles

    @property
    def ablation_norms(self) -> list[str]:
        """The norms that "decoder:" can have inside."""
        return self.files.ablation_norms

    def checksum(self, name: str) -> str:
        """sha256 of one of the weight files in use, as in the manifest."""
        return self.files.entries[name].sha256

    def checksum_of(self, norm: str) -> str:
        """What identifies the network of a norm."""
        name, _, inside = norm.partition(":")
        several = {"cin": (CIN,), "in": (IN,), "decoder": (ABLATION + inside,), "auto": (CIN, DECODER, ADAIN_CODES)}
        prefixes = several.get(name, (DECODER, ADAIN_CODES))
        return " ".join(e.sha256 for n, e in self.files.entries.items() if n.startswith(prefixes))

    def _only_style(self, styles: Sequence[object]) -> str:
        there = self.instance_styles
        names = {style if isinstance(style, str) else None for style in styles}
        name = next(iter(names)) if len(names) == 1 else None
        if name is None:
            raise OptionError("norm in has one network for each style: give one name, no mix; norm cin can mix")
        if name not in there:
            raise OptionError(
                f"there is no IN network for the style {name!r}; there are those for {', '.join(there) or 'none'}. "
                "Norm cin takes every style, and styleapp learn teaches it new ones"
            )
        return name
