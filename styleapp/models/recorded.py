"""Kernels of a GPU recorded once and started together: where they are small, it mostly waits for Python otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Recorded", "Recordings", "layout"]

Result = TypeVar("Result")


def layout(*tensors: Tensor | None) -> tuple[object, ...]:
    """What a recording is good for: dtypes, shapes and strides."""
    return tuple(None if t is None else (t.dtype, t.shape, t.stride()) for t in tensors)


class Recorded(Generic[Result]):
    """A function of tensors on a GPU as one CUDA graph (torch.cuda.CUDAGraph).

    Each call copies its tensors, of one :func:`layout`, to where those of the recording lay, and overwrites the result
    of the call before. The function must do the same kernels whatever is in the tensors, and wait for none; what it
    reads besides, such as weights, is read where it lay then.

    Args:
        run: given tensors, or None where there was none. It is called three times before it is recorded, as some
            libraries choose their kernels then.
        example: the first tensors; those in the memory of the CPU are brought to the GPU.
    """

    def __init__(self, run: Callable[..., Result], *example: Tensor | None) -> None:
        self.inputs = [None if t is None else t.clone() if t.is_cuda else t.cuda() for t in example]
        beside, main = torch.cuda.Stream(), torch.cuda.current_stream()
        beside.wait_stream(main)
        with torch.cuda.stream(beside):
            for _ in range(3):
                run(*self.inputs)
        main.wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may go on: they must only not be recorded.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.result = run(*self.inputs)

    def __call__(self, *tensors: Tensor | None) -> Result:
        """The result for these tensors, until the next call."""
        for kept, given in zip(self.inputs, tensors, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.result


class Recordings:
    """Recordings of what was asked for twice: it may come again. Those used last are kept, for threads to share.

    Args:
        device: the GPU.
        most: how many are kept; each holds the memory that its function took.
    """

    def __init__(self, device: torch.device, most: int = 4) -> None:
        self.device = device
        self.most = most
        self._kept: dict[Hashable, Recorded[Tensor]] = {}
        self._seen: set[Hashable] = set()
        self._refused: set[Hashable] = set()
        self._lock = threading.Lock()

    def run(self, what: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The result of a function of tensors, on the CPU.

        Args:
            what: stands for the function.
            tensors: on the GPU, or in pinned memory of the CPU.
        """
        key = what, layout(*tensors)
        with self._lock:  # a recording has one place for its tensors
            recorded = self._kept.pop(key, None)
            if recorded is None and key in self._seen and key not in self._refused:
                recorded = self._record(key, function, *tensors)
            if recorded is not None:
                self._kept[key] = recorded
                return recorded(*tensors).cpu()
            if len(self._seen) >= 1000:
                self._seen.clear()
            self._seen.add(key)
        return self.plain(what, function, *tensors)

    def plain(self, what: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The same without a recording."""
        return function(*(t.to(self.device, non_blocking=True) for t in tensors)).cpu()

    def clear(self) -> None:
        """Give their memory back."""
        with self._lock:
            self._kept.clear()
            self._seen.clear()

    def _record(self, key: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Recorded[Tensor] | None:
        while len(self._kept) >= self.most:
            del self._kept[next(iter(self._kept))]
        try:
            return Recorded(function, *tensors)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:  # something in it cannot be recorded
            self._refused.add(key)
            return None
