"""Algebra on codes: what a user's controls mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from styleapp.errors import OptionError

__all__ = ["normalized"]


def normalized(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1.

    Raises:
        OptionError: for a negative weight, one that is no number, or if all are 0.
    """
    if any(not math.isfinite(w) or w < 0 for w in weights) or sum(weights) <= 0:
        raise OptionError(f"weights must be 0 or more, at least one above 0, got {', '.join(map(str, weights))}")
    return [w / sum(weights) for w in weights]
