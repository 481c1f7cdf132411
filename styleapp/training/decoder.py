"""Train the decoder of an AdaIN network (Huang and Belongie 2017, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from styleapp.models import Decoder, Encoder, ShiftPredictor, Stylizer, code_from_moments
from styleapp.models.decoder import Skips
from styleapp.models.losses import content_loss, grid_loss, range_loss, style_loss
from styleapp.models.predictor import PROBES
from styleapp.models.vgg import by_layer
from styleapp.norms import moments
from styleapp.options import DecoderOptions
from styleapp.training.data import ImagePool, painting_crops
from styleapp.training.loop import Losses, Report, Run, check_out, new_decoder, train
from styleapp.training.moves import followed
from styleapp.training.pairs import paired, tiled, where
from styleapp.training.start import Start, probes_of_examples, statistics

__all__ = ["DecoderOptions", "train_decoder"]


def train_decoder(
    encoder: Encoder,
    content: Path,
    style: Path,
    out: Path,
    options: DecoderOptions | None = None,
    *,
    device: torch.device | str = "cpu",
    init: Path | None = None,
    report: Report = lambda record: None,
    **more: Any,
) -> Path:
    """Train until ``options.steps`` or ``minutes`` are over and write the averaged weights to ``out``.

    Args:
        encoder: trained and frozen.
        content, style: folders of photographs and of paintings.
        out: safetensors file, fp16; what lies beside it is said at :func:`styleapp.training.loop.train`.
        init: weights of this width or less to start from, if there is no checkpoint.
        report: called with each record of the log.
        more: ``minutes``, ``checkpoint_minutes``, ``sample_minutes`` and ``stop`` of that function.

    Raises:
        ImageError: if a folder has no usable image.
        WeightsError: if the checkpoint or ``init`` does not fit ``options``, or ``out`` cannot be written.
        TrainingError: if the training diverges.
    """
    options = options or DecoderOptions()
    check_out(out)
    photos = ImagePool(content, device=device, skipped=lambda e: report({"skipped": str(e)}))
    paintings = ImagePool(style, device=device, skipped=lambda e: report({"skipped": str(e)}))
    run = _Run(encoder, options, torch.device(device), photos, paintings, init)
    return train(run, out, report=report, photos=len(photos), paintings=len(paintings), **more)


class _Network(nn.Module):
    """What is trained: a decoder, and perhaps what it is told of a painting."""

    def __init__(self, decoder: Decoder, shifts: ShiftPredictor | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.shifts = shifts


class _Run(Run):
    """The decoder, and where its photos and paintings come from."""

    options: DecoderOptions

    def __init__(
        self,
        encoder: Encoder,
        options: DecoderOptions,
        device: torch.device,
        photos: ImagePool,
        paintings: ImagePool,
        init: Path | None,
    ) -> None:
        torch.manual_seed(options.seed)
        encoder.to(device)
        skips = [name for name in options.skips.split(",") if name]
        decoder = new_decoder(encoder, options.width, options.norm, options.upsampling, skips)
        start = None if init is None else Start.read(init)
        if start is not None:
            start.fill_decoder(decoder)
        decoder.to(device).to(memory_format=torch.channels_last).requires_grad_(not options.freeze)
        groups = [{"params": list(decoder.parameters()), "lr": options.lr}]
        shifts = None
        if options.shifts:
            seen = sum(encoder.layer_channels.values()) - encoder.num_channels
            shifts = ShiftPredictor(seen, sum(decoder.hidden.values())).to(device)
            if start is None or not start.fill_shifts(shifts, decoder):
                sizes = {"above": seen, encoder.last: encoder.num_channels}
                shifts.standardize(statistics(encoder, paintings, options.size).split(sizes)["above"])
            if not shifts.probes.any():
                shifts.probes.copy_(probes_of_examples(PROBES[-1]))
            # A step of Adam changes a sum of hundreds of inputs by so much more.
            groups.append({"params": list(shifts.parameters()), "lr": options.lr / 10, "weight_decay": 1e-2})
        super().__init__(encoder, _Network(decoder, shifts), options, device, groups)
        self.photos, self.paintings = photos, paintings
        self.stylizer = Stylizer(self.encoder, decoder, shifts=shifts)
        self.loss: Callable[..., Losses] = torch.compile(self._loss) if options.compile else self._loss

    def draw(self) -> tuple[Tensor | None, ...]:
        """Random crops of photos and paintings, and in what way each pair takes part."""
        o = self.options
        photo = self.photos.crops(o.batch_size, o.size, (0.3, 1.0)).to(memory_format=torch.channels_last)
        painting = painting_crops(self.paintings, o.batch_size, o.size, o.pattern_share, o.colour_share)
        painting = painting.to(memory_format=torch.channels_last)
        count = o.batch_size * o.pairs
        identity = torch.rand(count, 1, 1, 1) < o.identity_share
        mixed = torch.rand(count, 1, 1, 1) < o.mix_share
        weight = torch.where(mixed, torch.rand(count, 1, 1, 1), torch.zeros(()))
        return photo, painting, identity.to(self.device), weight.to(self.device), self.motion()

    def losses(self, *batch: Tensor | None) -> Losses:
        """Of each photo in the styles of ``pairs`` paintings."""
        return self.loss(*batch)

    def state(self) -> dict[str, Tensor]:
        """Of the decoder, and what it is told."""
        return {name.removeprefix("decoder."): value for name, value in self.ema.state_dict().items()}

    def _loss(self, photo: Tensor, painting: Tensor, identity: Tensor, weight: Tensor, motion: Tensor | None) -> Losses:
        """Of all pairs.

        An identity sample is a photo that is its own style: it takes part in every loss, and in the
        pixel loss besides.
        """
        pairs, stylizer = self.options.pairs, self.stylizer

        def normalised(features: Sequence[Tensor]) -> tuple[Tensor, Skips]:
            """What the decoder gets of the photos' layers, with the moments of ``wanted``."""
            each = {n: f.repeat(pairs, 1, 1, 1) for n, f in by_layer(features).items() if n in stylizer.besides}
            return stylizer.inputs(features[-1].repeat(pairs, 1, 1, 1), each, by_layer(wanted))

        with torch.no_grad():
            features = self.encoder.features(photo)
            own = [tiled(code_from_moments(moments(f)), pairs) for f in features]
            theirs = [code_from_moments(moments(f)) for f in self.encoder.features(painting)]
            # The k-th pairing of photo i is with painting i + k; the mix brings in painting i + k + 1.
            wanted = [
                where(identity, mine, paired(code, pairs).lerp(paired(code, pairs, 1), weight))
                for mine, code in zip(own, theirs, strict=True)
            ]
            target, skips = normalised(features)
        # Where no style is, nothing is told: with a strength of 0 a decoder knows nothing but the photo.
        shifts = {}
        if stylizer.shifts is not None:
            shifts = stylizer.told(stylizer.predicted(wanted).split(stylizer.parts), (~identity).float())

        def decoded(target: Tensor, skips: Skips) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
                picture: Tensor = stylizer.decoder(target, skips=skips, shifts=shifts)
            return picture

        def stylize(moved: Tensor) -> Tensor:
            return decoded(*normalised(self.encoder.features(moved)))

        picture = decoded(target, skips)
        height, width = photo.shape[-2:]
        picture = picture[..., :height, :width]
        seen = self.encoder.features(picture.clamp(0, 1))
        found = [code_from_moments(moments(f)) for f in seen]
        pixel = (picture.float() - photo.repeat(pairs, 1, 1, 1)).square() * identity
        unfollowed = torch.zeros_like(pixel[:1, 0, 0, 0])
        if motion is not None:
            unfollowed = self.options.equivariance_every * followed(photo, picture, motion, stylize)
        return Losses(
            content_loss(seen[-1], target).mean(),
            style_loss(found, wanted).mean(),
            pixel.mean(),
            grid_loss(picture).mean(),
            unfollowed.mean(),
            range_loss(picture).mean(),
        )

    @torch.no_grad()
    def samples(self) -> Tensor:
        """A grid: photos on top, paintings at the left, the averaged decoder's pictures between them."""
        size = self.options.size
        torch.manual_seed(0)
        a, b = (pool.crops(5, size, (1.0, 1.0)) for pool in (self.photos, self.paintings))
        rows = [torch.cat([torch.ones_like(a[:1]), a])]
        ema = cast(_Network, self.ema).eval()
        stylizer = Stylizer(self.encoder, ema.decoder, shifts=ema.shifts)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            for painting in b.chunk(len(b)):
                rows.append(torch.cat([painting, stylizer(a, stylizer.measure(painting))]))
        grid: Tensor = make_grid(torch.cat(rows).float().clamp(0, 1), nrow=6)
        return grid[None].cpu()
