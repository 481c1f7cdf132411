"""Losses of the shipped network on pairs of photos and paintings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from styleapp.errors import ImageError, OptionError
from styleapp.files import SUFFIXES
from styleapp.models import StyleCode, code_from_moments
from styleapp.models.losses import content_loss, style_loss
from styleapp.models.vgg import by_layer
from styleapp.norms import moments
from styleapp.pipeline import Options, StyleTransfer

__all__ = ["Row", "evaluate", "images"]


@dataclass(frozen=True)
class Row:
    """What one network, or the unchanged photo, has.

    Attributes:
        content_loss, style_loss: means over all pairs.
        identity_psnr: in dB, the decoder at alpha = 0 against the photo, mean over the photos.
        by_painting: the means over the photos for each painting: content and style loss by file name. A few hard
            paintings can rule the mean over all.
    """

    name: str
    content_loss: float
    style_loss: float
    identity_psnr: float | None
    by_painting: dict[str, tuple[float, float]]

    @property
    def medians(self) -> tuple[float, float]:
        """Content and style loss: the medians over the paintings."""
        content, style = zip(*self.by_painting.values(), strict=True)
        return median(content), median(style)


@torch.inference_mode()
def evaluate(
    transfer: StyleTransfer,
    content: Path,
    style: Path,
    *,
    size: int = 512,
    every: int = 1,
    norm: str = "adain",
    refine: int | None = None,
    detail: float = Options.detail,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Every photo in ``content`` with every painting in ``style``, at a short side of ``size``.

    Args:
        every: of sorted photos and paintings take every so many, the first included.
        norm: adain; cin, with the codes that its network predicts; or decoder:NORM for one of the small decoders.
        refine: steps that codes are refined by, as :class:`styleapp.options.Options` has it.
        detail: how much of the photo's fine texture cin sees, as it has that too; the codes are those of 1.

    Losses as in training, in the rescaled VGG: content is the MSE to the AdaIN target at relu4_1, style
    the sum over relu1_1 to relu4_1 of the MSE of means and of standard deviations. The picture that is
    judged is the 8-bit one that would be saved. The identity is that of the decoder alone,
    D(E(photo)), without the photo's detail that a strength below 1 gives back.

    Returns:
        A row for the unchanged photo and one for the network.

    Raises:
        OptionError: for another norm, or a detail that it does not take.
        ImageError: if a folder has no image, or one of them cannot be read.
    """
    if norm.partition(":")[0] not in ("adain", "cin", "decoder"):
        raise OptionError(f"evaluate takes the norms adain, cin and decoder:NORM, which match a painting; got {norm!r}")
    measuring, stylizer = transfer.networks.of(norm), transfer.networks.of(norm, detail=Options(detail=detail).detail)

    def load(file: Path) -> Tensor:
        picture = transfer.fit(file, Options(size=size))
        return picture.rgb.to(transfer.device, memory_format=torch.channels_last)

    def codes(image: Tensor) -> tuple[list[Tensor], list[StyleCode]]:
        features = stylizer.encoder.features(image)
        return features, [code_from_moments(moments(f)) for f in features]

    photos, paintings = images(content)[::every], images(style)[::every]
    wanted = [codes(load(file))[1] for file in paintings]
    measured = [measuring.measure(load(file), refine=refine) for file in paintings]
    sums = torch.zeros(2, len(paintings), 2, dtype=torch.float64)
    psnr = 0.0
    for i, file in enumerate(photos):
        photo = load(file)
        layers, own = codes(photo)
        features = layers[-1]
        seen, skips = (features, by_layer(layers)) if stylizer.int8 is None else stylizer.encode(photo, exact=False)
        identity = _as_saved(stylizer.decode(seen, photo, skips))
        psnr += -10 * float((identity - photo).square().mean().log10()) / len(photos)
        for j, (code, codes_of_style) in enumerate(zip(measured, wanted, strict=True)):
            target = stylizer.apply_code(features, codes_of_style[-1])
            made, found = codes(_as_saved(stylizer.stylized(seen, code, photo, skips=skips, exact=False)))
            for row, (f, c) in enumerate(((features, own), (made[-1], found))):
                sums[row, j] += torch.stack([content_loss(f, target), style_loss(c, codes_of_style)])[:, 0].cpu()
            progress(i * len(wanted) + j + 1, len(photos) * len(wanted))
    unchanged, network = sums / len(photos)
    name = f"{ {'adain': 'AdaIN', 'cin': 'CIN'}.get(norm, norm) }, {transfer.precision}"
    return [_row("unchanged photo", paintings, unchanged, None), _row(name, paintings, network, psnr)]


def _row(name: str, paintings: list[Path], means: Tensor, psnr: float | None) -> Row:
    content, style = means.mean(0).tolist()
    by_painting = dict(zip([p.name for p in paintings], means.tolist(), strict=True))
    return Row(name, content, style, psnr, by_painting)


def _as_saved(picture: Tensor) -> Tensor:
    return picture.clamp(0, 1).mul(255).round().div(255).contiguous(memory_format=torch.channels_last)


def images(folder: Path) -> list[Path]:
    """The image files of a folder, sorted.

    Raises:
        ImageError: if there is no such folder, or none in it.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder}: not a folder of images")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES)
    if not files:
        raise ImageError(f"{folder}: has no image ({', '.join(SUFFIXES)})")
    return files
