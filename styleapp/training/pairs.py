"""Codes of a batch in which each photo is paired with several styles, one block of photos after another."""

from __future__ import annotations

import torch
from torch import Tensor

from styleapp.models import StyleCode

__all__ = ["paired", "tiled", "where"]


def tiled(code: StyleCode, pairs: int) -> StyleCode:
    """The codes of N photos, (N·pairs, C, 1, 1): each photo's in every block."""
    return StyleCode(code.gamma.repeat(pairs, 1, 1, 1), code.beta.repeat(pairs, 1, 1, 1))


def paired(code: StyleCode, pairs: int, shift: int = 0) -> StyleCode:
    """The codes of N paintings, (N·pairs, C, 1, 1): of painting i + k + ``shift`` for photo i in block k."""

    def rolled(t: Tensor) -> Tensor:
        return torch.cat([t.roll(-k - shift, 0) for k in range(pairs)])

    return StyleCode(rolled(code.gamma), rolled(code.beta))


def where(mask: Tensor, a: StyleCode, b: StyleCode) -> StyleCode:
    """``a`` where ``mask``, (N, 1, 1, 1), is true, else ``b``."""
    return StyleCode(torch.where(mask, a.gamma, b.gamma), torch.where(mask, a.beta, b.beta))
