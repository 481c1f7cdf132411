"""Encoder, norm and decoder as one network, and the style code that goes through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from styleapp.models.decoder import Decoder, Skips
from styleapp.models.int8 import Int8Encoder, scaled
from styleapp.models.int8_decoder import Int8Decoder
from styleapp.models.predictor import CodePredictor, ShiftPredictor
from styleapp.models.refine import refined
from styleapp.models.vgg import STYLE_LAYERS, Encoder, by_layer
from styleapp.norms import EPS, Moments, moments, normalize, weighted_moments

__all__ = ["StyleCode", "Stylizer", "code_from_moments", "unshifted"]


REFINEMENT = {"lr": 0.115, "style_weight": 2.0, "damping": 6.0}
"""How codes of a conditional network are refined.

The best of a few tried: more style weight costs content, less damping lets bfloat16 find another code. Codes are kept
on disk by the version of StyleApp: change these only with it.
"""

TOLD_REFINEMENT = {"lr": 0.035, "style_weight": 10.0, "damping": 1.5, "grid_weight": 60.0}
"""The same of what an AdaIN decoder is told; with more of the probes' style loss to gain, it would draw meshes."""

CODE_STEPS, TOLD_STEPS, FAR_STEPS = 16, 24, 60
"""Of each, unless so many are asked for; and of what an AdaIN decoder is told of a painting whose style loss is above
:data:`FAR` as predicted. With more steps only such ones get nearer."""

FAR = 0.5

KEPT_DECODERS = 8
"""For how many codes a decoder in integers is kept; each takes about 4 MB."""


@dataclass(frozen=True)
class StyleCode:
    """What a style is to the network: (γ, β), to be put in the place of the content's own.

    A network with several norms takes one long code: the channels of its norms one after the other, see
    :meth:`split`. So the algebra of codes is the same for all networks.

    Attributes:
        gamma, beta: float32, (N or 1, C, 1, 1), or (N or 1, C, H, W) for a code that varies over the image.
    """

    gamma: Tensor
    beta: Tensor

    @property
    def num_channels(self) -> int:
        """C."""
        return self.gamma.shape[1]

    def lerp(self, other: StyleCode, weight: float | Tensor) -> StyleCode:
        """(1 - weight) · self + weight · other; exactly ``self`` at 0 and ``other`` at 1."""
        if isinstance(weight, Tensor):
            keep = 1 - weight
            return StyleCode(self.gamma * keep + other.gamma * weight, self.beta * keep + other.beta * weight)
        return StyleCode.mix([self, other], [1 - weight, weight])

    def each(self) -> list[StyleCode]:
        """The N codes, one by one."""
        return [StyleCode(gamma, beta) for gamma, beta in zip(self.gamma.split(1), self.beta.split(1), strict=True)]

    def to(self, device: torch.device | str) -> StyleCode:
        """The same code on another device."""
        return StyleCode(self.gamma.to(device), self.beta.to(device))

    def split(self, channels: Mapping[str, int]) -> dict[str, StyleCode]:
        """The parts for norms of so many channels, by their names.

        Raises:
            ValueError: if they have more or fewer channels in all.
        """
        sizes = list(channels.values())
        if sum(sizes) != self.num_channels:
            raise ValueError(f"a code of {self.num_channels} channels for norms of {sum(sizes)}")
        parts = zip(self.gamma.split(sizes, 1), self.beta.split(sizes, 1), strict=True)
        return {name: StyleCode(*part) for name, part in zip(channels, parts, strict=True)}

    @staticmethod
    def join(codes: Sequence[StyleCode]) -> StyleCode:
        """One code of the codes of several norms, in the order of the network."""
        return StyleCode(torch.cat([c.gamma for c in codes], 1), torch.cat([c.beta for c in codes], 1))

    @staticmethod
    def mix(codes: Sequence[StyleCode], weights: Sequence[float]) -> StyleCode:
        """Σ wᵢ · codeᵢ (Huang and Belongie 2017, eq. 15). Codes of weight 0 do not take part at all.

        Raises:
            ValueError: if lengths differ or every weight is 0.
        """
        if len(codes) != len(weights):
            raise ValueError(f"{len(codes)} codes but {len(weights)} weights")
        terms = [(code, w) for code, w in zip(codes, weights, strict=True) if w != 0]
        if not terms:
            raise ValueError("at least one weight must differ from 0")
        if len(terms) == 1 and terms[0][1] == 1:
            return terms[0][0]
        gamma, beta = ([w * getattr(code, name) for code, w in terms] for name in ("gamma", "beta"))
        return StyleCode(sum(gamma[1:], gamma[0]), sum(beta[1:], beta[0]))


