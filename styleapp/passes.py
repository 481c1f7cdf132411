"""Passes of the networks over a photo, window by window, each with the numbers that the whole would give.

A norm needs the moments of its whole input. So a network with norms inside its decoder takes one pass for each of them.
What a pass has made is kept where there is room, in memory or on disk, and the next one goes on from there: then all of
them together do the work of one. In one piece there is nothing to repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.controls import COVARIANCE, Mask, Matching, Window
from styleapp.disk import scratch_array
from styleapp.errors import OptionError
from styleapp.images import Picture, unit
from styleapp.memory import is_out_of_memory
from styleapp.models import Int8Decoder, StyleCode, Stylizer, code_from_moments
from styleapp.models.decoder import Skips
from styleapp.norms import Moments, efdm, merge, moments, pool_moments
from styleapp.tiles import Note, Plan, cells_of, each, halo_of, layer_bytes, windows

__all__ = [
    "Content",
    "Norms",
    "Passes",
    "Seen",
    "Steady",
    "Transform",
    "in_units",
    "measure_content",
    "pooled",
    "shared_moments",
    "transform",
]

Transform = Callable[[Tensor, Window], Tensor]
"""What takes the place of the features of a window."""

Steady = Callable[[str, Moments], Moments]
"""Given the name of a norm and the moments of its input, those to be used: what films smooth over time."""


@dataclass
class Content:
    """What the first pass has found out about a photo.

    Attributes:
        moments: of each channel over all positions, each counting as much as shows of it (:attr:`Picture.weight`).
        besides: the same of the further layers that are normalised (:attr:`Stylizer.besides`), by their names.
        covariance: of the channels, where it was asked for.
        features: all of them, where they are kept.
        skips: features of the layers that the decoder sees besides, where these are kept: in one piece.
        weight: what each of the features counts, where they are kept and do not count alike.
        forget: hands back the memory of what has been looked at of features on disk.
        reduced: the photo that the network saw, where that is not the photo itself.
    """

    moments: Moments
    besides: Mapping[str, Moments] = field(default_factory=dict)
    covariance: Tensor | None = None
    features: Tensor | None = field(default=None, repr=False)
    weight: Tensor | None = field(default=None, repr=False)
    skips: Skips = field(default_factory=dict, repr=False)
    forget: Callable[[], None] = lambda: None
    reduced: Picture | None = field(default=None, repr=False)


@torch.inference_mode()
def measure_content(
    stylizer: Stylizer,
    picture: Picture,
    plan: Plan,
    matching: Matching = Matching(),  # noqa: B008 - frozen
    note: Note = lambda text: None,
    done: Callable[[Window], None] = lambda w: None,
) -> Content:
    """The first pass: moments of the whole photo, tile by tile; ``done`` is called after each."""
    device = next(stylizer.parameters()).device
    cells = cells_of(picture.size)
    channels = stylizer.encoder.num_channels
    weights = _Weights(picture)
    second = torch.zeros(channels, channels, dtype=torch.float64) if matching.kind in COVARIANCE else None
    last = stylizer.encoder.last
    measured = [*stylizer.besides, last]
    parts: dict[str, list[Moments]] = {name: [] for name in measured}
    looked = {*measured, *(stylizer.decoder.skips_between(None, None) if plan.keep else [])}
    skips: dict[str, Tensor] = {}
    kept: _Kept | None = None
    keep = plan.keep

    def make_room() -> None:
        nonlocal kept, keep
        kept = _room((channels, *cells), next(stylizer.parameters()), plan.keep_on_disk)
        keep = kept is not None

    if keep and not plan.covers(picture.size):
        make_room()  # before the first tile: a hole that a tile leaves would be too small for it

    def work(w: Window) -> None:
        nonlocal skips, kept
        layers = _encode(stylizer, picture, w, list(looked) if w.size == cells else measured)
        for name in measured:
            features, weight = layers[name], None
            if name != last or second is None:
                weight = weights(w, stylizer.encoder.stride_of(name), features)
            parts[name].extend(_moments(stylizer, name, features, weight))
        features = layers.pop(last)
        if second is not None:  # weights make directions of tiny variance, which these would blow up: all count alike
            flat = features[0].flatten(1).double()
            second.add_((flat @ flat.T).cpu())
        if keep and w.size == cells:
            kept, skips = _Kept(features), layers
        elif keep:
            if kept is None:  # a tile of everything did not fit
                make_room()
            if kept is not None:
                kept.output[w.index] = features
                kept.forget()

    each(windows(cells, plan.tile), work, note, plan.tidy_above, done)
    totals = {name: merge(*of_layer) for name, of_layer in parts.items()}
    total = totals[last]
    covariance = None
    if second is not None:
        mean = total.mean.flatten().cpu()
        covariance = (second / total.count - torch.outer(mean, mean))[None].to(device)
    found = {name: Moments(m.count, m.mean.float(), m.var.float()) for name, m in totals.items()}
    everything = Window(0, 0, *cells)
    content = Content(found.pop(last), found, covariance)
    if kept is None:
        return content
    weight = weights(everything, 8, kept.output)
    return replace(content, features=kept.output, weight=weight, skips=skips, forget=kept.forget)


def shared_moments(
    stylizer: Stylizer, pictures: Sequence[Picture], code: StyleCode, first: Moments
) -> dict[str, Moments]:
    """The moments of the input of each norm in the decoder over several pictures together, in one piece.

    Args:
        pictures: of one size.
        first: the moments at the bottleneck.
    """
    found: dict[str, Moments] = {}
    weights = [_Weights(picture) for picture in pictures]
    everything = Window(0, 0, *cells_of(pictures[0].size))

    def seen(name: str, x: Tensor) -> Moments:
        if name not in stylizer.decoder.hidden:
            return first
        stride = stylizer.decoder.strides[name]
        each = zip(weights, x.split(1), strict=True)
        total = merge(*(m for weight, y in each for m in _moments(stylizer, name, y, weight(everything, stride, y))))
        found[name] = Moments(total.count, total.mean.float(), total.var.float())
        return found[name]

    image = torch.cat([picture.rgb for picture in pictures]).to(next(stylizer.parameters()).device)
    exact = any(picture.pixels.dtype != torch.uint8 for picture in pictures)
    features, skips = stylizer.encode(image.contiguous(memory_format=torch.channels_last), exact=exact)
    stylizer.restyled(features, code, skips=skips, seen=seen, exact=exact)
    return found


class Seen:
    """The features of windows of a photo: those that are kept, others encoded anew."""

    def __init__(self, stylizer: Stylizer, picture: Picture, content: Content) -> None:
        self.stylizer = stylizer
        self.picture = picture
        self.kept = dict(content.skips)
        if content.features is not None:
            self.kept[stylizer.encoder.last] = content.features

    def __call__(self, w: Window, layers: Sequence[str]) -> dict[str, Tensor]:
        """Those of a window at some layers of the encoder, by their names."""
        cells = cells_of(self.picture.size)
        there = [name for name in layers if name in self.kept]
        found = {name: self.kept[name][_at(self.stylizer, name, w, cells).index] for name in there}
        return found | _encode(self.stylizer, self.picture, w, [name for name in layers if name not in there])


class _Weights:
    """What the features of a photo count: the opacity of the pixels that each stands for."""

    def __init__(self, picture: Picture) -> None:
        weight = picture.weight
        self.mask = None if weight is None else Mask(weight)
        self.size = picture.size

    def __call__(self, w: Window, stride: int, features: Tensor) -> Tensor | None:
        """(1, 1, h, w) for features of a window, ``stride`` pixels apart; None where all count alike."""
        if self.mask is None:
            return None
        return pooled(self.mask.window(w.scaled(8, self.size)), stride, features.shape[-2:]).to(features.device)


def _moments(stylizer: Stylizer, layer: str, x: Tensor, weight: Tensor | None) -> list[Moments]:
    """Of one part, to be merged, in float64; none where nothing of it counts."""
    if weight is not None and not bool((weight > 0).any()):
        return []
    found = stylizer.moments_of(layer, x, weight)
    return [Moments(found.count, found.mean.double(), found.var.double())]


class Norms:
    """The norms of one request, and the decoder between them.

    One inside the decoder is settled as soon as the moments of its whole input are known; where a window covers the
    photo they are taken on the way.

    Args:
        first: the norm of the features.
        inside: the codes of those in the decoder, by the names of their layers.
        besides: the norms of further layers of the encoder that the decoder sees, by their names.
        steady: what is taken for the moments of these.
        shifts: what the convolutions of the decoder get besides in a window.
        int8: the decoder in integers for these codes, where it is to be taken; ``first`` is its norm then too.
    """

    def __init__(
        self,
        stylizer: Stylizer,
        picture: Picture,
        first: Transform,
        inside: Mapping[str, StyleCode],
        steady: Steady = lambda name, found: found,
        *,
        besides: Mapping[str, Transform] | None = None,
        shifts: Callable[[Window], Mapping[str, Tensor]] = lambda w: {},
        int8: Int8Decoder | None = None,
    ) -> None:
        self.besides = besides or {}
        self.int8 = int8
        self.stylizer = stylizer
        self.decoder = stylizer.decoder
        self.strides = stylizer.decoder.strides
        self.cells = cells_of(picture.size)
        self.weights = _Weights(picture)
        self.first = first
        self.codes = inside
        self.steady = steady
        self.shifts = shifts
        self.settled: dict[str, Transform] = {}

    @property
    def open(self) -> list[str]:
        """The norms whose moments are not known yet, in network order."""
        return [name for name in self.codes if name not in self.settled]

    def settle(self, name: str, found: Moments) -> None:
        """These are the moments of the whole input of the norm ``name``."""
        found = self.steady(name, Moments(found.count, found.mean.float(), found.var.float()))
        if self.int8 is not None:
            self.settled[name] = in_units(self.int8, name, found)
        else:
            self.settled[name] = transform(self.stylizer, name, self.codes[name], Content(found), Matching())

    def decoded(self, x: Tensor, w: Window, skips: Skips, until: str | None = None, after: str | None = None) -> Tensor:
        """A window through the norms and the decoder, up to the input of the norm ``until``.

        Args:
            x: its features, or the input of the norm ``after``.
            skips: its features at the layers that come in between.
        """

        def norm(name: str, y: Tensor) -> Tensor:
            if name not in self.settled:
                assert w.size == self.cells, "moments of a part are not those of the whole"
                self.settle(name, *_moments(self.stylizer, name, y, self.weights(w, self.strides[name], y)))
            return self.settled[name](y, w)

        if after is None:
            x = self.first(x, w)
        if self.int8 is not None:
            return self.int8(x, norm, until, after, skips)
        if self.besides:
            skips = {name: self.besides[name](skips[name], w) for name in self.decoder.skips_between(after, until)}
        result: Tensor = self.decoder(x, norm if self.codes else None, until, after, skips, self.shifts(w))
        return result


class Passes:
    """The decoder over a photo, window by window: for its moments at each norm in turn, and for the result.

    Args:
        norms: of the request.
        seen: the features of the photo.
    """

    def __init__(self, stylizer: Stylizer, norms: Norms, plan: Plan, seen: Seen) -> None:
        self.stylizer = stylizer
        self.strides = stylizer.decoder.strides
        self.norms = norms
        self.plan = plan
        self.seen = seen
        self.size = seen.picture.size
        self.cells = cells_of(self.size)
        self.kept: _Kept | None = None
        """The last output that there was room for, before its norm."""
        self.after: str | None = None
        """The layer that it is of."""

    def finer(self, w: Window, name: str | None) -> Window:
        """A window of features in units of a layer's output; in pixels for None."""
        factor = 8 if name is None else 8 // self.strides[name]
        return w.scaled(factor, (factor * self.cells[0], factor * self.cells[1]))

    def decoded(self, w: Window, until: str | None = None) -> Tensor:
        """A window through norms and decoder, to the input of the norm ``until``, or to a picture in float32."""
        after = self.after
        outer = self.outer(w, after, until)
        layers = self.stylizer.decoder.skips_between(after, until)
        if self.kept is None:
            last = self.stylizer.encoder.last
            seen = self.seen(outer, [*layers, last])
            x = seen.pop(last)
        else:
            seen = self.seen(outer, layers)
            x = self.kept.output[self.finer(outer, after).index]
        y = self._inwards(self.norms.decoded, x, seen, w, until, after)
        if self.kept is not None:
            self.kept.forget()
        return y

    def plain(self, w: Window) -> Tensor:
        """The picture that the decoder makes of a window without any norm."""
        decoder, last = self.stylizer.decoder, self.stylizer.encoder.last
        seen = self.seen(self.outer(w, None, None), [*decoder.skips_between(None, None), last])

        def decoded(x: Tensor, w: Window, skips: Skips, until: str | None, after: str | None) -> Tensor:
            result: Tensor = decoder(x, None, until, after, skips)
            return result

        return self._inwards(decoded, seen[last], seen, w)

    def outer(self, w: Window, after: str | None, until: str | None) -> Window:
        """What a window of the output of ``until`` needs of that of ``after``."""
        return w.grown(halo_of(self.stylizer.decoder.radius_between(after, until)), self.cells)

    def _inwards(
        self,
        decoded: Callable[[Tensor, Window, Skips, str | None, str | None], Tensor],
        x: Tensor,
        seen: Skips,
        w: Window,
        until: str | None = None,
        after: str | None = None,
    ) -> Tensor:
        """Through the decoder; before the size doubles, what a window needs no longer is left behind.

        Args:
            decoded: as :meth:`Norms.decoded`.
            x, seen: of the window :meth:`outer`.
            w: what is wanted: an output of ``until``, or a picture in float32.
        """
        outer = self.outer(w, after, until)
        for name in self.stylizer.decoder.ends_between(after, until):
            needed = self.outer(w, name, until)
            if needed == outer:
                continue
            x = decoded(x, outer, seen, name, after)
            inner = needed.within(outer)
            x = x[self.finer(inner, name).index]
            seen = {layer: f[_at(self.stylizer, layer, inner, outer.size).index] for layer, f in seen.items()}
            outer, after = needed, name
        y = decoded(x, outer, seen, until, after)[self.finer(w.within(outer), until).index]
        if until is not None:
            return y
        height, width = w.scaled(8, self.size).size  # features reach to a multiple of 8
        return y[..., :height, :width].float()

    def settle_open(self, w: Window, note: Note, done: Callable[[Window], None]) -> None:
        """A pass for each norm that is open, in tiles no larger than a window; none where that is the whole photo."""
        if w.size == self.cells:
            return
        for name in self.norms.open:
            height, width = (min(side, 8 * cells) for side, cells in zip(self.plan.tile, w.size, strict=True))
            self.settle(name, (height, width), note, done)

    def settle(self, name: str, tile: tuple[int, int], note: Note, done: Callable[[Window], None]) -> None:
        """One pass for the moments of the input of a norm in the decoder, which is kept if there is room."""
        parts: list[Moments] = []
        whole = self.room_for(name)

        def measure(w: Window) -> None:
            y = self.decoded(w, name)
            if whole is not None:
                whole.output[self.finer(w, name).index] = y
                whole.forget()
            parts.extend(_moments(self.stylizer, name, y, self.norms.weights(w, self.strides[name], y)))

        each(windows(self.cells, tile), measure, note, self.plan.tidy_above, done)
        self.norms.settle(name, merge(*parts))
        if whole is not None:
            self.kept, self.after = whole, name

    def room_for(self, name: str) -> _Kept | None:
        """Room for the output of a layer beside the one that is kept now: in memory, else on disk, else none."""
        needed = layer_bytes(self.stylizer, name, self.size)
        taken = 0 if self.after is None else layer_bytes(self.stylizer, self.after, self.size)
        on_disk = self.kept is not None and self.kept.on_disk
        rows, columns = self.finer(Window(0, 0, *self.cells), name).size
        shape = (self.stylizer.decoder.hidden[name], rows, columns)
        like = next(self.stylizer.parameters())
        if needed + (not on_disk) * taken <= self.plan.room:
            return _room(shape, like, on_disk=False)
        return _room(shape, like, on_disk=True) if needed + on_disk * taken <= self.plan.disk else None


