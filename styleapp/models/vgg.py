"""The encoder: VGG-19 up to relu4_1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from styleapp.kernels import Border
from styleapp.models.layers import ReflectConv2d, Ringed, convolves, max_pool2x2, pooled

__all__ = ["STYLE_LAYERS", "VGG19_TO_RELU4_1", "Encoder", "by_layer", "conv_names"]

T = TypeVar("T")

VGG19_TO_RELU4_1 = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512)
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")


def conv_names(layers: Sequence[int | str]) -> list[str]:
    """The papers' names of the convolutions of ``layers``, with "M" for each pooling: conv1_1, …, M, conv2_1, …"""
    names: list[str] = []
    block, index = 1, 0
    for layer in layers:
        if layer == "M":
            names.append("M")
            block, index = block + 1, 0
        else:
            index += 1
            names.append(f"conv{block}_{index}")
    return names


def by_layer(found: Sequence[T]) -> dict[str, T]:
    """What is found at :data:`STYLE_LAYERS`, features or their codes, by their names."""
    return dict(zip(STYLE_LAYERS, found, strict=True))


class Encoder(nn.Module):
    """VGG-19 (Simonyan and Zisserman 2015) to relu4_1, with reflection padding and ceil-mode max pooling.

    Takes RGB in [0,1]: subtracting the mean and swapping to BGR are folded into conv1_1 of the shipped
    weights, and the filters are scaled to mean activation 1 (Gatys, Ecker and Bethge 2016, section 2).

    Args:
        layers: output channels of each convolution, "M" for a 2x2 max pooling. Tests pass narrow ones.

    Shape:
        (N, 3, H, W) with H, W >= 16 to (N, C, ceil(H/8), ceil(W/8)).
    """

    def __init__(self, layers: Sequence[int | str] = VGG19_TO_RELU4_1) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.names = conv_names(layers)
        self.scale = 2 ** self.names.count("M")
        channels = 3
        for name, layer in zip(self.names, self.layers, strict=True):
            if isinstance(layer, int):
                self.add_module(name, ReflectConv2d(channels, layer))
                channels = layer
        self.num_channels = channels

    @property
    def radius(self) -> int:
        """How many pixels beside its own 8x8 a last feature sees: Σ over the 3x3 convolutions of their stride."""
        return self.radius_of(self.last)

    @property
    def last(self) -> str:
        """The name of the last layer: relu4_1."""
        return self.names[-1].replace("conv", "relu")

    def radius_of(self, layer: str) -> int:
        """The same of another layer."""
        radius, stride = 0, 1
        for name in self._until(layer):
            stride, radius = (2 * stride, radius) if name == "M" else (stride, radius + stride)
        return radius

    def stride_of(self, layer: str) -> int:
        """How many pixels lie between two features of a layer."""
        return int(2 ** self._until(layer).count("M"))

    def _until(self, layer: str) -> list[str]:
        return self.names[: self.names.index(layer.replace("relu", "conv")) + 1]

    @property
    def layer_channels(self) -> dict[str, int]:
        """Channels of the layers of the style loss (:data:`STYLE_LAYERS`)."""
        channels = {n.replace("conv", "relu"): c for n, c in zip(self.names, self.layers, strict=True)}
        return {name: int(channels[name]) for name in STYLE_LAYERS}

    def forward(self, image: Tensor) -> Tensor:
        """The features of the last layer (relu4_1)."""
        return self.features(image, [self.last])[-1]

    def features(self, image: Tensor, layers: Sequence[str] = STYLE_LAYERS) -> list[Tensor]:
        """The activations of ``layers``, in network order, by their names in the papers (``relu3_1``).

        Raises:
            ValueError: for a name that this network does not have.
        """
        known = [name.replace("conv", "relu") for name in self.names if name != "M"]
        if unknown := set(layers) - set(known):
            raise ValueError(f"unknown layers {sorted(unknown)}; choices: {', '.join(known)}")
        x: Any = image.to(next(self.parameters()).dtype)  # Ringed, between our own convolutions
        found: list[Tensor] = []
        own = convolves(self.children(), x)
        for name, following in zip(self.names, [*self.names[1:], ""], strict=True):
            if name == "M":
                x = pooled(x) if own else F.relu_(max_pool2x2(x))
                continue
            wanted = name.replace("conv", "relu") in layers
            # The ReLU comes after a pooling, where it is the same of a quarter of x, unless it is asked for.
            ends = wanted and len(found) + 1 == len(set(layers))
            ring: Border | None = "reflect" if own and following != "M" and not ends else None
            x = self.get_submodule(name)(x, relu=own or wanted or following != "M", ring=ring)
            if wanted:
                found.append(x.inner if isinstance(x, Ringed) else x)
            if len(found) == len(set(layers)):
                break
        return found
