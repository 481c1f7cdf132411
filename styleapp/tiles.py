"""How a photo is cut into tiles that fit into memory, and work done tile by tile."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from styleapp.controls import Window
from styleapp.disk import room_on_disk
from styleapp.errors import OptionError
from styleapp.memory import available, is_out_of_memory, release_freed_memory, resident
from styleapp.models import Stylizer

__all__ = [
    "Note",
    "Plan",
    "cells_of",
    "each",
    "even",
    "goes_on",
    "halo_of",
    "layer_bytes",
    "make_plan",
    "one_piece",
    "windows",
]

Note = Callable[[str], None]
"""Told what a user should know."""

LEAST_TILE = 64
QUICK_IN_ONE_PIECE, QUICK_TILE = 2048**2, (1408, 832)
"""On a CPU: pixels up to which one piece is quickest, and the largest (height, width) of a tile beyond.

Larger ones gain less by fewer borders than fresh and far memory costs: 12 megapixels took 8 to 12 s in one piece, 6 s
in tiles. High and narrow ones save a twentieth, as more of their rows stay in the cache.
"""


@dataclass(frozen=True)
class Plan:
    """How a photo is cut.

    Attributes:
        tile: sides of a tile in pixels, without the halo; a multiple of 8.
        keep: keep the features of the first pass, so that the second need not encode again.
        room: bytes for outputs of layers of the decoder that are kept from one pass to the next, so that it goes on
            from there; only networks with norms inside take so many passes.
        disk: bytes on disk for those that the room is too small for.
        keep_on_disk: the features too are kept there.
        tidy_above: bytes of this process above which freed memory is handed back before the next tile; None for
            never. What tiles of several shapes leave behind does not fit the next one, and adds up.
    """

    tile: tuple[int, int]
    keep: bool = True
    room: int = 0
    disk: int = 0
    keep_on_disk: bool = False
    tidy_above: int | None = None

    def covers(self, size: tuple[int, int]) -> bool:
        """Whether one tile takes a photo of this (height, width)."""
        return self.tile[0] >= size[0] and self.tile[1] >= size[1]


def make_plan(
    stylizer: Stylizer,
    size: tuple[int, int],
    device: torch.device,
    *,
    tile: int | None = None,
    budget: int | None = None,
    result_bytes: int = 0,
    keep: bool = True,
    whole: bool = False,
) -> Plan:
    """The largest tiles that fit; on a CPU of large photos no larger ones than are quick.

    Args:
        size: (height, width) of the photo.
        tile: longest side of a tile; None for as large as memory allows.
        budget: bytes that this process may occupy in all; None for half of what is free.
        result_bytes: size of the result, which is still to be made.
        keep: false where the features of the photo are not worth keeping.
        whole: in one piece wherever that fits.

    Raises:
        OptionError: if the budget is too small for the smallest tile, or the tile that is asked for does not
            fit into memory at all; the message says what is needed.
    """
    height, width = size
    pixel = bytes_per_pixel(stylizer)
    taken = 0
    if device.type == "cpu":
        if budget is not None:
            release_freed_memory()  # what reading the photo took
            taken = resident()
        taken += result_bytes
    total = available(device) // 2 if budget is None else budget
    free = total - taken
    plan = _keeping(stylizer, size, free // 2, device)
    plan = replace(plan, keep=plan.keep and keep)
    halo = 8 * _halo(stylizer, plan.keep)
    if tile is not None:
        sides = even(size, tile)
        needed = min(height, sides[0] + 2 * halo) * min(width, sides[1] + 2 * halo) * pixel // 2  # half is margin
        if needed > available(device):  # a system that is asked for more than it has ends the process
            raise OptionError(
                f"tiles of {sides[1]}x{sides[0]} pixels take at least {_megabytes(needed)}, "
                f"{_megabytes(available(device))} are free; take smaller ones, or --tile auto"
            )
        return replace(plan, tile=sides)
    quick = whole or device.type != "cpu" or height * width <= QUICK_IN_ONE_PIECE
    if quick and height * width * pixel <= free:
        return replace(one_piece(size), keep=keep)
    in_memory = plan.room + (plan.keep and not plan.keep_on_disk) * feature_bytes(stylizer, size)
    if plan.disk:  # of what lies there, a tile at work has its part in memory
        pixel += math.ceil(max([feature_bytes(stylizer, size), *_kept(stylizer, size)]) / (height * width))
    area = max(0, int((free - in_memory) / pixel))  # of a tile with its halo
    side = math.isqrt(area) - 2 * halo
    if side < LEAST_TILE:
        needed = taken + (LEAST_TILE + 2 * halo) ** 2 * pixel
        raise OptionError(
            f"too little memory for a photo of {width}x{height}: {_megabytes(needed)} are needed, "
            f"{'--max-memory allows' if budget is not None else 'half of what is free is'} {_megabytes(total)}"
        )
    if quick:
        sides = even(size, side)
    else:
        narrow = min(side, QUICK_TILE[1])
        sides = even(size, min(area // (narrow + 2 * halo) - 2 * halo, QUICK_TILE[0]), narrow)
    largest = (sides[0] + 2 * halo) * (sides[1] + 2 * halo) * pixel
    tidy_above = max(0, total - largest) if device.type == "cpu" and budget is not None else None
    return replace(plan, tile=sides, tidy_above=tidy_above)


def _keeping(stylizer: Stylizer, size: tuple[int, int], most: int, device: torch.device) -> Plan:
    """What is kept in so many bytes of memory, and what on disk because that is too little; its tile is the photo."""
    features, layers = feature_bytes(stylizer, size), _kept(stylizer, size)
    keep = features <= most
    fitting = [both for both in layers if both <= most - keep * features]
    short = not keep or len(fitting) < len(layers)
    disk = room_on_disk() if short and device.type == "cpu" else 0
    on_disk = not keep and features <= disk
    room = max(fitting, default=0)
    return replace(
        one_piece(size), keep=keep or on_disk, room=room, disk=disk - on_disk * features, keep_on_disk=on_disk
    )


def _kept(stylizer: Stylizer, size: tuple[int, int]) -> list[int]:
    """Bytes of the output of each layer inside the decoder whose moments take a pass, and of the one before."""
    if not stylizer.conditional:
        return []
    kept = [0, *(layer_bytes(stylizer, name, size) for name in stylizer.decoder.hidden)]
    return [sum(both) for both in itertools.pairwise(kept)]


def _halo(stylizer: Stylizer, keep: bool) -> int:
    """By how many features a window grows at each side, in the pass in which it grows most.

    Where the features of the first pass are kept the later ones encode no more than the layers that the decoder sees
    besides.
    """
    encoder, decoder = stylizer.encoder, stylizer.decoder
    encoded, decoded = halo_of(encoder.radius), halo_of(decoder.radius)
    if not keep:
        return encoded + decoded
    seen = [halo_of(encoder.radius_of(layer)) for layer in decoder.skips_between(None, None)]
    return max(encoded, decoded + max(seen, default=0))


def goes_on(plan: Plan, stylizer: Stylizer, size: tuple[int, int]) -> bool:
    """Whether every pass over the norms inside the decoder can go on from where the one before it has ended."""
    return plan.covers(size) or max(_kept(stylizer, size), default=0) <= max(plan.room, plan.disk)


def feature_bytes(stylizer: Stylizer, size: tuple[int, int]) -> int:
    """What the features of a photo of this (height, width) take."""
    rows, columns = cells_of(size)
    return stylizer.encoder.num_channels * rows * columns * next(stylizer.parameters()).element_size()


def layer_bytes(stylizer: Stylizer, name: str, size: tuple[int, int]) -> int:
    """What the output of a hidden layer of the decoder takes for a photo of this (height, width)."""
    decoder = stylizer.decoder
    rows, columns = (8 // decoder.strides[name] * cells for cells in cells_of(size))
    return decoder.hidden[name] * rows * columns * next(decoder.parameters()).element_size()


def one_piece(size: tuple[int, int]) -> Plan:
    """The photo as a single tile."""
    return Plan((8 * math.ceil(size[0] / 8), 8 * math.ceil(size[1] / 8)))


def _megabytes(count: float) -> str:
    return f"{math.ceil(count / 1e6)} MB"


def bytes_per_pixel(stylizer: Stylizer) -> int:
    """Peak memory of the networks for each pixel of a tile, with a margin.

    The widest place is the first block: input and output of a convolution with as many channels as conv1_1,
    and the convolution's own scratch space. Measured on the CPU: 370 to 620 bytes in bfloat16, with 64 channels.
    """
    first = next(stylizer.encoder.parameters())
    network = 6 * max(first.shape[0], 8) * first.element_size()
    finest = list(stylizer.norms.values())[-1]
    norms = 8 * finest if stylizer.conditional else 0  # a norm works on two float32 copies
    encoder = stylizer.encoder
    layers = stylizer.decoder.skips_between(None, None)
    skips = sum(encoder.layer_channels[name] / encoder.stride_of(name) ** 2 for name in layers)
    copies = 2 if stylizer.besides else 1  # as they are, and normalised
    return network + norms + math.ceil(copies * skips * first.element_size())


def halo_of(radius: int) -> int:
    """Features to add at each side so that ``radius`` pixels more are seen."""
    return math.ceil(radius / 8)


def even(size: tuple[int, int], height: int, width: int | None = None) -> tuple[int, int]:
    """Sides of a tile that divide ``size`` about evenly: multiples of 8, at most ``height`` and ``width``, at least 8.

    Without ``width`` both are at most ``height``.
    """
    return _even(size[0], height), _even(size[1], height if width is None else width)


def _even(length: int, most: int) -> int:
    count = math.ceil(length / max(8, most // 8 * 8))
    return 8 * math.ceil(length / count / 8)


def cells_of(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the features of a photo of that size."""
    return math.ceil(size[0] / 8), math.ceil(size[1] / 8)