@dataclass
class _Kept:
    """What a layer gives, of the whole photo."""

    output: Tensor
    forget: Callable[[], None] = lambda: None
    on_disk: bool = False


def _room(shape: tuple[int, int, int], like: Tensor, on_disk: bool) -> _Kept | None:
    """Room for (C, H, W) of a photo; None where others have filled memory or disk since the work was planned."""
    if not on_disk:
        layout = torch.channels_last
        try:
            return _Kept(torch.empty((1, *shape), dtype=like.dtype, device=like.device, memory_format=layout))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None
    try:
        array = scratch_array((*shape[1:], shape[0]), like.dtype)
    except OSError:
        return None
    return _Kept(array.tensor, array.forget, on_disk=True)


def transform(
    stylizer: Stylizer, layer: str, style: StyleCode | Tensor, content: Content, matching: Matching
) -> Transform:
    """The features of a window at a layer, with a style."""
    if matching.kind == "moments":
        if not isinstance(style, StyleCode):
            style = code_from_moments(moments(style), stylizer.eps)
        own, gamma, beta = content.moments, style.gamma, style.beta
        if matching.over != "instance":
            own = pool_moments(own, matching.over, matching.num_groups)
            as_moments = Moments(1, beta, gamma.square())  # the variance of a code has its eps inside
            pooled = pool_moments(as_moments, matching.over, matching.num_groups)
            gamma, beta = pooled.var.sqrt(), pooled.mean
        code = StyleCode(gamma, beta).to(own.mean.device)  # a learned γ may be negative
        return lambda x, w: stylizer.normalized(layer, x, own, code)
    if not isinstance(style, Tensor):
        raise OptionError(f"{matching.kind} needs a painting, not only its code: give an image file as the style")
    style = style.to(content.moments.mean.device)
    if matching.kind == "efdm":
        assert content.features is not None
        counts = slice(None) if content.weight is None else content.weight.flatten() > 0
        flat = content.features.flatten(2).clone()
        for c in range(0, flat.shape[1], 64):
            part = slice(c, c + 64)
            flat[:, part, counts] = efdm(flat[:, part, counts].float(), style[:, part].float()).to(flat.dtype)
        matched = flat.view_as(content.features)
        return lambda x, w: matched[w.index]
    assert content.covariance is not None
    flat = style.flatten(2).double()
    target = flat.mean(-1, keepdim=True)
    centred = flat - target
    covariance = centred @ centred.mT / flat.shape[-1]
    matrix = COVARIANCE[matching.kind](content.covariance, covariance).float()
    mean, target = content.moments.mean.flatten(2), target.float()
    return lambda x, w: (matrix @ (x.float().flatten(2) - mean) + target).view(x.shape).to(x.dtype)


