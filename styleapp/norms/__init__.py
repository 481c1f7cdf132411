"""Normalisation layers as points of one grid: what the statistics span x where γ and β come from.

Depends on torch alone.
"""

from styleapp.norms.functional import EPS, adain, normalize
from styleapp.norms.moments import Moments, merge, moments

__all__ = ["EPS", "Moments", "adain", "merge", "moments", "normalize"]
