"""The decoder: relu4_1 back to an image."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from styleapp.kernels import Border
from styleapp.models.int8 import add_int8_conv2d, int8_conv2d
from styleapp.models.layers import (
    UPSAMPLINGS,
    ReflectConv2d,
    Ringed,
    add_conv2d,
    convolves,
    extended,
    relu_ringed,
    takes_ring,
)
from styleapp.models.vgg import STYLE_LAYERS
from styleapp.norms import BatchNorm, make_norm

__all__ = ["DETAIL", "Decoder", "LayerNorms", "Skips", "decoder_channels"]

DETAIL = "relu2_1"
"""The layer of the encoder that fine texture of the photo comes in from: fur, leaves, brickwork."""

LayerNorms = Callable[[str, Tensor], Tensor]
"""What is done to the output of a named layer, such as normalising it."""

Skips = Mapping[str, Tensor]
"""Features of the photo at layers of the encoder, by their names; or the whole numbers, uint8, that stand for them."""


def decoder_channels(in_channels: int = 512, width: float = 1.0) -> list[tuple[str, int, int]]:
    """(name, input, output) channels of each convolution, and ("up", 0, 0) where the size doubles.

    The mirror of the encoder (Huang and Belongie 2017, section 6). ``width`` scales what lies between
    the ends: 1.0 is the paper's 256, 128 and 64 channels, 0.5 has half of each.
    """
    third, second, first = (max(1, round(width * c * in_channels / 512)) for c in (256, 128, 64))
    return [
        ("conv4_1", in_channels, third),
        ("up", 0, 0),
        ("conv3_4", third, third),
        ("conv3_3", third, third),
        ("conv3_2", third, third),
        ("conv3_1", third, second),
        ("up", 0, 0),
        ("conv2_2", second, second),
        ("conv2_1", second, first),
        ("up", 0, 0),
        ("conv1_2", first, first),
        ("conv1_1", first, 3),
    ]


class Decoder(nn.Module):
    """Mirror of the encoder: reflection-padded 3x3 convolutions, three times after upsampling, no norm of its own.

    Normalisation layers in an AdaIN decoder make it worse, as they undo what AdaIN did (Huang and Belongie
    2017, section 7.1); norms that put a style in, as CIN does after every convolution (Dumoulin et al. 2017),
    come from outside. Upsampling before a convolution leaves no checkerboard (Odena et al. 2016). Nearest is the
    paper's; but what is blocks of 2x2 for a filter has edges where there are none, and a norm that is to make much of
    little makes dots and combs of them on the grid of the features. Bilinear has none.

    Args:
        in_channels: channels of the encoder's last layer.
        width: share of the paper's channels, see :func:`decoder_channels`.
        norm: a norm of :mod:`styleapp.norms` after each hidden convolution, by its name in the factory; "none" for
            none. Only for comparisons: the paper's figure 4 shows that it does harm.
        upsampling: "nearest" or "bilinear".
        skips: channels of each layer of the encoder that the decoder sees besides (relu1_1 to relu3_1), by its name.
            They come in through a 1x1 convolution at the first convolution of the same size. What lies in 8x8 pixels
            of relu4_1 is forgotten, and a decoder that knows only that must invent all fine detail (Ronneberger,
            Fischer and Brox 2015).

    Raises:
        ValueError: if there is no such upsampling, or no place for one of ``skips``.

    Shape:
        (N, in_channels, h, w) with h, w >= 2 to (N, 3, 8h, 8w): RGB, around [0,1] but not clamped.
    """

    def __init__(
        self,
        in_channels: int = 512,
        width: float = 1.0,
        norm: str = "none",
        upsampling: str = "nearest",
        skips: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        if upsampling not in UPSAMPLINGS:
            raise ValueError(f"upsampling must be one of {', '.join(UPSAMPLINGS)}, got {upsampling!r}")
        self.upsampling = upsampling
        self.in_channels = in_channels
        self.width = width
        self.names: list[str] = []
        for name, channels, out in decoder_channels(in_channels, width):
            self.names.append(name)
            if name != "up":
                self.add_module(name, ReflectConv2d(channels, out))
        self.skips: dict[str, str] = {}
        """The layer of the encoder that comes in at each convolution where one does."""
        for layer, channels in (skips or {}).items():
            if layer not in STYLE_LAYERS[:-1]:
                raise ValueError(f"skips must be of {', '.join(STYLE_LAYERS[:-1])}, got {layer!r}")
            block = layer.replace("relu", "conv").removesuffix("1")
            place = next(name for name in self.hidden if name.startswith(block))
            self.skips[place] = layer
            self.add_module(f"skip_{layer}", nn.Conv2d(channels, self.hidden[place], 1, bias=False))
        self.int8_skips: dict[str, tuple[Tensor, Tensor]] = {}
        """Kernel and step of :func:`int8_conv2d` in place of these convolutions, for whole numbers."""
        self.own_norms: nn.ModuleDict | None = None
        if norm != "none":
            self.own_norms = nn.ModuleDict({name: make_norm(norm, c) for name, c in self.hidden.items()})

    @property
    def is_local(self) -> bool:
        """Whether a picture can be made in parts: no norm of its own looks at all of it."""
        return self.own_norms is None or all(isinstance(n, BatchNorm) for n in self.own_norms.values())

    @property
    def radius(self) -> int:
        """How many pixels beside its own 8x8 a feature has a part in: Σ over 3x3 convolutions of their stride."""
        return self.radius_between(None, None)

    def radius_between(self, after: str | None, until: str | None) -> int:
        """The same of an element of the output of the convolution ``after``, in that of ``until``.

        A feature and the picture for None. Behind bilinear upsampling it is the stride before it that counts: even and
        odd places see both neighbours.
        """
        strides, radius, upsampled = self.strides, 0, False
        for name in self._between(after, until):
            if name != "up":
                radius += strides[name] * (2 if upsampled and self.upsampling == "bilinear" else 1)
            upsampled = name == "up"
        return radius

    @property
    def strides(self) -> dict[str, int]:
        """How many pixels lie beside one another for each convolution's output, by its name."""
        stride = 2 ** self.names.count("up")
        strides = {}
        for name in self.names:
            if name == "up":
                stride //= 2
            else:
                strides[name] = stride
        return strides

    @property
    def hidden(self) -> dict[str, int]:
        """Channels of each convolution but the last, by its name: where a norm may be."""
        return {n: c for n, _, c in decoder_channels(self.in_channels, self.width)[:-1] if n != "up"}

    def with_detail(self, detail: float) -> Decoder:
        """One that sees the photo's fine texture times ``detail``; what is not scaled is shared with this.

        Raises:
            ValueError: if this one does not see :data:`DETAIL`.
        """
        if DETAIL not in self.skips.values():
            raise ValueError(f"this decoder does not see {DETAIL} of the photo")
        name = f"skip_{DETAIL}"
        scaled, other = copy.copy(self.get_submodule(name)), copy.copy(self)
        weight = nn.Parameter(self.get_parameter(f"{name}.weight").detach() * detail, requires_grad=False)
        scaled._parameters = scaled._parameters | {"weight": weight}
        other._modules = other._modules | {name: scaled}
        if DETAIL in self.int8_skips:
            kernel, step = self.int8_skips[DETAIL]
            other.int8_skips = self.int8_skips | {DETAIL: (kernel, step * detail)}
        return other

    def skips_between(self, after: str | None, until: str | None) -> list[str]:
        """The layers of the encoder that come in behind the convolution ``after``, at ``until`` at the latest."""
        return [self.skips[name] for name in self._between(after, until) if name in self.skips]

    def ends_between(self, after: str | None, until: str | None) -> list[str]:
        """The convolutions behind ``after`` and before ``until`` whose output is then upsampled."""
        return [name for name, following in itertools.pairwise(self._between(after, until)) if following == "up"]

    def _between(self, after: str | None, until: str | None) -> list[str]:
        first = 0 if after is None else self.names.index(after) + 1
        return self.names[first:] if until is None else self.names[first : self.names.index(until) + 1]

    def forward(
        self,
        x: Tensor,
        norms: LayerNorms | None = None,
        until: str | None = None,
        after: str | None = None,
        skips: Skips | None = None,
        shifts: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Features to a picture, in the dtype of the weights.

        Args:
            x: features, or the output of the convolution ``after``.
            norms: given the name and the output of each hidden convolution, what takes its place.
            until: stop at the output of this convolution, before its norm.
            after: go on behind this convolution, with its norm; ``x`` is not changed.
            skips: of :meth:`skips_between` at least; of the N photos of ``x``, or of fewer of which ``x`` has several
                versions, one block of photos after another.
            shifts: added to the output of hidden convolutions, by their names: (1 or N, C, 1, 1), or maps of its size.
                One that is the same everywhere goes into the bias and costs nothing.
        """
        x = x.to(next(self.parameters()).dtype)
        names = self.names
        own = self.upsampling == "bilinear" and convolves(self.children(), x)
        rings = own or takes_ring(x)

        def followed(name: str) -> str | None:
            """How the next convolution upsamples first."""
            return self.upsampling if self.names[self.names.index(name) + 1] == "up" else None

        def border(name: str) -> Border:
            return "reflect" if followed(name) is None else "replicate"

        def relu(name: str, x: Tensor) -> Tensor | Ringed:
            y = self._normed(name, x, norms)
            return relu_ringed(y, followed(name)) if rings else F.relu(y)  # in place takes longer on what is new

        found: Tensor | Ringed = x
        if after is not None:
            names = names[names.index(after) + 1 :]
            found = relu(after, x)
        plain = norms is None and self.own_norms is None
        shifts = shifts or {}
        upsampling = None
        for name in names:
            if name == "up":
                upsampling = self.upsampling
                continue
            last = name in (until, self.names[-1])
            shift = shifts.get(name)
            even = shift is None or shift[:, :1].numel() == 1
            seen = self.skips.get(name)
            at_once = plain and even and not last and seen is None
            ring = border(name) if own and at_once else None
            more = shift.flatten() if even and shift is not None else None
            x = self.get_submodule(name)(found, upsampling=upsampling, relu=at_once, ring=ring, shift=more)
            upsampling = None
            if not even:
                x = x + shifts[name].to(x.dtype)
            if seen is not None:
                at_once = plain and not last and not own and not torch.is_grad_enabled()
                x = self.with_skip(x, seen, skips or {}, relu=at_once)
            if last:
                break
            found = x if at_once else relu(name, x)
        return x

    def with_skip(self, x: Tensor, layer: str, skips: Skips, relu: bool = False) -> Tensor:
        """``x``, which may be changed, and what comes in from a layer of the encoder; their ReLU, where one follows."""
        if layer not in skips:
            raise ValueError(f"this decoder sees {', '.join(self.skips.values())} of the photo too: {layer} is missing")
        features = skips[layer]
        beyond = x.shape[3] - features.shape[3], x.shape[2] - features.shape[2]  # features reach to a multiple of 8
        exporting, whole = torch.compiler.is_exporting(), features.dtype == torch.uint8
        if not exporting and any(beyond):
            features = extended(features, *reversed(beyond))
        if whole:
            features = features.contiguous(memory_format=torch.channels_last)
        alike = x.shape[0] == features.shape[0]  # len would be one number, where a graph is for any
        if whole and alike:
            x = add_int8_conv2d(x, features, *self.int8_skips[layer])
        elif alike and not exporting:
            return add_conv2d(x, features.to(x.dtype), self.get_parameter(f"skip_{layer}.weight"), relu)
        else:
            if whole:
                y = int8_conv2d(features, *self.int8_skips[layer], None, x.dtype, "none")
            else:
                y = self.get_submodule(f"skip_{layer}")(features.to(x.dtype))
            if exporting:  # a graph is for any size
                y = F.pad(y, (0, beyond[0], 0, beyond[1]), mode="replicate")
            x += y if alike else y.repeat(x.shape[0] // y.shape[0], 1, 1, 1)
        return F.relu_(x) if relu else x

    def _normed(self, name: str, x: Tensor, norms: LayerNorms | None) -> Tensor:
        if self.own_norms is not None:
            x = self.own_norms[name](x)
        return x if norms is None else norms(name, x)
