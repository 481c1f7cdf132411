"""Stylize in tiles of bounded memory, with the result of stylizing in one piece.

A norm needs the photo only through moments over the whole of it. The first pass encodes tile by tile and
merges their moments; the second normalises and decodes tile by tile with the moments of the whole. Tiles
lie on multiples of 8 pixels, the encoder's pooling, and carry a halo as wide as the networks see, so that
a tile holds the very numbers that the whole would. One tile that covers the photo is the plain case.

A network with norms inside its decoder takes one pass more for each of them, for the moments of its input. So its tiles
are as exact. What a pass has made is kept where there is room, in memory or on disk, and the next one goes on from
there: then all of them together do the work of one. In one piece there is nothing to repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from styleapp.controls import Layer, Mask, Matching, Window, weights_of
from styleapp.disk import scratch_array
from styleapp.errors import OptionError
from styleapp.images import Picture, quantized, unit
from styleapp.models import StyleCode, Stylizer, code_from_moments, unshifted
from styleapp.models.decoder import Skips
from styleapp.norms import Moments, efdm, merge, moments, normalize, pool_moments, wct_matrix, weighted_moments
from styleapp.tiles import Note, Plan, cells_of, each, halo_of, layer_bytes, windows

__all__ = ["Content", "brightness", "measure_content", "render"]


@dataclass
class Content:
    """What the first pass has found out about a photo.

    Attributes:
        moments: of each channel over all positions, each counting as much as shows of it (:attr:`Picture.weight`).
        covariance: of the channels, where it was asked for.
        features: all of them, where they are kept.
        skips: features of the layers that the decoder sees besides, where these are kept: in one piece.
        weight: what each of the features counts, where they are kept and do not count alike.
        forget: hands back the memory of what has been looked at of features on disk.
    """

    moments: Moments
    covariance: Tensor | None = None
    features: Tensor | None = field(default=None, repr=False)
    weight: Tensor | None = field(default=None, repr=False)
    skips: Skips = field(default_factory=dict, repr=False)
    forget: Callable[[], None] = lambda: None


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
    parts: list[Moments] = []
    weights = _Weights(picture)
    second = torch.zeros(channels, channels, dtype=torch.float64) if matching.kind == "wct" else None
    last = stylizer.encoder.last
    besides = stylizer.decoder.skips_between(None, None) if plan.keep else []
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
        skips = _encode(stylizer, picture, w, [*besides, last] if w.size == cells else [last])
        features = skips.pop(last)
        weight = None
        if second is None:
            weight = weights(w, 8, features)
        else:  # weights make directions of tiny variance, which WCT would blow up: there all positions count alike
            flat = features[0].flatten(1).double()
            second.add_((flat @ flat.T).cpu())
        if keep and w.size == cells:
            kept = _Kept(features)
        elif keep:
            if kept is None:  # a tile of everything did not fit
                make_room()
            if kept is not None:
                kept.output[w.index] = features
                kept.forget()
        parts.extend(_moments(features, weight))

    each(windows(cells, plan.tile), work, note, plan.tidy_above, done)
    total = merge(*parts)
    covariance = None
    if second is not None:
        mean = total.mean.flatten().cpu()
        covariance = (second / total.count - torch.outer(mean, mean))[None].to(device)
    m = Moments(total.count, total.mean.float(), total.var.float())
    everything = Window(0, 0, *cells)
    if kept is None:
        return Content(m, covariance)
    return Content(m, covariance, kept.output, weights(everything, 8, kept.output), skips, kept.forget)


@torch.inference_mode()
def render(
    stylizer: Stylizer,
    picture: Picture,
    layers: Sequence[Layer],
    plan: Plan,
    *,
    matching: Matching = Matching(),  # noqa: B008 - frozen
    strength: Mask | None = None,
    luma: bool = False,
    content: Content | None = None,
    note: Note = lambda text: None,
    progress: Progress = lambda share: None,
) -> Picture:
    """The stylized photo, in the depth of the photo, with its transparency.

    With f = E(photo), T_k(f) the features with the style of layer k and w_k its share at each place:

        y = D(f + Σ w_k (T_k(f) - f)) + (1 - Σ w_k) · (photo - D(f))

    For one code and w = α that is section 7.3 of Huang and Belongie (2017); the second term gives back what
    the decoder loses of the photo where no style is, so that a strength of 0 is the photo itself.

    Args:
        picture: each side at least ``stylizer.min_size``.
        layers: at most one without a mask.
        plan: from :func:`make_plan`.
        matching: what of a style is matched.
        strength: a map that scales every layer's strength.
        luma: take over the brightness alone; the colours (chroma) stay the photo's.
        content: what :func:`measure_content` found, if it is to be shared (frames of a film).
        note: told what a user should know, such as tiles that had to be made smaller.
        progress: called after each tile of each pass with the share of the work that is done, up to 1. What it raises
            ends the work.

    Raises:
        OptionError: if EFDM is asked for and the features of the photo do not fit into memory.
    """
    out = picture.empty()
    if matching.kind == "efdm" and (plan.keep_on_disk or not plan.keep):
        raise OptionError("efdm needs all features of the photo at once: raise --max-memory, or take another --norm")
    cells = cells_of(picture.size)
    count = (content is None) + 1  # passes over the photo; those of the norms inside the decoder come on top
    if stylizer.conditional and not plan.covers(picture.size):
        count += len(stylizer.norms) - 1
    forget = [picture.forget]
    done = _after_tile(forget, progress, count * cells[0] * cells[1])
    if content is None:
        content = measure_content(stylizer, picture, plan, matching, note, done)
    forget.append(content.forget)
    norms = _Norms(stylizer, layers, content, matching, picture, strength)

    last, device = stylizer.encoder.last, next(stylizer.parameters()).device
    kept = dict(content.skips) if content.features is None else {**content.skips, last: content.features}

    def seen_of(w: Window, layers: Sequence[str]) -> dict[str, Tensor]:
        found = {name: kept[name][_at(stylizer, name, w, cells).index] for name in layers if name in kept}
        return found | _encode(stylizer, picture, w, [name for name in layers if name not in kept])

    def shares_of(w: Window) -> list[float | Tensor]:
        return weights_of(layers, strength, w.scaled(8, picture.size))

    passes = _Passes(stylizer, norms, plan, picture, seen_of, shares_of)

    def work(w: Window) -> None:
        if w.size != cells:
            for name in norms.open:
                passes.settle(name, (min(plan.tile[0], 8 * w.size[0]), min(plan.tile[1], 8 * w.size[1])), note, done)
        pixels = w.scaled(8, picture.size)
        shares = shares_of(w)
        covered = sum(shares[1:], shares[0])
        given = picture.pixels[pixels.index]
        if _everywhere(covered, 0):
            out[pixels.index] = quantized(unit(given), out.dtype)
            return

        def shown(x: Tensor) -> Tensor:
            return x[..., : given.shape[-2], : given.shape[-1]].float()

        result = shown(passes.decoded(w))
        if luma or not _everywhere(covered, 1):
            image = unit(given.to(device))
        if not _everywhere(covered, 1):
            outer = w.grown(halo_of(stylizer.decoder.radius), cells)
            seen = seen_of(outer, [*stylizer.decoder.skips_between(None, None), last])
            plain = stylizer.decoder(seen[last], skips=seen)
            lost = image - shown(plain[passes.finer(w.within(outer), None).index])
            result += (1 - (covered.to(device) if isinstance(covered, Tensor) else covered)) * lost
        if luma:
            result = image + (brightness(result.clamp(0, 1)) - brightness(image))
        out[pixels.index] = quantized(result, out.dtype).cpu()

    each(windows(cells, plan.tile), work, note, plan.tidy_above, done)
    return replace(picture, pixels=out)


def _after_tile(forget: Sequence[Callable[[], None]], progress: Progress, total: int) -> Callable[[Window], None]:
    """What to call with each window that is ready, of so many features in all passes."""
    worked = 0

    def done(w: Window) -> None:
        nonlocal worked
        for hand_back in forget:
            hand_back()
        worked += w.size[0] * w.size[1]
        progress(min(1.0, worked / total))

    return done


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
        return _pooled(self.mask.window(w.scaled(8, self.size)), stride, features.shape[-2:]).to(features.device)


def _moments(x: Tensor, weight: Tensor | None) -> list[Moments]:
    """Of one part, to be merged, in float64; none where nothing of it counts."""
    if weight is not None and not bool((weight > 0).any()):
        return []
    found = moments(x) if weight is None else weighted_moments(x, weight)
    return [Moments(found.count, found.mean.double(), found.var.double())]


class _Norms:
    """The norms of one request, and the decoder between them.

    That of the bottleneck is settled by the content. One inside the decoder is settled as soon as the moments of
    its whole input are known; where a window covers the photo they are taken on the way.
    """

    def __init__(
        self,
        stylizer: Stylizer,
        layers: Sequence[Layer],
        content: Content,
        matching: Matching,
        picture: Picture,
        strength: Mask | None,
    ) -> None:
        self.decoder = stylizer.decoder
        self.eps = stylizer.eps
        self.cells = cells_of(picture.size)
        self.weights = _Weights(picture)
        self.strides = stylizer.decoder.strides
        self.bottleneck, *self.inside = stylizer.norms
        styles = [layer.style for layer in layers]
        self.codes: list[dict[str, StyleCode]] = []
        if stylizer.conditional:
            if not all(isinstance(style, StyleCode) for style in styles):
                raise OptionError("a conditional network takes codes, not the features of a painting")
            self.codes = [style.split(stylizer.norms) for style in styles if isinstance(style, StyleCode)]
            styles = [code[self.bottleneck] for code in self.codes]
            if strength is None and [(layer.alpha, layer.mask) for layer in layers] == [(1, None)]:
                styles = [unshifted(code[self.bottleneck]) for code in self.codes]
        self.settled = {self.bottleneck: [_transform(style, content, matching, self.eps) for style in styles]}

    @property
    def open(self) -> list[str]:
        """The norms whose moments are not known yet, in network order."""
        return [name for name in self.inside if name not in self.settled]

    def settle(self, name: str, found: Moments) -> None:
        """These are the moments of the whole input of the norm ``name``."""
        found = Moments(found.count, found.mean.float(), found.var.float())
        self.settled[name] = [_transform(code[name], Content(found), Matching(), self.eps) for code in self.codes]

    def decoded(
        self,
        x: Tensor,
        w: Window,
        shares: Sequence[float | Tensor],
        skips: Skips,
        until: str | None = None,
        after: str | None = None,
    ) -> Tensor:
        """A window through the norms and the decoder, up to the input of the norm ``until``.

        Args:
            x: its features, or the input of the norm ``after``.
            skips: its features at the layers that come in between.
        """

        def norm(name: str, y: Tensor) -> Tensor:
            if name not in self.settled:
                assert w.size == self.cells, "moments of a part are not those of the whole"
                self.settle(name, *_moments(y, self.weights(w, self.strides[name], y)))
            return _blended(y, w, self.settled[name], shares, self.strides[name])

        if after is None:
            x = _blended(x, w, self.settled[self.bottleneck], shares, 8)
        result: Tensor = self.decoder(x, norm if self.inside else None, until, after, skips)
        return result


class _Passes:
    """The decoder over a photo, window by window: for its moments at each norm in turn, and for the result.

    Args:
        norms: of the request.
        seen_of: the features of a window at some layers of the encoder, by their names.
        shares_of: how much there is of each layer, over the pixels of a window.
    """

    def __init__(
        self,
        stylizer: Stylizer,
        norms: _Norms,
        plan: Plan,
        picture: Picture,
        seen_of: Callable[[Window, Sequence[str]], dict[str, Tensor]],
        shares_of: Callable[[Window], list[float | Tensor]],
    ) -> None:
        self.stylizer = stylizer
        self.strides = stylizer.decoder.strides
        self.norms = norms
        self.plan = plan
        self.size = picture.size
        self.cells = cells_of(picture.size)
        self.seen_of = seen_of
        self.shares_of = shares_of
        self.kept: _Kept | None = None
        """The last output that there was room for, before its norm."""
        self.after: str | None = None
        """The layer that it is of."""

    def finer(self, w: Window, name: str | None) -> Window:
        """A window of features in units of a layer's output; in pixels for None."""
        factor = 8 if name is None else 8 // self.strides[name]
        return w.scaled(factor, (factor * self.cells[0], factor * self.cells[1]))

    def decoded(self, w: Window, until: str | None = None) -> Tensor:
        """A window through the norms and the decoder, to the input of the norm ``until``; to a picture without one."""
        after = self.after
        outer = w.grown(halo_of(self.stylizer.decoder.radius_between(after, until)), self.cells)
        layers = self.stylizer.decoder.skips_between(after, until)
        if self.kept is None:
            last = self.stylizer.encoder.last
            seen = self.seen_of(outer, [*layers, last])
            x = seen.pop(last)
        else:
            seen = self.seen_of(outer, layers)
            x = self.kept.output[self.finer(outer, after).index]
        y = self.norms.decoded(x, outer, self.shares_of(outer), seen, until, after)
        if self.kept is not None:
            self.kept.forget()
        return y[self.finer(w.within(outer), until).index]

    def settle(self, name: str, tile: tuple[int, int], note: Note, done: Callable[[Window], None]) -> None:
        """One pass for the moments of the input of a norm in the decoder, which is kept if there is room."""
        parts: list[Moments] = []
        whole = self.room_for(name)

        def measure(w: Window) -> None:
            y = self.decoded(w, name)
            if whole is not None:
                whole.output[self.finer(w, name).index] = y
                whole.forget()
            parts.extend(_moments(y, self.norms.weights(w, self.strides[name], y)))

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
    """Room for (C, H, W) of a photo; None where others have filled the disk since the work was planned."""
    if not on_disk:
        empty = torch.empty((1, *shape), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
        return _Kept(empty)
    try:
        array = scratch_array((*shape[1:], shape[0]), like.dtype)
    except OSError:
        return None
    return _Kept(array.tensor, array.forget, on_disk=True)


Progress = Callable[[float], None]
"""Told the share of the work that is done, from 0 to 1."""

Transform = Callable[[Tensor, Window], Tensor]


def _transform(style: StyleCode | Tensor, content: Content, matching: Matching, eps: float) -> Transform:
    """The features of a window with a style."""
    if matching.kind == "moments":
        if not isinstance(style, StyleCode):
            style = code_from_moments(moments(style), eps)
        own = pool_moments(content.moments, matching.over, matching.num_groups)
        as_moments = Moments(1, style.beta, style.gamma.square())  # the variance of a code has its eps inside
        pooled = pool_moments(as_moments, matching.over, matching.num_groups)
        gamma, beta = (t.to(own.mean.device) for t in (pooled.var.sqrt(), pooled.mean))
        return lambda x, w: normalize(x, own, gamma, beta, eps)
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
    matrix = wct_matrix(content.covariance, covariance).float()
    mean, target = content.moments.mean.flatten(2), target.float()
    return lambda x, w: (matrix @ (x.float().flatten(2) - mean) + target).view(x.shape).to(x.dtype)


def _blended(
    x: Tensor, w: Window, transforms: Sequence[Transform], shares: Sequence[float | Tensor], stride: int
) -> Tensor:
    """f + Σ w_k (T_k(f) - f), in float32 where more than one style takes part.

    Args:
        w: where ``x`` lies.
        shares: w_k over the pixels of the window.
        stride: how many pixels apart the elements of ``x`` are.
    """
    if len(transforms) == 1 and _everywhere(shares[0], 1):
        return transforms[0](x, w)
    total = x.float()
    for transform, share in zip(transforms, shares, strict=True):
        if isinstance(share, Tensor):
            share = _pooled(share, stride, x.shape[-2:]).to(x.device)  # noqa: PLW2901
        if not _everywhere(share, 0):
            total = total + share * (transform(x, w).float() - x.float())
    return total.to(x.dtype)


def _pooled(share: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Means of ``stride`` x ``stride`` pixels; the layers of a photo reach over its edge to a multiple of 8."""
    if stride > 1:
        share = F.avg_pool2d(share, stride, ceil_mode=True, count_include_pad=False)
    beyond = (0, size[1] - share.shape[-1], 0, size[0] - share.shape[-2])
    return F.pad(share, beyond, mode="replicate") if any(beyond) else share


def _everywhere(share: float | Tensor, value: float) -> bool:
    return bool((share == value).all()) if isinstance(share, Tensor) else share == value


def brightness(rgb: Tensor) -> Tensor:
    """Luma of Rec. 601, (N, 1, H, W)."""
    r, g, b = rgb.unbind(1)
    return (0.299 * r + 0.587 * g + 0.114 * b).unsqueeze(1)


def _encode(stylizer: Stylizer, picture: Picture, w: Window, layers: Sequence[str]) -> dict[str, Tensor]:
    """The features of a window at these layers, as they are in those of the whole photo."""
    if not layers:
        return {}
    encoder = stylizer.encoder
    cells = cells_of(picture.size)
    outer = w.grown(halo_of(max(map(encoder.radius_of, layers))), cells)
    device = next(stylizer.parameters()).device
    crop = unit(picture.pixels[outer.scaled(8, picture.size).index].to(device))  # a quarter of the bytes to bring there
    features = encoder.features(crop.contiguous(memory_format=torch.channels_last), layers)
    found = zip(sorted(layers), features, strict=True)  # in network order
    return {name: f[_at(stylizer, name, w.within(outer), outer.size).index] for name, f in found}


def _at(stylizer: Stylizer, layer: str, w: Window, cells: tuple[int, int]) -> Window:
    """A window of features in units of a layer of the encoder, of so many features in all."""
    factor = 8 // stylizer.encoder.stride_of(layer)
    return w.scaled(factor, (factor * cells[0], factor * cells[1]))