def windows(cells: tuple[int, int], tile: tuple[int, int]) -> Iterable[Window]:
    """Tiles of ``tile`` pixels in units of features, row by row."""
    rows, columns = tile[0] // 8, tile[1] // 8
    for top in range(0, cells[0], rows):
        for left in range(0, cells[1], columns):
            yield Window(top, left, min(top + rows, cells[0]), min(left + columns, cells[1]))


def each(
    windows: Iterable[Window],
    work: Callable[[Window], None],
    note: Note,
    tidy_above: int | None = None,
    done: Callable[[Window], None] = lambda w: None,
) -> None:
    """Do the work for each window. Where memory runs out, with windows cut in four from there on.

    Args:
        done: called with each window that is ready; what it raises ends the work.
    """
    waiting = deque(windows)
    while waiting:
        if tidy_above is not None and resident() > tidy_above:
            release_freed_memory()
        try:
            work(waiting[0])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or min(waiting[0].size) <= 1:
                raise
            smaller = deque(part for w in waiting for part in _quarters(w))
            height, width = smaller[0].size
            note(f"out of memory: going on with tiles of {8 * width}x{8 * height} pixels")
            waiting = smaller
            continue
        done(waiting.popleft())


def _quarters(w: Window) -> list[Window]:
    rows = [w.top, (w.top + w.bottom) // 2, w.bottom]
    columns = [w.left, (w.left + w.right) // 2, w.right]
    return [
        Window(top, left, bottom, right)
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(columns)
        if bottom > top and right > left
    ]
