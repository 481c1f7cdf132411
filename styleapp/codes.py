"""Codes of paintings, found once: kept in memory, and in a folder for the next process where one is wanted."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from styleapp.files import save_tensors
from styleapp.models import StyleCode

__all__ = ["CodeCache", "CodeKey", "codes_folder", "digest_of"]

KEPT = 256
"""Codes in memory: 15 KB each, of CIN 13 KB, against up to seconds of work on a CPU."""

FILED = 2000
"""Codes in the folder: 31 MB at most. Those used longest ago go first."""


def codes_folder() -> Path:
    """Where programs keep codes of paintings: $STYLEAPP_CODES, or styleapp/codes in the user's cache folder."""
    given = os.environ.get("STYLEAPP_CODES")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else cache / "styleapp" / "codes"


@dataclass(frozen=True)
class CodeKey:
    """All that a code depends on.

    Attributes:
        painting: of :func:`digest_of`; of a saved style, of which there is no painting, of its moments.
        style_size: short side at which it is measured.
        network: what identifies the weights.
        refine: steps; None for as many as it needs.
        arithmetic: device, precision and version of the program.
    """

    painting: str
    style_size: int
    network: str
    refine: int | None
    arithmetic: str

    @property
    def filename(self) -> str:
        """Of the code in a folder."""
        return hashlib.blake2b(repr(astuple(self)).encode(), digest_size=20).hexdigest() + ".safetensors"


class CodeCache:
    """The codes of the paintings that were used last. Safe to use from several threads and processes.

    A file that cannot be read or written costs the time to find the code again, and is no error: it is a cache.

    Args:
        folder: where codes outlive the process; None for nowhere.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._codes: OrderedDict[CodeKey, StyleCode] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: CodeKey) -> bool:
        """Whether it is in memory."""
        return key in self._codes

    def code(self, key: CodeKey, find: Callable[[], StyleCode]) -> StyleCode:
        """The code of that key; ``find`` is called where it is not known, and what it raises leaves no trace."""
        with self._lock:
            if key in self._codes:
                self._codes.move_to_end(key)
                return self._codes[key]
        code = self._filed(key)
        if code is None:
            code = find()
            self._file(key, code)
        with self._lock:
            self._codes[key] = code
            while len(self._codes) > KEPT:
                self._codes.popitem(last=False)
        return code

    def _filed(self, key: CodeKey) -> StyleCode | None:
        if self.folder is None:
            return None
        path = self.folder / key.filename
        try:
            tensors = load_file(path)
            gamma, beta = tensors["gamma"], tensors["beta"]
        except (OSError, KeyError, SafetensorError):
            return None
        with contextlib.suppress(OSError):  # others' files may be read and not touched
            os.utime(path)  # used now: it goes last
        return StyleCode(gamma, beta) if torch.isfinite(gamma).all() and torch.isfinite(beta).all() else None

    def _file(self, key: CodeKey, code: StyleCode) -> None:
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            save_tensors({"gamma": code.gamma, "beta": code.beta}, self.folder / key.filename)
            files = [(file.stat().st_mtime, file) for file in self.folder.glob("*.safetensors")]
            for _, file in sorted(files)[:-FILED]:
                file.unlink(missing_ok=True)


def digest_of(*tensors: Tensor | None) -> str:
    """What identifies the content of a picture, or of a code: (N, C, H, W) each, those that are None left out."""
    digest = hashlib.blake2b(digest_size=16)
    for values in tensors:
        if values is not None:
            whole = values.cpu().permute(0, 2, 3, 1).contiguous()
            digest.update(repr((whole.dtype, whole.shape)).encode())
            digest.update(whole.view(torch.uint8).numpy().data)
    return digest.hexdigest()
