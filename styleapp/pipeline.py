"""The public API: a photo and a style in, a stylized photo out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from styleapp import __version__
from styleapp.codes import CodeCache, CodeKey, digest_of
from styleapp.controls import (
    Layer,
    Mask,
    Matching,
    Window,
    check_mask,
    colour_statistics,
    match_colours,
    match_histograms,
    normalized,
    parse_norm,
)
from styleapp.devices import check_compiler, find_device, find_precision
from styleapp.engine import Content, brightness, measure_content, render
from styleapp.errors import ImageError, OptionError, unknown_name
from styleapp.files import Animation, read_image
from styleapp.images import MAX_PIXELS, Picture, filled, from_pil, on_white, quantized, resized, scaled, to_pil, unit
from styleapp.large import LargePicture, is_large, read_large
from styleapp.memory import available
from styleapp.models import StyleCode, Stylizer, TransformerNet, code_from_moments
from styleapp.norms import Moments, merge, moments, weighted_moments
from styleapp.options import Options, parse_bytes
from styleapp.passes import Steady, shared_moments
from styleapp.tiles import Plan, goes_on, make_plan
from styleapp.weights import (
    ABLATION,
    CIN,
    DECODER,
    ENCODER,
    IN,
    TRANSFORMER,
    Conditional,
    StyleGallery,
    Weights,
    between,
    save_style,
)

__all__ = ["Options", "Region", "Source", "Style", "StyleTransfer"]

TRANSFORMER_BYTES = 1200
"""Of memory for each pixel in an imported network, float32: 970 to 990 bytes were measured on the CPU."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Source: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | Picture"
"""A photo: a path, the bytes of a file, a PIL image, or a picture that is read already."""

Style: TypeAlias = "Source | StyleCode | Mapping[Any, float] | Sequence[tuple[Any, float]]"
"""A style: the name of a built-in one, a painting, a code, or several of these with weights."""

Region: TypeAlias = "tuple[Source, Style, float]"
"""A mask, the style that it gets, and its strength."""


