"""What can go wrong, in words for the person who caused it.

Every error that a user can cause is a :class:`StyleError`: the message names what was given and what
is allowed, and front ends show it as it stands. Anything else that is raised is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["DeviceError", "ImageError", "OptionError", "StyleError", "TrainingError", "WeightsError", "unknown_name"]


class StyleError(Exception):
    """Base of all errors that a user can cause. The message is one clear line."""


class OptionError(StyleError, ValueError):
    """A value outside what is allowed, an unknown name, options that exclude each other."""


class ImageError(StyleError):
    """A file that is missing, unreadable, no image, too small or too large, or cannot be written."""


class WeightsError(StyleError):
    """A weight file that is missing, altered, or does not fit the architecture."""


class TrainingError(StyleError):
    """A training that diverged."""


class DeviceError(StyleError):
    """A device or precision that was asked for and that this machine does not have."""


def unknown_name(kind: str, given: str, choices: Iterable[str]) -> OptionError:
    """An error such as ``unknown style 'grat-wave', did you mean 'great-wave'? choices: …``."""
    names = list(choices)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    return OptionError(f"unknown {kind} {given!r}{hint} choices: {', '.join(names) or 'none'}")