def code_from_moments(m: Moments, eps: float = EPS) -> StyleCode:
    """γ = sqrt(σ² + ε), β = μ: normalising with ``m`` and applying this code is the identity."""
    return StyleCode(m.std(eps), m.mean)


def unshifted(code: StyleCode) -> StyleCode:
    """The code with β = 0: for a norm with nothing but a convolution between it and the next norm, at full strength.

    What β adds is the same at every place, and the next norm takes it away again. Left out, there is less to round:
    in bfloat16 a convolution's output is the nearer to the next norm's result the smaller its mean.
    """
    return StyleCode(code.gamma, torch.zeros_like(code.beta))


class Stylizer(nn.Module):
    """photo → encoder → norm(code) → decoder → stylized photo (Huang and Belongie 2017, section 5).

    With ``conditional`` there is a norm after each hidden convolution of the decoder too: the network of conditional
    instance norm (Dumoulin et al. 2017), whose codes are learned, and of instance norm where there is only one. Where
    its decoder sees the photo at further layers (``decoder.skips``), what takes features takes these ``skips`` too.
    In a network of AdaIN each of these layers goes through an AdaIN of its own (Sheng et al. 2018): a code then has,
    behind γ and β at relu4_1, those at these layers. With ``shifts`` the decoder is told more of the painting: last
    in a code comes, for each hidden convolution of the decoder, a β that is added to its output, and a γ of 0: nothing
    is scaled there.

    Holds nothing that depends on a request, but what was made of the last codes (:meth:`int8_decoder`). Images are RGB
    in [0,1], (N, 3, H, W), H and W >= 16.

    Attributes:
        int8: the encoder in integers, for photos; None where they too go through ``encoder``. See :meth:`use_int8`.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        eps: float = EPS,
        *,
        conditional: bool = False,
        predictor: CodePredictor | None = None,
        shifts: ShiftPredictor | None = None,
    ) -> None:
        super().__init__()
        if encoder.num_channels != decoder.in_channels:
            raise ValueError(
                f"the encoder gives {encoder.num_channels} channels, the decoder takes {decoder.in_channels}"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.eps = eps
        self.conditional = conditional
        self.predictor = predictor
        self.shifts = shifts
        self.int8: Int8Encoder | None = None
        self._int8_decoders: dict[bytes, Int8Decoder] = {}

    @property
    def norms(self) -> dict[str, int]:
        """The channels of each norm, by the name of the layer whose output it takes, in network order."""
        bottleneck = {self.encoder.last: self.encoder.num_channels}
        return bottleneck | self.decoder.hidden if self.conditional else bottleneck

    @property
    def besides(self) -> dict[str, int]:
        """The channels of each further layer of the encoder that is normalised for the decoder, by its name."""
        seen = () if self.conditional else self.decoder.skips.values()
        return {name: channels for name, channels in self.encoder.layer_channels.items() if name in seen}

    @property
    def parts(self) -> dict[str, int]:
        """The channels of each part of a code, by the name of its layer: of each norm, and what the decoder is told."""
        return self.norms | self.besides | ({} if self.shifts is None else self.decoder.hidden)

    @property
    def code_channels(self) -> int:
        """Channels of a code of this network: of all its parts together."""
        return sum(self.parts.values())

    def takes(self, code: StyleCode) -> bool:
        """Whether it is a code of such a network: of so many channels, and with norms behind the first or without."""
        told = 0 if self.conditional else sum(self.besides.values())
        scaled = bool(code.gamma[:, self.encoder.num_channels + told :].any())
        return code.num_channels == self.code_channels and scaled == self.conditional

    @property
    def min_size(self) -> int:
        """The shortest side that reflection padding can handle at the deepest layer."""
        return int(2 * self.encoder.scale)

    def measure(
        self,
        image: Tensor,
        weight: Tensor | None = None,
        refine: int | None = 0,
        refining: Callable[[], None] = lambda: None,
    ) -> StyleCode:
        """The code of a painting: standard deviation and mean at each norm, (N, C, 1, 1).

        Args:
            image: (N, 3, H, W).
            weight: (1, 1, H, W), what each pixel counts; None where all count alike.
            refine: steps of :func:`styleapp.models.refine.refined` on :attr:`probes`, see :meth:`steps`.
            refining: called after each of them; what it raises ends the work.

        At the norms inside the decoder, of what the decoder makes of the painting itself: with this code every
        norm is the identity on the painting. A predictor, where there is one, changes it as learning would.
        """
        if self.predictor is None and self.shifts is None and not self.besides:
            features, skips = self.encode(image)
            return self.measured(features, weight, skips)
        layers = self.encoder.features(image)
        seen = [self.code_of(f, weight) for f in layers]
        if self.predictor is None:
            return self.predicted(seen, refine, refining)
        code = self.measured(layers[-1], weight, by_layer(layers))
        found: StyleCode = self.predictor(StyleCode.join(seen), code, self.tried)
        return self._refined(found, seen, refine, refining)

    def predicted(
        self, seen: Sequence[StyleCode], refine: int | None = 0, refining: Callable[[], None] = lambda: None
    ) -> StyleCode:
        """As :meth:`measure`, of a network of AdaIN, for a painting with these codes at relu1_1 to relu4_1."""
        found = [seen[-1], *(code for name, code in zip(STYLE_LAYERS, seen, strict=True) if name in self.besides)]
        if self.shifts is not None:
            beta = self.shifts(StyleCode.join(seen[:-1]))
            found.append(StyleCode(torch.zeros_like(beta), beta))
        return self._refined(StyleCode.join(found), seen, refine, refining)

    @property
    def probes(self) -> Tensor | None:
        """The photos that codes of paintings are refined on, (P, 3, H, W); None where they are not."""
        if self.predictor is not None:
            return self.predictor.probe
        return None if self.shifts is None else self.shifts.probes

    def steps(self, refine: int | None) -> int:
        """How many steps codes are refined by at most, for so many asked for; None for as many as they gain by."""
        if self.probes is None:
            return 0
        return refine if refine is not None else CODE_STEPS if self.conditional else FAR_STEPS

    def _refined(
        self, code: StyleCode, seen: Sequence[StyleCode], refine: int | None, refining: Callable[[], None]
    ) -> StyleCode:
        count, probes = self.steps(refine), self.probes
        if not count or probes is None:
            return code
        options = REFINEMENT if self.conditional else TOLD_REFINEMENT
        own = refine is None and not self.conditional  # each takes as many steps as it needs
        if own and len(code.gamma) > 1:
            alone = zip(code.each(), zip(*(c.each() for c in seen), strict=True), strict=True)
            found = [self._refined(one, of_one, refine, refining) for one, of_one in alone]
            return StyleCode(torch.cat([c.gamma for c in found]), torch.cat([c.beta for c in found]))

        def needed(style: float) -> int:
            return FAR_STEPS if style > FAR else TOLD_STEPS

        def done(step: int, loss: float, code: StyleCode) -> None:
            refining()

        return refined(self, code, seen, probes.split(1), steps=needed if own else count, **options, progress=done)

    def told(self, parts: Mapping[str, StyleCode | Tensor], alpha: float | Tensor = 1.0) -> dict[str, Tensor]:
        """What the decoder's convolutions get besides, by their names, for the parts of a code: α · β, (N, C, 1, 1)."""
        if self.shifts is None:
            return {}
        hidden = {name: parts[name] for name in self.decoder.hidden}
        return {name: alpha * part.beta for name, part in hidden.items() if isinstance(part, StyleCode)}

    def encode(self, image: Tensor, *, exact: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """Features of the last layer, and those of the layers that the decoder sees besides, by their names."""
        layers = [name for name in STYLE_LAYERS if name in self.decoder.skips.values()]
        found = self.features(image, [*layers, self.encoder.last], exact=exact)
        return found[-1], dict(zip(layers, found, strict=False))

    def features(self, image: Tensor, layers: Sequence[str], *, exact: bool = True) -> list[Tensor]:
        """Features at ``layers``, in network order.

        Unless ``exact``, by :attr:`int8` where there is one: all but the last then are whole numbers, as the decoder
        takes them too.
        """
        if exact or self.int8 is None:
            return self.encoder.features(image, layers)
        return self.int8.features(image, layers, next(self.parameters()).dtype, whole=True)

    def as_floats(self, layer: str, x: Tensor) -> Tensor:
        """Features at a layer as what they are worth, where ``x`` are the whole numbers that stand for them."""
        if x.dtype != torch.uint8:
            return x
        assert self.int8 is not None
        return scaled(x, self.int8.unit(layer), None, next(self.decoder.parameters()).dtype)

    def moments_of(self, layer: str, x: Tensor, weight: Tensor | None = None) -> Moments:
        """Of features at a layer, or of what whole numbers there are worth, (N, C, 1, 1).

        Args:
            weight: what each position counts, for :func:`weighted_moments`; None where all count alike.
        """
        found = moments(x) if weight is None else weighted_moments(x, weight)
        if x.dtype != torch.uint8:
            return found
        assert self.int8 is not None
        unit = self.int8.unit(layer)
        return Moments(found.count, found.mean * unit, found.var * unit.square())

    def normalized(self, layer: str, x: Tensor, m: Moments, code: StyleCode) -> Tensor:
        """:func:`normalize` of features at a layer, or of what whole numbers there are worth."""
        if x.dtype != torch.uint8:
            return normalize(x, m, code.gamma, code.beta, self.eps)
        assert self.int8 is not None
        scale = code.gamma * (m.var + self.eps).rsqrt()
        shift = code.beta - m.mean * scale
        return scaled(x, self.int8.unit(layer) * scale, shift, next(self.decoder.parameters()).dtype)

    def use_int8(self, encoder: Int8Encoder) -> None:
        """From now on photos go through this encoder."""
        self.int8 = encoder
        weights = {layer: self.decoder.get_parameter(f"skip_{layer}.weight") for layer in self.decoder.skips.values()}
        self.decoder.int8_skips = {layer: encoder.projection(layer, weight) for layer, weight in weights.items()}

    def int8_decoder(self, code: StyleCode) -> Int8Decoder | None:
        """The decoder in integers for a code: of one style, of a network with norms inside, as :attr:`int8`.

        None where there is none, and where the weights are not in float32: with bfloat16 in hardware it is no
        quicker. What was made for the last codes is kept.
        """
        quick = self.int8 is not None and next(self.decoder.parameters()).dtype == torch.float32
        fits = self.conditional and self.decoder.upsampling == "bilinear" and code.gamma.numel() == self.code_channels
        if not quick or not fits:
            return None
        key = torch.cat([code.gamma, code.beta]).detach().numpy().tobytes()
        found = self._int8_decoders.get(key)
        if found is None:
            parts = {name: (part.gamma, part.beta) for name, part in code.split(self.norms).items()}
            found = Int8Decoder.of(self.decoder, parts, self.eps)
            if len(self._int8_decoders) >= KEPT_DECODERS:
                self._int8_decoders.clear()
            self._int8_decoders[key] = found
        return found.seen_by(self.decoder)

    def with_detail(self, detail: float) -> Stylizer:
        """One whose decoder is :meth:`Decoder.with_detail`, for the same codes."""
        decoder = self.decoder.with_detail(detail)
        other = Stylizer(self.encoder, decoder, self.eps, conditional=self.conditional, predictor=self.predictor)
        other.int8, other._int8_decoders = self.int8, self._int8_decoders
        return other.train(self.training)

    def tried(self, code: StyleCode) -> StyleCode:
        """Joined codes of relu1_1 to relu4_1 of the predictor's probe in each of N codes."""
        assert self.predictor is not None
        probe, skips = self.encode(self.predictor.probe)
        pictures = self.restyled(probe.expand(len(code.gamma), -1, -1, -1), code, skips=skips)
        return StyleCode.join([self.code_of(f) for f in self.encoder.features(pictures)])

    def measured(self, features: Tensor, weight: Tensor | None = None, skips: Skips | None = None) -> StyleCode:
        """As :meth:`measure`, of the features of a painting, without the predictor."""
        codes: list[StyleCode] = []

        def listen(name: str, x: Tensor) -> Tensor:
            codes.append(self.code_of(x, weight))
            return x

        listen("", features)
        if self.conditional:
            self.decoder(features, listen, until=self.decoder.names[-1], skips=skips)
        return StyleCode.join(codes)

    def code_of(self, x: Tensor, weight: Tensor | None = None) -> StyleCode:
        """γ and β of features: (N, C, h, w) to (N, C, 1, 1) each."""
        return code_from_moments(moments(x) if weight is None else weighted_moments(x, weight), self.eps)

    def apply_code(
        self, features: Tensor, code: StyleCode, alpha: float | Tensor = 1.0, content: Moments | None = None
    ) -> Tensor:
        """One norm: features with the moments of ``code``, or of the lerp from their own code by ``alpha``.

        The lerp of codes equals the lerp of features of section 7.3 of the paper.

        Args:
            features: (N, C, h, w).
            code: of the wanted style, at this norm.
            alpha: strength in [0,1]; a number, or a map that broadcasts against ``features``.
            content: moments of the whole photo if ``features`` are a part of it.
        """
        m = moments(features) if content is None else content
        code = code_from_moments(m, self.eps).lerp(code, alpha)
        return normalize(features, m, code.gamma, code.beta, self.eps)

    def restyled(
        self,
        features: Tensor,
        code: StyleCode,
        alpha: float | Tensor = 1.0,
        skips: Skips | None = None,
        seen: Callable[[str, Tensor], Moments] | None = None,
        *,
        exact: bool = True,
    ) -> Tensor:
        """Features through every norm and the decoder: a picture, in the dtype of the weights.

        Args:
            seen: the moments that a norm, given by its name, takes for its input; None for those that it has.
            exact: not by :meth:`int8_decoder`, which is for ``alpha`` 1.
        """
        codes = code.split(self.parts)
        first, *inside = self.norms
        full = inside and isinstance(alpha, (int, float)) and alpha == 1
        if full and not exact and self.int8 is not None:
            each = code.each()
            decoders = [found for one in each if (found := self.int8_decoder(one)) is not None]
            if len(decoders) == len(each):
                return self._in_integers(features, decoders, skips or {}, seen)
        if full:
            codes[first] = unshifted(codes[first])

        def norm(name: str, x: Tensor) -> Tensor:
            return self.apply_code(x, codes[name], alpha, None if seen is None else seen(name, x))

        x, skips = self.inputs(features, skips or {}, codes, alpha, seen)
        told = self.told(codes, alpha)
        picture: Tensor = self.decoder(x, norm if inside else None, skips=skips, shifts=told)
        return picture

    def inputs(
        self,
        features: Tensor,
        skips: Skips,
        codes: Mapping[str, StyleCode],
        alpha: float | Tensor = 1.0,
        seen: Callable[[str, Tensor], Moments] | None = None,
    ) -> tuple[Tensor, Skips]:
        """What the decoder gets of a photo: features through the norms that lie before it.

        Args:
            codes: of each of these norms at least, by its name.
            seen: as for :meth:`restyled`.
        """

        def norm(name: str, x: Tensor) -> Tensor:
            m = self.moments_of(name, x) if seen is None else seen(name, x)
            return self.normalized(name, x, m, code_from_moments(m, self.eps).lerp(codes[name], alpha))

        found = {name: norm(name, f) if name in self.besides else f for name, f in skips.items()}
        return norm(self.encoder.last, features), found

    def _in_integers(
        self,
        features: Tensor,
        decoders: Sequence[Int8Decoder],
        skips: Skips,
        seen: Callable[[str, Tensor], Moments] | None,
    ) -> Tensor:
        """:meth:`restyled` by one decoder for all photos, or one for each."""

        def decoded(decoder: Int8Decoder, x: Tensor, skips: Skips) -> Tensor:
            def norm(name: str, x: Tensor) -> Tensor:
                return decoder.normed(name, x, moments(x) if seen is None else seen(name, x))

            return decoder(norm(self.encoder.last, x), norm, skips=skips)

        if len(decoders) == 1:
            return decoded(decoders[0], features, skips)
        parts = enumerate(zip(decoders, features.split(1), strict=True))
        return torch.cat([decoded(d, x, {name: f[i : i + 1] for name, f in skips.items()}) for i, (d, x) in parts])

    def forward(
        self,
        image: Tensor,
        code: StyleCode,
        alpha: float = 1.0,
        seen: Callable[[str, Tensor], Moments] | None = None,
        *,
        exact: bool = False,
    ) -> Tensor:
        """The stylized photo, float32, not clamped, of the size of ``image``.

        y = D(norm(f, lerp(own, code, α))) + (1 - α) · (image - D(f)), with f = E(image). The second term
        is what the decoder loses of the photo, given back in proportion: α = 0 is the photo itself, as
        users expect of a strength of zero, and in between fine detail returns gradually. It costs a
        second pass of the decoder where 0 < α < 1 and nothing at α = 1, which is the paper's formula.

        With norms inside the decoder: y = (1 - α) · image + α · S, with S the picture at full strength, clamped to
        [0,1] where α < 1. See :func:`styleapp.engine.render`. ``seen`` is as for :meth:`restyled`,
        ``exact`` as for :meth:`features` and :meth:`restyled`.
        """
        features, skips = self.encode(image, exact=exact)
        if self.conditional:
            picture = self.stylized(features, code, image, 1, skips, seen, exact=exact)
            return picture if alpha == 1 else image + alpha * (picture.clamp(0, 1) - image)
        picture = self.stylized(features, code, image, alpha, skips, seen)
        if alpha < 1:
            picture = picture + (1 - alpha) * (image - self.decode(features, image, skips))
        return picture

    def stylized(
        self,
        features: Tensor,
        code: StyleCode,
        like: Tensor,
        alpha: float | Tensor = 1.0,
        skips: Skips | None = None,
        seen: Callable[[str, Tensor], Moments] | None = None,
        *,
        exact: bool = True,
    ) -> Tensor:
        """Features through every norm and the decoder, float32, of the size of ``like``."""
        return _cut(self.restyled(features, code, alpha, skips, seen, exact=exact), like)

    def decode(
        self, features: Tensor, like: Tensor, skips: Skips | None = None, shifts: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Features to a picture without any norm, float32, of the size of ``like``."""
        return _cut(self.decoder(features, skips=skips, shifts=shifts), like)


def _cut(picture: Tensor, like: Tensor) -> Tensor:
    """float32, cut to the size of ``like`` (pooling rounds sizes up)."""
    return picture[..., : like.shape[-2], : like.shape[-1]].float()
