"""Teach the CIN network a painting of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from styleapp.errors import ImageError, OptionError, WeightsError
from styleapp.files import example_photos, read_image, save_picture
from styleapp.gallery import check_style_name
from styleapp.images import filled
from styleapp.models import StyleCode
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer
from styleapp.training.cin import Learned, learn_code
from styleapp.weights import CIN

__all__ = ["learn_style"]


def learn_style(
    transfer: StyleTransfer,
    painting: Path,
    name: str,
    photos: Sequence[Path] = (),
    *,
    steps: int = 500,
    size: int = 256,
    style_size: int = 512,
    preview: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Path, Learned]:
    """Learn a code for a painting and keep it, with the measured ones, as a style of that name.

    From that code on, in a fifth of the steps, it learns one for the least and one for the largest stroke size too.

    Args:
        style_size: short side at which the painting is measured.
        photos: what to learn on; by default the photos of the demo.
        preview: a folder for the first photo in the style so far, a few times on the way.

    Returns:
        The small file that ``--style NAME`` finds, and what was learned.

    Raises:
        OptionError: for a name that is not allowed or taken.
        ImageError: for a painting or photo that cannot be used.
        WeightsError: if no CIN network is there.
    """
    check_style_name(name, transfer.styles.gallery, overwrite=overwrite)
    if preview is not None:
        try:
            preview.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"{preview}: no folder for previews ({error.strerror})") from None
    paths = list(photos) or example_photos()
    if not paths:
        raise OptionError("no photos to learn on: give some with --content")
    options = Options(size=size, style_size=style_size)
    pictures = [transfer.fit(path, options) for path in paths]
    network = transfer.networks.conditional(CIN).stylizer
    picture = read_image(painting, transfer.max_pixels)
    ends = transfer.styles.gallery.sizes[0], transfer.styles.gallery.sizes[-1]
    steps_at = {style_size: steps} | {s: max(1, steps // 5) for s in ends if s != style_size}

    def told(before: int, step: int, loss: float) -> None:
        progress(before + step, sum(steps_at.values()))

    def show(step: int, code: StyleCode) -> None:
        if preview is not None:
            done = transfer.picture(pictures[0], code, Options(norm="cin"))
            save_picture(done, preview / f"{name}-{step:05d}.png")

    found: dict[int, Learned] = {}
    for at, count in steps_at.items():
        before = sum(steps_at[done] for done in found)
        found[at] = learn_code(
            network,
            filled(transfer.fit(picture, Options(size=at))).rgb,
            [filled(photo).rgb for photo in pictures],
            steps=count,
            size=size,
            start=found[style_size].code if found else None,
            progress=partial(told, before),
            preview=show if at == style_size else lambda step, code: None,
        )
    learned, codes = found[style_size], {at: of_size.code for at, of_size in found.items()}
    if not all(torch.isfinite(t).all() for code in codes.values() for t in (code.gamma, code.beta)):
        raise WeightsError(f"{painting}: learning did not converge; try fewer steps or another --size")
    about = {
        "steps": str(steps),
        "style_size": str(style_size),
        **{
            f"{k}_{w}": f"{v:.4f}"
            for w in ("before", "after")
            for k, v in zip(("content", "style"), getattr(learned, w), strict=True)
        },
    }
    return transfer.styles.save(painting, name, overwrite=overwrite, learned=codes, about=about), learned