class StyleTransfer:
    """Stylizes photos with one network, on one device, in one precision.

        from styleapp import StyleTransfer
        StyleTransfer().stylize("photo.jpg", "great-wave", alpha=0.8).save("out.png")

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".
        precision: "auto" (bf16 where the device computes in it, else fp32), "fp32", "bf16" or "fp16".
            Statistics are always in float32.
        weights: folder with manifest.json; by default the shipped one.
        max_pixels: larger photos and paintings are refused.
        compile: run encoder and AdaIN decoder through torch.compile. The first photo of a size takes about a minute
            longer; what is won by it, ``styleapp bench --compile`` tells.
        code_cache: folder in which codes of paintings outlive the process, such as
            :func:`styleapp.codes.codes_folder`; None for memory alone.

    Raises:
        DeviceError: for a device or precision that this machine does not have, or no compiler for it.
        WeightsError: for weights that are missing or altered.
    """

    def __init__(
        self,
        device: str = "auto",
        precision: str = "auto",
        *,
        weights: str | os.PathLike[str] | None = None,
        max_pixels: int = MAX_PIXELS,
        compile: bool = False,
        code_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.device = find_device(device)
        self.precision = find_precision(precision, self.device)
        self.max_pixels = max_pixels
        if self.precision == "fp32" and self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # its 10 bits are not float32: tiles would differ from the whole
        files = Weights(Path(weights) if weights is not None else None)
        self._files = files
        self._codes = CodeCache(None if code_cache is None else Path(code_cache))
        self._conditional: dict[str, Conditional] = {}
        self._transformers: dict[str, TransformerNet] = {}
        self._ablations: dict[str, Stylizer] = {}
        self._lock = threading.Lock()
        self.gallery: StyleGallery = files.gallery()
        with torch.inference_mode(False):  # gradients of codes go through it
            self.stylizer: Stylizer = (
                files.stylizer().to(self.device, _DTYPES[self.precision]).to(memory_format=torch.channels_last)
            )
        if compile:
            check_compiler(self.device)
            encoder = self.stylizer.encoder
            encoder.features = torch.compile(encoder.features)  # type: ignore[method-assign] # forward calls it too
            self.stylizer.decoder.compile()

    def stylize(
        self,
        content: Source,
        style: Style | None = None,
        *,
        regions: Sequence[Region] = (),
        alpha_map: Source | None = None,
        note: Callable[[str], None] = lambda text: None,
        progress: Callable[[float], None] = lambda share: None,
        **options: Any,
    ) -> Image.Image:
        """The photo ``content`` in the style ``style``: 8-bit RGB, or RGBA if the photo has transparency.

        Args:
            content: a photo.
            style: the name of a built-in style, a painting (path or PIL image), a :class:`StyleCode`, or
                a dict or a list of pairs of these with weights, which are normalised to sum 1. None leaves
                the photo as it is where no region is.
            regions: (mask, style, alpha): white of a grey picture, or "alpha" for what is opaque in the photo,
                takes this style at this strength. Masks of another size are resized; where they overlap they
                share; the rest keeps ``style``.
            alpha_map: a grey picture that scales the strength at each place.
            note: told what a user should know: resized masks, smaller tiles.
            progress: told the share of the work that is done, from 0 to 1, after each tile, and 0 after each step
                of refining a code; what it raises ends the work.
            options: the fields of :class:`Options`.

        Raises:
            OptionError: for options or a style name outside what is allowed.
            ImageError: for a photo, painting or mask that cannot be used.
        """
        chosen = make_options(options)
        picture = self.fit(content, chosen)
        result = self.picture(
            picture, style, chosen, regions=regions, alpha_map=alpha_map, note=note, progress=progress
        )
        return to_pil(result)

    @torch.inference_mode()
    def picture(
        self,
        photo: Picture,
        style: Style | None,
        options: Options,
        *,
        regions: Sequence[Region] = (),
        alpha_map: Source | None = None,
        note: Callable[[str], None] = lambda text: None,
        progress: Callable[[float], None] = lambda share: None,
        content: Content | None = None,
        steady: Sequence[Steady] = (),
    ) -> Picture:
        """As :meth:`stylize`, from a photo of final size, to a picture of its depth.

        Args:
            content, steady: moments that are shared by several photos, as for :func:`styleapp.engine.render`.
        """
        if style is None and not regions:
            raise OptionError("a style is needed, or a region with one")
        if options.color == "palette":
            if style is None or regions:
                raise OptionError("color palette takes one style and no regions")
            painting = self._painting(style, options, "color palette")
            wanted = colour_statistics(painting)
            own = colour_statistics(photo)
            blend = [a + options.alpha * (b - a) for a, b in zip(own, wanted, strict=True)]
            return match_colours(photo, (blend[0], blend[1]))
        styles = [s for s in (style, *(r[1] for r in regions)) if s is not None]
        options = self.settled(options, styles)
        if options.norm == "in" and not regions and self._is_transformer(style):
            return self._transformed(photo, str(style), options, alpha_map, note)
        matching = parse_norm(options.norm, self.stylizer.encoder.num_channels)
        stylizer = self.network(options.norm, styles)
        target = partial(self._target, options=options, matching=matching, photo=photo, refining=lambda: progress(0))
        layers = [] if style is None else [Layer(target(style), options.alpha)]
        for mask, of_region, alpha in regions:
            if not 0 <= alpha <= 1:
                raise OptionError(f"the strength of a region must be from 0 to 1, got {alpha:g}")
            values = self._mask(mask, photo, "mask", note)
            layers.append(Layer(target(of_region), alpha, Mask(values, options.feather)))
        strength = None
        if alpha_map is not None:
            strength = Mask(self._mask(alpha_map, photo, "strength map", note), options.feather)
        return self._rendered(stylizer, photo, layers, options, matching, strength, note, content, steady, progress)

    @torch.inference_mode()
    def pictures(self, photos: Sequence[Picture], styles: Sequence[Style], options: Options) -> list[Picture]:
        """As :meth:`picture` for each photo in its style.

        Photos of equal size go through the network at once, which keeps a GPU busy, where they fit into memory and
        the options ask for nothing that looks at one photo alone; others one after another.
        """
        settled = {self.settled(options, [style]) for style in styles}
        if len(settled) == 1 and self.fits_at_once(photos, one := settled.pop()):
            return self._at_once(self.network(one.norm), photos, styles, one)
        return [self.picture(photo, style, options) for photo, style in zip(photos, styles, strict=True)]

    def fits_at_once(self, photos: Sequence[Picture], options: Options) -> bool:
        """Whether several photos can go through the network as one batch."""
        first, count = photos[0], len(photos)
        plain = options.norm in ("adain", "cin") and options.color == "none" and options.alpha > 0
        alike = all(p.pixels.shape == first.pixels.shape and p.weight is None for p in photos)
        if count == 1 or not plain or not alike or options.tile not in ("auto", "off"):
            return False
        plan = self._plan(self.network(options.norm), first, options, keep=True, count=count)
        return plan.covers((first.size[0] * count, first.size[1]))

    def _at_once(
        self, stylizer: Stylizer, photos: Sequence[Picture], styles: Sequence[Style], options: Options
    ) -> list[Picture]:
        codes = [self.code(style, options.style_size, options.norm, options.refine).to(self.device) for style in styles]
        code = StyleCode(torch.cat([c.gamma for c in codes]), torch.cat([c.beta for c in codes]))
        image = torch.cat([photo.pixels for photo in photos])
        if self.device.type == "cuda":
            image = image.pin_memory().to(self.device, non_blocking=True)
        result = stylizer(unit(image).contiguous(memory_format=torch.channels_last), code, options.alpha)
        pixels = quantized(result, photos[0].pixels.dtype)
        return [replace(p, pixels=q) for p, q in zip(photos, pixels.cpu().split(1), strict=True)]

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
        if not self.has(CIN):
            return False
        network = self.conditional(CIN).stylizer
        if isinstance(style, StyleCode):
            return style.num_channels == network.code_channels
        if isinstance(style, Mapping):
            style = list(style.items())
        if isinstance(style, Sequence) and not isinstance(style, (str, bytes)):
            return all(self._suits_cin(part, options) for part, weight in style if weight)
        if self._is_named(style):
            return options.color in ("none", "luma") and self._learned(str(style), options.style_size) is not None
        return network.predictor is not None and options.color != "palette"

    def _is_named(self, style: Style) -> bool:
        """Whether it is the name of a style, known or not, and no painting."""
        if not isinstance(style, str):
            return False
        return style in self.gallery.styles or style in self.instance_styles or not _looks_like_path(style)

    @property
    def learned_styles(self) -> set[str]:
        """The names of the styles that the CIN network has learned."""
        if not self.has(CIN):
            return set()
        return set(self.conditional(CIN).codes) | set(self.gallery.learned)

    def _learned(self, name: str, style_size: int) -> StyleCode | None:
        """The code of a named style for the CIN network at a stroke size; None where there is none."""
        codes = self.conditional(CIN).sizes.get(name) or self.gallery.learned.get(name, {})
        return between(codes, style_size)

    def network(self, norm: str, styles: Sequence[Style] = ()) -> Stylizer:
        """The network that a norm needs: that of AdaIN with its kin, of CIN, of IN for one style, or a small one.

        Raises:
            OptionError: for "in" and anything but one style that has a network; for "decoder" and no norm there is.
            WeightsError: for a network that is not there.
        """
        name, _, inside = norm.partition(":")
        if name == "decoder":
            return self._ablation(inside)
        if name not in ("cin", "in"):
            return self.stylizer
        return self.conditional(CIN if norm == "cin" else IN + self._only_style(styles)).stylizer

    def conditional(self, name: str) -> Conditional:
        """The network of that name, "cin" or "in_" and a style, on our device, with its learned codes."""
        if not self.has(name):
            raise OptionError(f"there is no {name.partition('_')[0].upper()} network in these weights")
        with self._lock, torch.inference_mode(False):  # learning goes through it too
            if name not in self._conditional:
                found = self._files.conditional(name, self.stylizer.encoder)
                found.stylizer.decoder.to(self.device, _DTYPES[self.precision]).to(memory_format=torch.channels_last)
                if found.stylizer.predictor is not None:
                    found.stylizer.predictor.to(self.device)  # in float32, as all statistics
                self._conditional[name] = found
            return self._conditional[name]

    @property
    def ablation_norms(self) -> list[str]:
        """The norms that "decoder:" can have inside."""
        return self._files.ablation_norms

    def _ablation(self, inside: str) -> Stylizer:
        if inside not in self.ablation_norms:
            raise OptionError(
                f"decoder takes a norm that a small decoder was trained with, such as decoder:bn; got {inside!r}, "
                f"there are {', '.join(self.ablation_norms) or 'none in these weights'}"
            )
        with self._lock:
            if inside not in self._ablations:
                found = self._files.ablation(inside, self.stylizer.encoder)
                found.decoder.to(self.device, _DTYPES[self.precision]).to(memory_format=torch.channels_last)
                if found.decoder.own_norms is not None:
                    found.decoder.own_norms.float()  # running statistics have no digits to give away
                self._ablations[inside] = found
            return self._ablations[inside]

    def has(self, name: str) -> bool:
        """Whether there is a network of that name, such as "cin"."""
        return name in self._files.entries

    @property
    def instance_styles(self) -> list[str]:
        """The styles for which the norm "in" has a network."""
        return self._files.instance_styles

    def _is_transformer(self, style: Style | None) -> bool:
        entry = self._files.entries.get(f"{IN}{style}") if isinstance(style, str) else None
        return entry is not None and entry.architecture == TRANSFORMER

    def _transformed(
        self, photo: Picture, style: str, options: Options, alpha_map: Source | None, note: Callable[[str], None]
    ) -> Picture:
        """By an imported network of one style, in one piece: α · T(photo) + (1 - α) · photo."""
        if options.color not in ("none", "luma"):
            raise OptionError(f"an imported network takes the colors none and luma, not {options.color}")
        _check_side(photo, 16, "photo")
        needed = photo.size[0] * photo.size[1] * TRANSFORMER_BYTES
        if needed > available(self.device):
            raise OptionError(
                f"an imported network works in one piece: {needed / 1e9:.1f} GB are needed for this photo, "
                f"{available(self.device) / 1e9:.1f} GB are free; --size makes it smaller"
            )
        with self._lock:
            if style not in self._transformers:
                network = self._files.transformer(IN + style).to(self.device).to(memory_format=torch.channels_last)
                self._transformers[style] = network
        image = photo.rgb
        device_image = image.to(self.device, memory_format=torch.channels_last)
        result = self._transformers[style](device_image).clamp(0, 1).cpu()
        if options.color == "luma":
            result = image + brightness(result) - brightness(image)
        strength: float | Tensor = options.alpha
        if alpha_map is not None:
            mask = Mask(self._mask(alpha_map, photo, "strength map", note), options.feather)
            strength = strength * mask.window(Window(0, 0, *photo.size))
        return replace(photo, pixels=quantized(image + strength * (result - image), photo.pixels.dtype))

    def _only_style(self, styles: Sequence[Style]) -> str:
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

    def animate(
        self,
        film: Animation,
        style: Style | None,
        options: Options,
        *,
        regions: Sequence[Region] = (),
        **more: Any,
    ) -> Animation:
        """Every frame in the style, normalised with the moments of all frames together, so that nothing flickers.

        Args:
            film: from :func:`styleapp.files.read_animation`.
            style, options, regions, more: as for :meth:`picture`.

        Raises:
            OptionError: for wct and efdm, which match more than moments, and for palette, which matches colours.
        """
        options = self.settled(options, [s for s in (style, *(r[1] for r in regions)) if s is not None])
        matching = parse_norm(options.norm, self.stylizer.encoder.num_channels)
        if matching.kind != "moments" or options.norm == "in" or options.color in ("coral", "histogram", "palette"):
            raise OptionError(
                "an animation takes the norms cin, adain, adaln, adabn and adagn, and the colors none and luma"
            )
        frames = [self._fitted(frame, options) for frame in film.frames]
        parts = [self.measure_content(frame, options, keep=False) for frame in frames]
        shared = Content(merge(*(part.moments for part in parts)))
        code = partial(self.code, style_size=options.style_size, norm=options.norm, refine=options.refine)
        style = None if style is None else code(style)
        regions = [(mask, code(of_region), alpha) for mask, of_region, alpha in regions]
        steady: list[Steady] = []
        if options.norm == "cin":
            codes = [s for s in (style, *(of_region for _, of_region, _ in regions)) if isinstance(s, StyleCode)]
            steady = [self._steady(frames, one, shared.moments, options) for one in codes]
        done = [
            self.picture(frame, style, options, regions=regions, content=shared, steady=steady, **more)
            for frame in frames
        ]
        return replace(film, frames=done)

    @torch.inference_mode()
    def _steady(self, frames: Sequence[Picture], code: StyleCode, first: Moments, options: Options) -> Steady:
        """The moments at the norms inside the decoder of all frames, or of as many as fit into memory, at most 16.

        Where not even one does, each frame has its own.
        """
        network = self.network(options.norm)
        height, width = frames[0].size
        for count in range(min(16, len(frames)), 0, -1):
            plan = self._plan(network, frames[0], replace(options, tile="auto"), keep=True, count=count)
            if plan.covers((count * height, width)):
                chosen = [filled(frames[i * len(frames) // count]) for i in range(count)]
                found = shared_moments(network, chosen, code.to(self.device), first)
                return lambda name, own: found[name]
        return lambda name, own: own

    def measure_content(self, photo: Picture, options: Options, *, keep: bool = True) -> Content:
        """What the engine finds out about a photo first, to be changed or shared and given to :meth:`picture`.

        Args:
            keep: its features too, where they fit into memory.
        """
        matching = parse_norm(options.norm, self.stylizer.encoder.num_channels)
        photo, network = filled(photo), self.network(options.norm)
        return measure_content(network, photo, self._plan(network, photo, options, keep=keep), matching)

    def prepare(self, style: Style, options: Options) -> Style:
        """The style as what is quickest to use many times: its code, where that is all that is needed of it.

        For "auto" one for the CIN network stays a name, or a painting, read and scaled: AdaIN takes it where it meets
        a style that has no code for that network.
        """
        if options.norm == "auto":
            options = self.settled(options, [style])
            if options.norm == "cin":
                style = self._at_hand(style, options)
                if options.color in ("none", "luma"):
                    self.code(style, options.style_size, "cin", options.refine)  # what is wrong with it is told now
                return style
        matching = parse_norm(options.norm, self.stylizer.encoder.num_channels)
        if options.norm == "in":
            if not self._is_transformer(style):
                self.network("in", [style])
            return style
        if matching.kind == "moments" and options.color in ("none", "luma"):
            return self.code(style, options.style_size, options.norm, options.refine)
        self._painting(style, options, options.norm if matching.kind != "moments" else f"color {options.color}")
        return style

    def _at_hand(self, style: Style, options: Options) -> Style:
        """Paintings, also those of a mix, read, and scaled where no colours of theirs are asked for."""
        if isinstance(style, StyleCode) or self._is_named(style):
            return style
        if isinstance(style, Mapping):
            style = list(style.items())
        if isinstance(style, Sequence) and not isinstance(style, (str, bytes)):
            return [(self._at_hand(part, options), weight) for part, weight in style]
        painting = self._read(style, "style")
        if options.color not in ("none", "luma"):
            return painting
        return scaled(painting, options.style_size, "style", self.stylizer.min_size, self.max_pixels)

    def render(self, picture: Picture, code: StyleCode, alpha: float = 1.0) -> Picture:
        """Stylize a picture of final size with a code; its transparency is kept."""
        return self._rendered(self.stylizer, picture, [Layer(code, alpha)], Options())

    def _rendered(
        self,
        stylizer: Stylizer,
        picture: Picture,
        layers: Sequence[Layer],
        options: Options,
        matching: Matching = Matching(),  # noqa: B008 - frozen
        strength: Mask | None = None,
        note: Callable[[str], None] = lambda text: None,
        content: Content | None = None,
        steady: Sequence[Steady] = (),
        progress: Callable[[float], None] = lambda share: None,
    ) -> Picture:
        _check_side(picture, self.stylizer.min_size, "photo")
        if all(layer.alpha == 0 for layer in layers):
            return picture
        picture = filled(picture)
        plan = self._plan(stylizer, picture, options, keep=content is None)
        if not stylizer.decoder.is_local and not plan.covers(picture.size):
            raise OptionError(
                "a decoder with norms inside that look at the whole picture works in one piece; --size makes it "
                "smaller, --max-memory allows more"
            )
        if not goes_on(plan, stylizer, picture.size):
            passes = f"the norm {options.norm} goes over the whole photo {1 + len(stylizer.norms)} times; adain, twice"
            note(f"too little memory and disk: {passes}")
        luma = options.color == "luma"
        return render(
            stylizer,
            picture,
            layers,
            plan,
            matching=matching,
            strength=strength,
            luma=luma,
            content=content,
            steady=steady,
            note=note,
            progress=progress,
        )

    def _plan(self, stylizer: Stylizer, picture: Picture, options: Options, *, keep: bool, count: int = 1) -> Plan:
        tile = {"auto": None, "off": count * max(picture.size) + 7}.get(options.tile, options.tile)
        budget = parse_bytes(options.max_memory) if options.max_memory else None
        result_bytes = count * picture.pixels.nbytes
        if isinstance(picture, LargePicture):  # of photo and result only the rows of a tile are mapped at a time
            result_bytes = min(2 * result_bytes, (budget or available(self.device)) // 8)
        return make_plan(
            stylizer,
            (picture.size[0] * count, picture.size[1]),
            self.device,
            tile=None if tile is None else int(tile),
            budget=budget,
            result_bytes=result_bytes,
            keep=keep,
        )

    def _target(
        self,
        style: Style,
        options: Options,
        matching: Matching,
        photo: Picture,
        refining: Callable[[], None],
    ) -> StyleCode | Tensor:
        """What the engine needs of a style: its code, or all its features."""
        recolour = options.color in ("coral", "histogram")
        if matching.kind == "moments" and not recolour:
            return self.code(style, options.style_size, options.norm, options.refine, refining)
        painting = self._painting(style, options, options.norm if not recolour else f"color {options.color}")
        if options.color == "coral":
            painting = match_colours(painting, colour_statistics(photo))
        elif options.color == "histogram":
            painting = match_histograms(painting, photo)
        if matching.kind == "moments":
            network = self.network(options.norm, [style])
            return self.measure(painting, options.style_size, network, options.refine, refining)
        image, weight = self._measured(painting, options.style_size, self.stylizer.min_size)
        features: Tensor = self.stylizer.encoder(image)
        if weight is None:
            return features
        shows = F.adaptive_avg_pool2d(weight, (features.shape[-2], features.shape[-1]))[0, 0] > 0
        return features[..., shows].unsqueeze(2)

    def _painting(self, style: Style, options: Options, why: str) -> Picture:
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
            raise unknown_name("style", style, self.gallery.styles)
        return self._read(style, "style")

    def _mask(self, source: Source, photo: Picture, role: str, note: Callable[[str], None]) -> Tensor:
        """A mask of the photo's size."""
        if source == "alpha":
            if photo.alpha is None:
                raise OptionError("the mask 'alpha' is the photo's transparency, and this photo has none")
            return photo.alpha
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else role
        values = check_mask(self._read(source, role), name)
        if tuple(values.shape[-2:]) != photo.size:
            height, width = values.shape[-2:]
            note(f"{name}: the mask is {width}x{height}, resized to the photo's {photo.size[1]}x{photo.size[0]}")
            values = resized(values, list(photo.size))
        return values

    def fit(self, content: Source, options: Options, *, on_disk: bool = False) -> Picture:
        """Read a photo and scale it to ``options.size``.

        Args:
            on_disk: keep a photo that is large for the memory that is allowed as a :class:`LargePicture`, where
                nothing in the options needs all of its pixels at once.
        """
        if on_disk and isinstance(content, Path) and not options.size and options.color in ("none", "luma"):
            budget = parse_bytes(options.max_memory) if options.max_memory else available(torch.device("cpu")) // 2
            if is_large(content, budget):
                return self._fitted(read_large(content, self.max_pixels), options)
        return self._fitted(self._read(content, "photo"), options)

    def _fitted(self, picture: Picture, options: Options) -> Picture:
        if options.size:
            picture = scaled(picture, options.size, "photo", self.stylizer.min_size, self.max_pixels)
        _check_side(picture, self.stylizer.min_size, "photo")
        return picture

    def code(
        self,
        style: Style,
        style_size: int = 512,
        norm: str = "adain",
        refine: int = Options.refine,
        refining: Callable[[], None] = lambda: None,
    ) -> StyleCode:
        """The code of a style for the network of ``norm``, or the weighted mean of several.

        For "cin" a learned one where there is one, else predicted and refined by so many steps; for "in" the one of
        that network. Codes of paintings are kept (:class:`styleapp.codes.CodeCache`). ``refining`` is called after
        each step; what it raises ends the work.
        """
        network = self.network(norm, [style])
        if isinstance(style, StyleCode):
            if style.num_channels != network.code_channels:
                raise OptionError(f"the code has {style.num_channels} channels, the network {network.code_channels}")
            return style
        if isinstance(style, Mapping):
            style = list(style.items())
        if isinstance(style, Sequence) and not isinstance(style, (str, bytes)):
            styles, weights = [s for s, _ in style], normalized([w for _, w in style])
            used = [(s, w) for s, w in zip(styles, weights, strict=True) if w]
            codes = [self.code(s, style_size, norm, refine, refining) for s, _ in used]
            return StyleCode.mix(codes, [w for _, w in used])
        if isinstance(style, str) and style in self.gallery.styles:
            return self._named_code(style, style_size, norm)
        if isinstance(style, str) and not _looks_like_path(style):
            raise unknown_name("style", style, self.gallery.styles)
        painting = self._read(style, "style")
        refine = 0 if network.predictor is None else refine
        networks = (ENCODER, CIN) if network.conditional else (ENCODER,)
        arithmetic = f"{self.device.type} {self.precision} {__version__}"
        key = CodeKey(digest_of(painting), style_size, " ".join(map(self.checksum, networks)), refine, arithmetic)
        code = self._codes.code(key, lambda: self.measure(painting, style_size, network, refine, refining))
        return code.to(self.device)

    def _named_code(self, name: str, style_size: int, norm: str) -> StyleCode:
        if norm not in ("cin", "in"):
            return self.gallery.code(name, style_size)
        if norm == "in":
            return self.conditional(IN + name).codes[name]
        learned = self._learned(name, style_size)
        if learned is None and name in self.learned_styles:
            codes = self.conditional(CIN).sizes.get(name) or self.gallery.learned[name]
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

    def checksum(self, name: str) -> str:
        """sha256 of one of the weight files in use, as in the manifest."""
        return self._files.entries[name].sha256

    def checksum_of(self, norm: str) -> str:
        """What identifies the network of a norm."""
        name, _, inside = norm.partition(":")
        several = {"cin": (CIN,), "in": (IN,), "decoder": (ABLATION + inside,), "auto": (CIN, DECODER)}
        prefixes = several.get(name, (DECODER,))
        return " ".join(e.sha256 for n, e in self._files.entries.items() if n.startswith(prefixes))

    def save_style(
        self,
        painting: Source,
        name: str,
        *,
        overwrite: bool = False,
        learned: Mapping[int, StyleCode] | None = None,
        about: Mapping[str, str] | None = None,
    ) -> Path:
        """Measure a painting at every size of the gallery and keep it as a style of that name, for good.

        Args:
            learned: codes for the CIN network by stroke size; without any, what that predicts.
            about: what is to be known of it.

        Raises:
            OptionError: for a name that is not allowed or taken.
            ImageError: for a painting that cannot be used.
        """
        picture = self._read(painting, "style")
        codes = [self._layer_codes(picture, size) for size in self.gallery.sizes]
        rows = torch.stack([torch.stack([c[-1].gamma.flatten(), c[-1].beta.flatten()]) for c in codes]).cpu()
        joined = [StyleCode.join(c[:-1]) for c in codes]
        layers = torch.stack([torch.stack([c.gamma.flatten(), c.beta.flatten()]) for c in joined]).cpu()
        about = dict(about or {})
        if learned is None and self.has(CIN) and self.conditional(CIN).stylizer.predictor is not None:
            sizes = sorted({self.gallery.sizes[0], Options.style_size, self.gallery.sizes[-1]})
            learned = {size: self.code(picture, size, "cin") for size in sizes}
        if learned is not None:
            about["cin_sha256"] = self.checksum(CIN)
        path = save_style(
            name,
            rows,
            self.gallery,
            self.checksum(ENCODER),
            overwrite=overwrite,
            layers=layers,
            learned=learned,
            about=about,
        )
        self.gallery = self._files.gallery()
        return path

    @torch.inference_mode()
    def measure(
        self,
        painting: Picture,
        style_size: int = 512,
        network: Stylizer | None = None,
        refine: int = 0,
        refining: Callable[[], None] = lambda: None,
    ) -> StyleCode:
        """The code of a painting whose short side is scaled to ``style_size``, for the AdaIN or another network."""
        stylizer = network or self.stylizer
        return stylizer.measure(*self._measured(painting, style_size, stylizer.min_size), refine, refining)

    def _measured(self, painting: Picture, style_size: int, least: int) -> tuple[Tensor, Tensor | None]:
        """A painting at its size, and what its pixels count: how far they show."""
        fitted = filled(scaled(painting, style_size, "style", least, self.max_pixels))
        _check_side(fitted, least, "style")
        weight = fitted.weight
        image = fitted.rgb.to(self.device, memory_format=torch.channels_last)
        return image, None if weight is None else unit(weight).to(self.device)

    @torch.inference_mode()
    def layer_codes(self, style: str, style_size: int = 512) -> list[StyleCode] | None:
        """γ and β of a painting at relu1_1 to relu4_1, which a style loss compares; None where they are not known."""
        if style not in self.gallery.styles and style in self.instance_styles:
            return None
        if style not in self.gallery.styles:
            return self._layer_codes(self._painting(style, Options(), "a style loss"), style_size)
        joined = self.gallery.layer_code(style, style_size)
        if joined is None:
            return None
        channels = self.stylizer.encoder.layer_channels
        deepest = self.gallery.code(style, style_size)
        return list(StyleCode.join([joined, deepest]).to(self.device).split(channels).values())

    @torch.inference_mode()
    def _layer_codes(self, painting: Picture, style_size: int) -> list[StyleCode]:
        image, weight = self._measured(painting, style_size, self.stylizer.min_size)
        features = self.stylizer.encoder.features(image)
        found = [moments(f) if weight is None else weighted_moments(f, weight) for f in features]
        return [code_from_moments(m, self.stylizer.eps) for m in found]

    def painting(self, style: str) -> Image.Image | None:
        """What a style looks like; None for a named one, of which there is only a code."""
        named = style in self.gallery.styles or style in self.instance_styles
        return None if named else on_white(to_pil(self._read(style, "style")))

    def title(self, style: str) -> str:
        """A named style with its title and artist, or the name of the file."""
        about = self.gallery.styles.get(style)
        if about is None:
            return Path(style).stem
        return ", ".join(text for text in (f"{about.name}: {about.title}", about.artist, about.year) if text)

    def _read(self, source: Any, role: str) -> Picture:
        if isinstance(source, Picture):
            return source
        if isinstance(source, Image.Image):
            return from_pil(source, self.max_pixels)
        if isinstance(source, (str, bytes, os.PathLike)):
            return read_image(source, self.max_pixels)
        raise OptionError(f"{role} must be a path, a PIL image or bytes, got {type(source).__name__}")


def make_options(given: Mapping[str, Any]) -> Options:
    """:class:`Options` of keyword arguments; an unknown one lists the choices."""
    names = list(Options.__dataclass_fields__)
    for name in given:
        if name not in names:
            raise unknown_name("option", name, names)
    return Options(**given)


def _looks_like_path(text: str) -> bool:
    return Path(text).suffix != "" or os.sep in text or "/" in text or Path(text).exists()


def _check_side(picture: Picture, least: int, role: str) -> None:
    height, width = picture.size
    if min(height, width) < least:
        raise ImageError(f"the {role} is {width}x{height} pixels; each side must have at least {least}")
