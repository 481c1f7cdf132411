"""What a style is, a name, a painting, a code or a mix of these, and its code for a network."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from styleapp.codes import CodeCache, CodeKey, digest_of
from styleapp.controls import normalized
from styleapp.errors import ImageError, OptionError
from styleapp.files import read_image
from styleapp.gallery import StyleGallery, between, check_style_name, save_style
from styleapp.images import Picture, filled, from_pil, on_white, scaled, to_pil, unit
from styleapp.models import StyleCode, Stylizer, code_from_moments
from styleapp.networks import Networks
from styleapp.norms import moments, weighted_moments
from styleapp.options import Options
from styleapp.weights import CIN, DECODER, ENCODER, IN

__all__ = ["Source", "Style", "Styles", "check_side", "read"]

Source: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | Picture"
"""A photo: a path, the bytes of a file, a PIL image, or a picture that is read already."""

Style: TypeAlias = "Source | StyleCode | Mapping[Any, float] | Sequence[tuple[Any, float]]"
"""A style: the name of a built-in one, a painting, a code, or several of these with weights."""


class Styles:
    """The styles that there are, and the codes of those that are brought.

    Args:
        arithmetic: what a kept code depends on besides painting, options and weights: device, precision, version.
        max_pixels: larger paintings are refused.
        code_cache: folder in which codes of paintings outlive the process; None for memory alone.

    Attributes:
        gallery: the named styles.
    """

    def __init__(self, networks: Networks, arithmetic: str, max_pixels: int, code_cache: Path | None = None) -> None:
        self.networks = networks
        self.arithmetic = arithmetic
        self.device = networks.device
        self.max_pixels = max_pixels
        self.gallery: StyleGallery = networks.files.gallery()
        self._codes = CodeCache(code_cache)

    def settled(self, options: Options, styles: Sequence[Style] = ()) -> Options:
        """The options with the norm that "auto" stands for where all these styles meet in one picture.

        Without styles adain.
        """
        if options.norm != "auto":
            return options
        conditional = bool(styles) and all(self._suits_cin(style, options) for style in styles)
        return replace(options, norm="cin" if conditional else "adain")

    def _suits_cin(self, style: Style, options: Options) -> bool:
        """Whether the CIN network has learned a style, or can predict its code; of a mix, for all of it."""
        if not self.networks.has(CIN):
            return False
        network = self.networks.conditional(CIN).stylizer
        if isinstance(style, StyleCode):
            return network.takes(style)
        if isinstance(style, Mapping):
            style = list(style.items())
        if isinstance(style, Sequence) and not isinstance(style, (str, bytes)):
            return all(self._suits_cin(part, options) for part, weight in style if weight)
        if self.is_named(style):
            return options.color in ("none", "luma") and self._learned(str(style), options.style_size) is not None
        return network.predictor is not None and options.color != "palette"

    def is_named(self, style: Style) -> bool:
        """Whether it is the name of a style, known or not, and no painting."""
        if not isinstance(style, str):
            return False
        return style in self.gallery.styles or style in self.networks.instance_styles or not _looks_like_path(style)

    @property
    def learned_styles(self) -> set[str]:
        """The names of the styles that the CIN network has learned."""
        if not self.networks.has(CIN):
            return set()
        return set(self.networks.conditional(CIN).codes) | set(self.gallery.learned)

    def _learned(self, name: str, style_size: int) -> StyleCode | None:
        """The code of a named style for the CIN network at a stroke size; None where there is none."""
        codes = self.networks.conditional(CIN).sizes.get(name) or self.gallery.learned.get(name, {})
        return between(codes, style_size)

    def code(
        self,
        style: Style,
        style_size: int = 512,
        norm: str = "adain",
        refine: int | None = None,
        refining: Callable[[], None] = lambda: None,
    ) -> StyleCode:
        """The code of a style for the network of ``norm``, or the weighted mean of several.

        A learned one where there is one, else predicted and refined by so many steps; for "in" the one of that network.
        Codes of paintings are kept (:class:`styleapp.codes.CodeCache`). ``refining`` is called after each step; what it
        raises ends the work.
        """
        network = self.networks.of(norm, [style])
        if isinstance(style, StyleCode):
            if not network.takes(style):
                raise OptionError(
                    f"the code, of {style.num_channels} channels, is of another network than that of norm {norm}, "
                    f"which takes {network.code_channels}"
                )
            return style
        if isinstance(style, Mapping):
            style = list(style.items())
        if isinstance(style, Sequence) and not isinstance(style, (str, bytes)):
            styles, weights = [s for s, _ in style], normalized([w for _, w in style])
            used = [(s, w) for s, w in zip(styles, weights, strict=True) if w]
            codes = [self.code(s, style_size, norm, refine, refining) for s, _ in used]
            return StyleCode.mix(codes, [w for _, w in used])
        if isinstance(style, str) and style in self.gallery.styles:
            return self._named_code(style, style_size, norm, network, refine, refining)
        if isinstance(style, str) and not _looks_like_path(style):
            raise self.gallery.missing(style)
        painting = self.read(style)
        key = self._key(digest_of(painting.pixels, painting.weight), style_size, network, refine)
        code = self._codes.code(key, lambda: self.measure(painting, style_size, network, refine, refining))
        return code.to(self.device)

    def _key(self, digest: str, style_size: int, network: Stylizer, refine: int | None) -> CodeKey:
        files = [ENCODER]
        if network.probes is not None:
            files.append(CIN if network.conditional else DECODER)
        checksums = " ".join(map(self.networks.checksum, files))
        steps = 0 if network.probes is None else refine
        return CodeKey(digest, style_size, f"{checksums} {network.code_channels}", steps, self.arithmetic)

    def _named_code(
        self, name: str, style_size: int, norm: str, network: Stylizer, refine: int | None, refining: Callable[[], None]
    ) -> StyleCode:
        if norm not in ("cin", "in"):
            return self._measured_code(name, style_size, network, refine, refining)
        if norm == "in":
            return self.networks.conditional(IN + name).codes[name]
        learned = self._learned(name, style_size)
        if learned is None and name in self.learned_styles:
            codes = self.networks.conditional(CIN).sizes.get(name) or self.gallery.learned[name]
            raise OptionError(
                f"the CIN network knows the style {name!r} at stroke sizes from {min(codes)} to {max(codes)}, "
                f"got {style_size}; give the painting itself, or take --norm adain"
            )
        if learned is None:
            raise OptionError(
                f"the CIN network has not learned the style {name!r}: give the painting itself, or teach it with "
                f"styleapp learn PAINTING --name {name} --overwrite; it knows {', '.join(sorted(self.learned_styles))}"
            )
        return learned

    @torch.inference_mode()
    def _measured_code(
        self, name: str, style_size: int, network: Stylizer, refine: int | None, refining: Callable[[], None]
    ) -> StyleCode:
        if network.shifts is None and not network.besides:
            return self.gallery.code(name, style_size)
        if (learned := between(self.networks.adain_codes.get(name, {}), style_size)) is not None:
            return learned.to(self.device)
        seen = self.layer_codes(name, style_size)
        if seen is None:
            raise OptionError(
                f"of the style {name!r}, which an earlier version has saved, too little is known: save it again, "
                f"styleapp styles save PAINTING --name {name} --overwrite"
            )
        if not network.steps(refine):
            return network.predicted(seen)
        joined = StyleCode.join(seen)
        key = self._key(digest_of(joined.gamma, joined.beta), style_size, network, refine)
        return self._codes.code(key, lambda: network.predicted(seen, refine, refining)).to(self.device)

    @torch.inference_mode()
    def measure(
        self,
        painting: Picture,
        style_size: int = 512,
        network: Stylizer | None = None,
        refine: int | None = 0,
        refining: Callable[[], None] = lambda: None,
    ) -> StyleCode:
        """The code of a painting whose short side is scaled to ``style_size``, for the AdaIN or another network."""
        stylizer = network or self.networks.adain
        return stylizer.measure(*self.image_of(painting, style_size, stylizer.min_size), refine, refining)

    def image_of(self, painting: Picture, style_size: int, least: int) -> tuple[Tensor, Tensor | None]:
        """A painting at its size, and what its pixels count: how far they show."""
        fitted = filled(scaled(painting, style_size, "style", least, self.max_pixels))
        check_side(fitted, least, "style")
        weight = fitted.weight
        image = fitted.rgb.to(self.device, memory_format=torch.channels_last)
        return image, None if weight is None else unit(weight).to(self.device)

    def pixels(self, style: Style, why: str) -> Picture:
        """The pixels of a style that is one painting."""
        named = isinstance(style, str) and style in self.gallery.styles
        if (
            named
            or isinstance(style, (StyleCode, Mapping))
            or (isinstance(style, Sequence) and not isinstance(style, (str, bytes)))
        ):
            what = f"the built-in style {style!r} is a code" if named else "a mix or a code is not one"
            raise OptionError(f"{why} needs a painting to look at, and {what}: give one image file as the style")
        if isinstance(style, str) and not _looks_like_path(style):
            raise self.gallery.missing(style)
        return self.read(style)

    def at_hand(self, style: Style, options: Options) -> Style:
        """Paintings, also those of a mix, read, and scaled where no colours of theirs are asked for."""
        if isinstance(style, StyleCode) or self.is_named(style):
            return style
        if isinstance(style, Mapping):
            style = list(style.items())
        if isinstance(style, Sequence) and not isinstance(style, (str, bytes)):
            return [(self.at_hand(part, options), weight) for part, weight in style]
        painting = self.read(style)
        if options.color not in ("none", "luma"):
            return painting
        return scaled(painting, options.style_size, "style", self.networks.adain.min_size, self.max_pixels)

    @torch.inference_mode()
    def layer_codes(self, style: str, style_size: int = 512) -> list[StyleCode] | None:
        """γ and β of a painting at relu1_1 to relu4_1, which a style loss compares; None where they are not known."""
        if style not in self.gallery.styles and style in self.networks.instance_styles:
            return None
        if style not in self.gallery.styles:
            return self._layer_codes(self.pixels(style, "a style loss"), style_size)
        joined = self.gallery.layer_code(style, style_size)
        if joined is None:
            return None
        channels = self.networks.adain.encoder.layer_channels
        deepest = self.gallery.code(style, style_size)
        return list(StyleCode.join([joined, deepest]).to(self.device).split(channels).values())

    @torch.inference_mode()
    def _layer_codes(self, painting: Picture, style_size: int) -> list[StyleCode]:
        image, weight = self.image_of(painting, style_size, self.networks.adain.min_size)
        features = self.networks.adain.encoder.features(image)
        found = [moments(f) if weight is None else weighted_moments(f, weight) for f in features]
        return [code_from_moments(m, self.networks.adain.eps) for m in found]

    def save(
        self,
        painting: Source,
        name: str,
        *,
        overwrite: bool = False,
        learned: Mapping[int, StyleCode] | None = None,
        about: Mapping[str, str] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Path:
        """Measure a painting at every size of the gallery and keep it as a style of that name, for good.

        Args:
            learned: codes for the CIN network by stroke size; without any, what that predicts, refined.
            about: what is to be known of it.
            progress: called with the steps of refining that are done, and all of them.

        Raises:
            OptionError: for a name that is not allowed or taken.
            ImageError: for a painting that cannot be used.
        """
        check_style_name(name, self.gallery, overwrite=overwrite)
        picture = self.read(painting)
        codes = [self._layer_codes(picture, size) for size in self.gallery.sizes]
        rows = torch.stack([torch.stack([c[-1].gamma.flatten(), c[-1].beta.flatten()]) for c in codes]).cpu()
        joined = [StyleCode.join(c[:-1]) for c in codes]
        layers = torch.stack([torch.stack([c.gamma.flatten(), c.beta.flatten()]) for c in joined]).cpu()
        about = dict(about or {})
        if learned is None and self.networks.has(CIN) and self.networks.conditional(CIN).stylizer.predictor is not None:
            sizes = sorted({self.gallery.sizes[0], Options.style_size, self.gallery.sizes[-1]})
            total = len(sizes) * self.networks.conditional(CIN).stylizer.steps(None)
            steps = itertools.count(1)

            def refining() -> None:
                progress(next(steps), total)

            learned = {size: self.code(picture, size, "cin", refining=refining) for size in sizes}
        if learned is not None:
            about["cin_sha256"] = self.networks.checksum(CIN)
        path = save_style(
            name,
            rows,
            self.gallery,
            self.networks.checksum(ENCODER),
            overwrite=overwrite,
            layers=layers,
            learned=learned,
            about=about,
        )
        self.gallery = self.networks.files.gallery()
        return path

    def painting(self, style: str) -> Image.Image | None:
        """What a style looks like; None for a named one, of which there is only a code."""
        named = style in self.gallery.styles or style in self.networks.instance_styles
        return None if named else on_white(to_pil(self.read(style)))

    def title(self, style: str) -> str:
        """A named style with its title and artist, or the name of the file."""
        about = self.gallery.styles.get(style)
        if about is None:
            return Path(style).stem
        return ", ".join(text for text in (f"{about.name}: {about.title}", about.artist, about.year) if text)

    def read(self, source: Any) -> Picture:
        """The pixels of a painting."""
        return read(source, "style", self.max_pixels)


def read(source: Any, role: str, max_pixels: int) -> Picture:
    """A picture from wherever it comes.

    Args:
        role: what it is to be, for what is said of it.

    Raises:
        ImageError: for what cannot be read.
        OptionError: for what is no source of pictures.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, Image.Image):
        return from_pil(source, max_pixels)
    if isinstance(source, (str, bytes, os.PathLike)):
        return read_image(source, max_pixels)
    raise OptionError(f"{role} must be a path, a PIL image or bytes, got {type(source).__name__}")


def _looks_like_path(text: str) -> bool:
    return Path(text).suffix != "" or os.sep in text or "/" in text or Path(text).exists()


def check_side(picture: Picture, least: int, role: str) -> None:
    """Refuse a picture with a side below ``least`` pixels."""
    height, width = picture.size
    if min(height, width) < least:
        raise ImageError(f"the {role} is {width}x{height} pixels; each side must have at least {least}")
