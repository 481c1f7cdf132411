"""The public API: a photo and a style in, a stylized photo out."""

from __future__ import annotations

import os
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
from styleapp.controls import (
    Layer,
    Mask,
    Matching,
    Window,
    blended,
    check_mask,
    colour_statistics,
    match_colours,
    match_histograms,
    parse_norm,
    weights_of,
)
from styleapp.devices import find_device, find_precision
from styleapp.engine import Content, brightness, measure_content, render
from styleapp.enlarge import enlarged, reduced
from styleapp.errors import ImageError, OptionError, unknown_name
from styleapp.files import Animation
from styleapp.images import MAX_PIXELS, Picture, filled, quantized, resized, scaled, to_pil, unit
from styleapp.large import LargePicture, is_large, read_large
from styleapp.memory import available, is_out_of_memory
from styleapp.models import StyleCode, Stylizer
from styleapp.models.recorded import Recordings
from styleapp.networks import Networks
from styleapp.norms import Moments, merge
from styleapp.options import Options, parse_bytes
from styleapp.passes import Steady, shared_moments
from styleapp.styles import Source, Style, Styles, check_side, read
from styleapp.tiles import Plan, goes_on, make_plan
from styleapp.weights import Weights

__all__ = ["Options", "Region", "Source", "Style", "StyleTransfer"]

TRANSFORMER_BYTES = 1200
"""Of memory for each pixel in an imported network, float32: 970 to 990 bytes were measured on the CPU."""

RECORDED_BYTES = 1000
"""Of memory for each pixel that a recording of the network's kernels holds; what is above RECORDED_MOST in all keeps a
GPU busy without one."""

RECORDED_MOST = 2.5e9

Region: TypeAlias = "tuple[Source, Style, float]"
"""A mask, the style that it gets, and its strength."""


