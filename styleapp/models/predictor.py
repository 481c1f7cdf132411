"""What the statistics of a painting say of its code, beyond what is measured (Ghiasi et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from styleapp.models.stylizer import StyleCode

__all__ = ["CodePredictor", "ShiftPredictor"]

PROBE_SIZE = 192
"""Sides of the photo that codes of a conditional network are tried on, in pixels."""

PROBES = (2, 3, 224, 224)
"""Shape of the photos that what an AdaIN decoder is told is refined on."""


class CodePredictor(nn.Module):
    """Corrects measured codes of a conditional network as learning would change them, at once.

        s = (log σ, log(μ + 0.01)) at relu1_1 to relu4_1
        z = s of the painting, standardised over paintings and cut at ±4
        (a, b) = W₂ gelu(W₁ z + b₁) + b₂
        e = (s of what the network makes of a probe with this code) - (s of the painting), in the units of z, cut at ±4
        (a, b) += V₂ gelu(V₁ (z, e) + c₁)
        γ = γ' · exp(3 tanh(a / 3)),   β = β' + γ' · 3 tanh(b / 3)

    with (γ', β') as measured: a style prediction network (Ghiasi et al. 2017, section 3) that looks at what the style
    loss compares and starts from the measured code, which W₂ = V₂ = 0 leaves as it is. What a code gets wrong is much
    the same for all photos, so it is tried on one, the probe, and what shows there is corrected (iterative amortised
    inference, Marino et al. 2018). The bounds are for pictures that no training saw, a sheet of one colour for example.

    Args:
        seen: channels of relu1_1 to relu4_1 together.
        channels: of the codes.
        hidden: units between.

    Attributes:
        probe: (1, 3, H, W), a photo in [0,1]; kept with the weights, because they were trained with it.
    """

    mean: Tensor
    scale: Tensor
    probe: Tensor

    def __init__(self, seen: int, channels: int, hidden: int = 256) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * seen))
        self.register_buffer("scale", torch.ones(2 * seen))
        self.register_buffer("probe", torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
        self.first = nn.Linear(2 * seen, hidden)
        self.last = nn.Linear(hidden, 2 * channels)
        self.look = nn.Linear(4 * seen, hidden)
        self.correct = nn.Linear(hidden, 2 * channels, bias=False)
        for layer in (self.last, self.correct):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.last.bias)

    def standardize(self, seen: StyleCode) -> None:
        """Take mean and standard deviation of these paintings, N >= 2, for those of all."""
        _standardize(self.mean, self.scale, seen)

    def forward(self, seen: StyleCode, measured: StyleCode, tried: Callable[[StyleCode], StyleCode]) -> StyleCode:
        """The corrected codes, (N, C, 1, 1).

        Args:
            seen: joined codes of relu1_1 to relu4_1 of the paintings.
            measured: their codes.
            tried: joined codes of relu1_1 to relu4_1 of the probe in each of N codes. No gradient passes through it.
        """
        wanted = _logarithms(seen)
        z = ((wanted - self.mean) / self.scale).clamp(-4, 4)
        change = self.last(F.gelu(self.first(z)))
        with torch.no_grad():
            found = _logarithms(tried(_changed(measured, change)))
            error = ((found - wanted) / self.scale).clamp(-4, 4)
        change = change + self.correct(F.gelu(self.look(torch.cat([z, error], 1))))
        return _changed(measured, change)


class ShiftPredictor(nn.Module):
    """Tells an AdaIN decoder how light, how colourful and how rough a painting is, in words of its own convolutions.

        s = (log σ, log(μ + 0.01)) at relu1_1 to relu3_1
        β = W z,  z = s of the painting, standardised over paintings and cut at ±1

    β is added to the output of each hidden convolution of the decoder (FiLM, Perez et al. 2018, without its scale). A
    decoder that gets features with the painting's moments at relu4_1 has to guess those of the layers above, which the
    style loss compares too, and where it guesses the mean of many paintings, palettes turn grey. W begins as 0, and
    then nothing is told.

    Args:
        seen: channels of relu1_1 to relu3_1 together.
        channels: of the hidden convolutions together.

    Attributes:
        probes: of shape :data:`PROBES`, photos in [0,1] that β of a painting is refined on. Two, because what suits
            the moments of one photo is not yet what suits photos; on more of them it became no better.
    """

    mean: Tensor
    scale: Tensor
    probes: Tensor

    def __init__(self, seen: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * seen))
        self.register_buffer("scale", torch.ones(2 * seen))
        self.register_buffer("probes", torch.zeros(PROBES))
        self.last = nn.Linear(2 * seen, channels, bias=False)
        nn.init.zeros_(self.last.weight)

    def standardize(self, seen: StyleCode) -> None:
        """Take mean and standard deviation of these paintings, N >= 2, for those of all."""
        _standardize(self.mean, self.scale, seen)

    def forward(self, seen: StyleCode) -> Tensor:
        """Joined codes of relu1_1 to relu3_1 of N paintings to β for the convolutions, (N, C, 1, 1)."""
        z = ((_logarithms(seen) - self.mean) / self.scale).clamp(-1, 1)
        shifts: Tensor = self.last(z)[:, :, None, None]
        return shifts


def _logarithms(seen: StyleCode) -> Tensor:
    """(N, 2 · seen) of the joined codes of some layers."""
    return torch.cat([seen.gamma.log(), (seen.beta + 0.01).log()], 1).flatten(1)


def _standardize(mean: Tensor, scale: Tensor, seen: StyleCode) -> None:
    z = _logarithms(seen)
    mean.copy_(z.mean(0))
    scale.copy_(z.std(0) + 0.1)


def _changed(measured: StyleCode, change: Tensor) -> StyleCode:
    a, b = (3 * torch.tanh(change[:, :, None, None] / 3)).chunk(2, 1)
    return type(measured)(measured.gamma * a.exp(), measured.beta + measured.gamma * b)