def in_units(decoder: Int8Decoder, norm: str, m: Moments) -> Transform:
    """A norm with these moments, whose result are the whole numbers that the decoder takes."""
    return lambda x, w: decoder.normed(norm, x, m)


def pooled(share: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Means of ``stride`` x ``stride`` pixels; the layers of a photo reach over its edge to a multiple of 8."""
    if stride > 1:
        share = F.avg_pool2d(share, stride, ceil_mode=True, count_include_pad=False)
    beyond = (0, size[1] - share.shape[-1], 0, size[0] - share.shape[-2])
    return F.pad(share, beyond, mode="replicate") if any(beyond) else share


def _encode(stylizer: Stylizer, picture: Picture, w: Window, layers: Sequence[str]) -> dict[str, Tensor]:
    """The features of a window at these layers, as they are in those of the whole photo.

    A photo of more than 8 bits keeps them: integers of 8 are for others.
    """
    if not layers:
        return {}
    encoder = stylizer.encoder
    cells = cells_of(picture.size)
    outer = w.grown(halo_of(max(map(encoder.radius_of, layers))), cells)
    device = next(stylizer.parameters()).device
    crop = unit(picture.pixels[outer.scaled(8, picture.size).index].to(device))  # a quarter of the bytes to bring there
    exact = picture.pixels.dtype != torch.uint8
    features = stylizer.features(crop.contiguous(memory_format=torch.channels_last), layers, exact=exact)
    found = zip(sorted(layers), features, strict=True)  # in network order
    return {name: f[_at(stylizer, name, w.within(outer), outer.size).index] for name, f in found}


def _at(stylizer: Stylizer, layer: str, w: Window, cells: tuple[int, int]) -> Window:
    """A window of features in units of a layer of the encoder, of so many features in all."""
    factor = 8 // stylizer.encoder.stride_of(layer)
    return w.scaled(factor, (factor * cells[0], factor * cells[1]))