class StyleTransfer:
    """Stylizes photos with one network, on one device, in one precision.

        from styleapp import StyleTransfer
        StyleTransfer().stylize("photo.jpg", "great-wave", alpha=0.8).save("out.png")

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".
        precision: "auto", "fp32", "bf16", "fp16" or "int8". "auto" is bf16 where the device computes in it and fp32
            elsewhere; and on a CPU that multiplies 8-bit integers "int8": the features of photos of 8 bits in these,
            without bfloat16 the decoder of CIN and IN for them too, all else as before. Statistics are always in
            float32.
        weights: folder with manifest.json; by default the shipped one.
        max_pixels: larger photos and paintings are refused.
        compile: run encoder and AdaIN decoder through torch.compile. The first photo of a size takes about a minute
            longer; what is won by it, ``styleapp bench --compile`` tells.
        code_cache: folder in which codes of paintings outlive the process, such as
            :func:`styleapp.codes.codes_folder`; None for memory alone.

    Attributes:
        networks: those of the weights.
        recordings: of their kernels for plain photos of sizes that come again, on a GPU.
        styles: the named ones, and what becomes of others.

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
        files = Weights(Path(weights) if weights is not None else None)
        self.precision = find_precision(precision, self.device, integers=files.has_int8)
        self.max_pixels = max_pixels
        if self.precision == "fp32" and self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # its 10 bits are not float32: tiles would differ from the whole
        self.recordings = Recordings(self.device)
        self.networks = Networks(files, self.device, self.precision, compile=compile)
        cache = None if code_cache is None else Path(code_cache)
        arithmetic = f"{self.device.type} {self.networks.dtype} {__version__}"
        self.styles = Styles(self.networks, arithmetic, max_pixels, cache)

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
            return self._recoloured(photo, style, options, alpha_map, note)
        styles = [s for s in (style, *(r[1] for r in regions)) if s is not None]
        options = self.styles.settled(options, styles)
        if options.norm == "in" and not regions and self.networks.is_transformer(style):
            return self._transformed(photo, str(style), options, alpha_map, note)
        matching = parse_norm(options.norm, self.networks.adain.encoder.num_channels)
        stylizer = self.networks.of(options.norm, styles, options.detail)
        plain = not regions and alpha_map is None and content is None and not steady and self.device.type == "cuda"
        if plain and style is not None and self.fits_at_once([photo], options):
            check_side(photo, stylizer.min_size, "photo")
            self.styles.code(style, options.style_size, options.norm, options.refine, lambda: progress(0))
            try:
                found = self._at_once(stylizer, [photo], [style], options)[0]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.recordings.clear()  # and go on in tiles
            else:
                progress(1)
                return found
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
        settled = {self.styles.settled(options, [style]) for style in styles}
        # One alone goes the way that knows what to do where it is too small, or memory runs out.
        if len(photos) > 1 and len(settled) == 1 and self.fits_at_once(photos, one := settled.pop()):
            return self._at_once(self.networks.of(one.norm, detail=one.detail), photos, styles, one)
        return [self.picture(photo, style, options) for photo, style in zip(photos, styles, strict=True)]

    def fits_at_once(self, photos: Sequence[Picture], options: Options) -> bool:
        """Whether photos can go through the network as one batch: several, or on a GPU also one."""
        first, count = photos[0], len(photos)
        plain = options.norm in ("adain", "cin") and options.color == "none" and options.alpha > 0
        alike = all(p.pixels.shape == first.pixels.shape and p.weight is None for p in photos)
        enough = count > 1 or (self.device.type == "cuda" and not isinstance(first, LargePicture))
        if not enough or not plain or not alike or options.tile not in ("auto", "off") or _is_reduced(first, options):
            return False
        plan = self._plan(self.networks.of(options.norm), first, options, keep=True, count=count, whole=True)
        return plan.covers((first.size[0] * count, first.size[1]))

    def _at_once(
        self, stylizer: Stylizer, photos: Sequence[Picture], styles: Sequence[Style], options: Options
    ) -> list[Picture]:
        code_of = {  # mostly one for all
            key: self.styles.code(style, options.style_size, options.norm, options.refine).to(self.device)
            for key, style in {id(style): style for style in styles}.items()
        }
        codes = list(code_of.values()) if len(code_of) == 1 else [code_of[id(style)] for style in styles]
        gamma, beta = torch.cat([c.gamma for c in codes]), torch.cat([c.beta for c in codes])
        stored = _together([photo.pixels for photo in photos], pinned=self.device.type == "cuda")

        def stylized(stored: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
            image = unit(stored).contiguous(memory_format=torch.channels_last)
            exact = stored.dtype != torch.uint8
            return quantized(stylizer(image, StyleCode(gamma, beta), options.alpha, exact=exact), stored.dtype)

        if self.device.type != "cuda":
            pixels = stylized(stored, gamma, beta)
        else:
            with torch.cuda.device(self.device):
                small = stored[:, 0].numel() * RECORDED_BYTES < min(available(self.device) // 8, RECORDED_MOST)
                small = small and options.detail == 1  # other weights do not outlive a request
                run = self.recordings.run if small else self.recordings.plain
                pixels = run((options.norm, options.alpha), stylized, stored, gamma, beta)
        return [replace(p, pixels=q) for p, q in zip(photos, pixels.split(1), strict=True)]

    def _recoloured(
        self, photo: Picture, style: Style, options: Options, alpha_map: Source | None, note: Callable[[str], None]
    ) -> Picture:
        """The photo in the colours of a painting, and nothing else of it."""
        wanted, own = colour_statistics(self.styles.pixels(style, "color palette")), colour_statistics(photo)
        mean, covariance = (a + options.alpha * (b - a) for a, b in zip(own, wanted, strict=True))
        done = match_colours(photo, (mean, covariance))
        if alpha_map is None:
            return done
        return blended(photo, done, Mask(self._mask(alpha_map, photo, "strength map", note), options.feather))

    def _transformed(
        self, photo: Picture, style: str, options: Options, alpha_map: Source | None, note: Callable[[str], None]
    ) -> Picture:
        """By an imported network of one style, in one piece: α · T(photo) + (1 - α) · photo."""
        if options.color not in ("none", "luma") or options.detail != 1:
            raise OptionError("an imported network takes the colors none and luma, and a detail of 1")
        check_side(photo, 16, "photo")
        if _is_reduced(photo, options):
            small = reduced(filled(photo), options.work_size, self.device)
            low = self._transformed(small, style, replace(options, work_size=0), alpha_map, note)
            share = 1.0 if alpha_map is None else unit(self._mask(alpha_map, small, "strength map", lambda text: None))
            return enlarged(photo, small, low, 1 - options.alpha * share, self.device)
        needed = photo.size[0] * photo.size[1] * TRANSFORMER_BYTES
        if needed > available(self.device):
            raise OptionError(
                f"an imported network works in one piece: {needed / 1e9:.1f} GB are needed for this photo, "
                f"{available(self.device) / 1e9:.1f} GB are free; --size makes it smaller"
            )
        image = photo.rgb
        device_image = image.to(self.device, memory_format=torch.channels_last)
        result = self.networks.transformer(style)(device_image).clamp(0, 1).cpu()
        if options.color == "luma":
            result = image + brightness(result) - brightness(image)
        strength: float | Tensor = options.alpha
        if alpha_map is not None:
            mask = Mask(self._mask(alpha_map, photo, "strength map", note), options.feather)
            strength = strength * mask.window(Window(0, 0, *photo.size))
        return replace(photo, pixels=quantized(image + strength * (result - image), photo.pixels.dtype))

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
            OptionError: for wct, ot and efdm, which match more than moments, and for palette, which matches colours.
        """
        options = self.styles.settled(options, [s for s in (style, *(r[1] for r in regions)) if s is not None])
        matching = parse_norm(options.norm, self.networks.adain.encoder.num_channels)
        if matching.kind != "moments" or options.norm == "in" or options.color in ("coral", "histogram", "palette"):
            raise OptionError(
                "an animation takes the norms cin, adain, adaln, adabn and adagn, and the colors none and luma"
            )
        frames = [self._fitted(frame, options) for frame in film.frames]
        parts = [self.measure_content(frame, options, keep=False) for frame in frames]
        besides = {name: merge(*(part.besides[name] for part in parts)) for name in parts[0].besides}
        shared = Content(merge(*(part.moments for part in parts)), besides)
        code = partial(self.styles.code, style_size=options.style_size, norm=options.norm, refine=options.refine)
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
        network = self.networks.of(options.norm, detail=options.detail)
        seen = _worked(frames[0], options, self.device)
        height, width = seen.size
        for count in range(min(16, len(frames)), 0, -1):
            plan = self._plan(network, seen, replace(options, tile="auto"), keep=True, count=count, whole=True)
            if plan.covers((count * height, width)):
                chosen = [_worked(filled(frames[i * len(frames) // count]), options, self.device) for i in range(count)]
                found = shared_moments(network, chosen, code.to(self.device), first)
                return lambda name, own: found[name]
        return lambda name, own: own

    def measure_content(self, photo: Picture, options: Options, *, keep: bool = True) -> Content:
        """What the engine finds out about a photo first, to be changed or shared and given to :meth:`picture`.

        Args:
            keep: its features too, where they fit into memory, and the photo as it is reduced.
        """
        matching = parse_norm(options.norm, self.networks.adain.encoder.num_channels)
        seen, network = _worked(filled(photo), options, self.device), self.networks.of(options.norm)
        found = measure_content(network, seen, self._plan(network, seen, options, keep=keep), matching)
        return replace(found, reduced=seen) if keep and _is_reduced(photo, options) else found

    def prepare(self, style: Style, options: Options) -> Style:
        """The style as what is quickest to use many times: its code, where that is all that is needed of it.

        For "auto" one for the CIN network stays a name, or a painting, read and scaled: AdaIN takes it where it meets
        a style that has no code for that network.
        """
        if options.norm == "auto":
            options = self.styles.settled(options, [style])
            if options.norm == "cin":
                style = self.styles.at_hand(style, options)
                if options.color in ("none", "luma"):
                    self.styles.code(style, options.style_size, "cin", options.refine)  # tells what is wrong with it
                return style
        matching = parse_norm(options.norm, self.networks.adain.encoder.num_channels)
        if options.norm == "in":
            if not self.networks.is_transformer(style):
                self.networks.of("in", [style])
            return style
        if matching.kind == "moments" and options.color in ("none", "luma"):
            return self.styles.code(style, options.style_size, options.norm, options.refine)
        self.styles.pixels(style, options.norm if matching.kind != "moments" else f"color {options.color}")
        return style

    def render(self, picture: Picture, code: StyleCode, alpha: float = 1.0) -> Picture:
        """Stylize a picture of final size with a code; its transparency is kept."""
        return self._rendered(self.networks.adain, picture, [Layer(code, alpha)], Options())

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
        check_side(picture, self.networks.adain.min_size, "photo")
        if all(layer.alpha == 0 for layer in layers):
            return picture
        picture = filled(picture)
        if _is_reduced(picture, options):
            small = content.reduced if content is not None else None
            small = small or reduced(picture, options.work_size, self.device)
            layers = [replace(layer, mask=_at_size(layer.mask, picture, small)) for layer in layers]
            strength = _at_size(strength, picture, small)
            options = replace(options, work_size=0)
            more = (options, matching, strength, note, content, steady, progress)
            result = self._rendered(stylizer, small, layers, *more)
            whole = Window(0, 0, *small.size)
            kept = 1 - sum(weights_of(layers, strength, whole))
            return enlarged(picture, small, result, kept, self.device)
        plan = self._plan(stylizer, picture, options, keep=content is None, whole=not stylizer.decoder.is_local)
        if not plan.covers(picture.size):
            self.recordings.clear()  # the plan counts on their memory
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

    def _plan(
        self, stylizer: Stylizer, picture: Picture, options: Options, *, keep: bool, count: int = 1, whole: bool = False
    ) -> Plan:
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
            whole=whole,
        )

    def _target(
        self,
        style: Style,
        options: Options,
        matching: Matching,
        photo: Picture,
        refining: Callable[[], None],
    ) -> StyleCode | dict[str, StyleCode | Tensor]:
        """What the engine needs of a style: its code, or the parts of it with all features in place of their code."""
        recolour = options.color in ("coral", "histogram")
        if matching.kind == "moments" and not recolour:
            return self.styles.code(style, options.style_size, options.norm, options.refine, refining)
        painting = self.styles.pixels(style, options.norm if not recolour else f"color {options.color}")
        if options.color == "coral":
            painting = match_colours(painting, colour_statistics(photo))
        elif options.color == "histogram":
            painting = match_histograms(painting, photo)
        if matching.kind == "moments":
            network = self.networks.of(options.norm, [style])
            return self.styles.measure(painting, options.style_size, network, options.refine, refining)
        network = self.networks.adain
        image, weight = self.styles.image_of(painting, options.style_size, network.min_size)
        features: Tensor = network.encoder(image)
        parts = network.measure(image, weight, options.refine, refining).split(network.parts)
        if weight is not None:
            shows = F.adaptive_avg_pool2d(weight, (features.shape[-2], features.shape[-1]))[0, 0] > 0
            features = features[..., shows].unsqueeze(2)
        return {**parts, network.encoder.last: features}

    def _mask(self, source: Source, photo: Picture, role: str, note: Callable[[str], None]) -> Tensor:
        """A mask of the photo's size."""
        if source == "alpha":
            if photo.alpha is None:
                raise ImageError("the mask 'alpha' is the photo's transparency, and this photo has none")
            return photo.alpha
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else role
        values = check_mask(read(source, role, self.max_pixels), name)
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
        return self._fitted(read(content, "photo", self.max_pixels), options)

    def _fitted(self, picture: Picture, options: Options) -> Picture:
        if options.size:
            picture = scaled(picture, options.size, "photo", self.networks.adain.min_size, self.max_pixels)
        check_side(picture, self.networks.adain.min_size, "photo")
        return picture


def _is_reduced(photo: Picture, options: Options) -> bool:
    """Whether the network sees a smaller photo than this."""
    return 0 < options.work_size < min(photo.size)


def _worked(photo: Picture, options: Options, device: torch.device) -> Picture:
    """What the network sees."""
    return reduced(photo, options.work_size, device) if _is_reduced(photo, options) else photo


def _at_size(mask: Mask | None, photo: Picture, small: Picture) -> Mask | None:
    """A mask of a photo for the photo as it is reduced."""
    if mask is None:
        return None
    return Mask(resized(mask.values, list(small.size)), mask.feather * small.size[0] / photo.size[0])


def make_options(given: Mapping[str, Any]) -> Options:
    """:class:`Options` of keyword arguments; an unknown one lists the choices."""
    names = list(Options.__dataclass_fields__)
    for name in given:
        if name not in names:
            raise unknown_name("option", name, names)
    return Options(**given)


def _together(images: Sequence[Tensor], *, pinned: bool) -> Tensor:
    """Images of one size as a batch, channels side by side as they are; pinned, where a GPU is to fetch it.

    torch.cat takes four times as long for bytes in this order, and what it makes would be copied again to be pinned.
    """
    shape, dtype = (len(images), *images[0].shape[1:]), images[0].dtype
    batch = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last, pin_memory=pinned)
    for place, image in zip(batch, images, strict=True):
        place.copy_(image[0])
    return batch
