"""A code for a painting that no table has: from the measured one, what its statistics say (Ghiasi et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from styleapp.models.stylizer import StyleCode

__all__ = ["CodePredictor"]


class CodePredictor(nn.Module):
    """Corrects measured codes of a conditional network as learning would change them, at once.

        z = (log σ, log(μ + 0.01)) at relu1_1 to relu4_1, standardised over paintings and cut at ±4
        (a, b) = 3 tanh((W₂ gelu(W₁ z + b₁) + b₂) / 3),   γ = γ' · exp(a),   β = β' + γ' · b

    with (γ', β') as measured: a style prediction network (Ghiasi et al. 2017, section 3) that looks at what the style
    loss compares and starts from the measured code, which W₂ = 0 leaves as it is. The bounds are for pictures that no
    training saw, a sheet of one colour for example.

    Args:
        seen: channels of relu1_1 to relu4_1 together.
        channels: of the codes.
        hidden: units between.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, seen: int, channels: int, hidden: int = 256) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * seen))
        self.register_buffer("scale", torch.ones(2 * seen))
        self.first = nn.Linear(2 * seen, hidden)
        self.last = nn.Linear(hidden, 2 * channels)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @staticmethod
    def logarithms(seen: StyleCode) -> Tensor:
        """(N, 2 · seen) of the joined codes of relu1_1 to relu4_1."""
        return torch.cat([seen.gamma.log(), (seen.beta + 0.01).log()], 1).flatten(1)

    def standardize(self, seen: StyleCode) -> None:
        """Take mean and standard deviation of these paintings, N >= 2, for those of all."""
        z = self.logarithms(seen)
        self.mean.copy_(z.mean(0))
        self.scale.copy_(z.std(0) + 0.1)

    def forward(self, seen: StyleCode, measured: StyleCode) -> StyleCode:
        """The corrected codes, (N, C, 1, 1), of joined codes of relu1_1 to relu4_1 and measured ones."""
        z = ((self.logarithms(seen) - self.mean) / self.scale).clamp(-4, 4)
        change = 3 * torch.tanh(self.last(F.gelu(self.first(z))) / 3)
        a, b = change[:, :, None, None].chunk(2, 1)
        return type(measured)(measured.gamma * a.exp(), measured.beta + measured.gamma * b)
