"""Train networks of conditional instance norm, and single codes for them (Dumoulin et al. 2017)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.utils import make_grid

from styleapp.errors import ImageError, OptionError
from styleapp.files import SUFFIXES, read_image
from styleapp.models import CodePredictor, Decoder, Encoder, StyleCode, Stylizer, code_from_moments
from styleapp.models.decoder import Skips
from styleapp.models.losses import content_loss, grid_loss, range_loss, style_loss
from styleapp.models.predictor import PROBE_SIZE
from styleapp.models.refine import code_losses, refined
from styleapp.models.vgg import by_layer
from styleapp.norms import moments
from styleapp.options import ConditionalOptions
from styleapp.training.data import ImagePool, painting_crops
from styleapp.training.loop import Losses, Report, Run, check_out, new_decoder, train
from styleapp.training.moves import followed
from styleapp.training.pairs import tiled
from styleapp.training.start import Start, centre, layer_codes, probe_of_examples, statistics, table_of

__all__ = ["ConditionalOptions", "Learned", "learn_code", "read_paintings", "train_conditional"]


CROPS = 24
"""Of photos, to learn a single code on."""


def read_paintings(folder: Path, style_size: int, names: Sequence[str] = ()) -> dict[str, Tensor]:
    """The paintings of a folder by their names, (1, 3, H, W), the short side at ``style_size``.

    Raises:
        ImageError: if there is none, one of ``names`` is missing, or one cannot be read.
    """
    files = {f.stem: f for f in sorted(folder.glob("*")) if f.suffix.lower() in SUFFIXES} if folder.is_dir() else {}
    if not files:
        raise ImageError(f"{folder}: not a folder of paintings")
    if missing := [name for name in names if name not in files]:
        raise ImageError(f"{folder}: has no painting {', '.join(missing)}; it has {', '.join(files)}")
    chosen = names or list(files)
    return {n: v2.functional.resize(read_image(files[n]).rgb, [style_size], antialias=True) for n in chosen}


def train_conditional(
    encoder: Encoder,
    content: Path,
    gallery: Path,
    out: Path,
    options: ConditionalOptions | None = None,
    *,
    styles: Sequence[str] = (),
    further: Path | None = None,
    device: torch.device | str = "cpu",
    init: Path | None = None,
    report: Report = lambda record: None,
    **more: Any,
) -> Path:
    """Train decoder and codes for the paintings of a folder; with one style it is a network of instance norm.

    Codes begin as measured ones (:meth:`styleapp.models.Stylizer.measure`). The losses are those of AdaIN
    training, with the whole painting, measured once, in the place of a random crop. With ``further`` a predictor
    of codes is trained besides, on crops of any paintings, so that the network takes those too that have no row.

    Args:
        encoder: trained and frozen.
        content: folder of photographs.
        gallery: folder of paintings; the name of a style is that of its file.
        out: safetensors file, fp16: the decoder as ``decoder.*``, and ``codes`` (styles, 2, channels of all norms);
            the styles are in its metadata. What lies beside it is said at :func:`styleapp.training.loop.train`.
        styles: only these of the folder.
        further: folder of further paintings, which get no code of their own.
        init: a decoder, or a network of this kind with its codes, of this width or less, to start from, if there is no
            checkpoint.
        more: ``minutes``, ``checkpoint_minutes``, ``sample_minutes`` and ``stop`` of that function.

    Raises:
        ImageError: if a folder has no usable image.
        WeightsError: if the checkpoint or ``init`` does not fit ``options``, or ``out`` cannot be written.
        TrainingError: if the training diverges.
    """
    options = options or ConditionalOptions()
    check_out(out)
    photos = ImagePool(content, device=device, skipped=lambda e: report({"skipped": str(e)}))
    paintings = read_paintings(gallery, options.style_size, styles)
    pool = None
    if further is not None:
        pool = ImagePool(further, device=device, skipped=lambda e: report({"skipped": str(e)}))
    run = _Run(encoder, options, torch.device(device), photos, paintings, pool, init)
    more |= {"photos": len(photos), "styles": list(paintings), "further": 0 if pool is None else len(pool)}
    return train(run, out, report=report, **more)


class _Conditional(nn.Module):
    """What is trained: a decoder, a table of codes, (K, C, 1, 1) each, and perhaps a predictor of further ones."""

    def __init__(self, decoder: Decoder, table: StyleCode, predictor: CodePredictor | None) -> None:
        super().__init__()
        self.decoder = decoder
        self.predictor = predictor
        self.gamma = nn.Parameter(table.gamma.clone())
        self.beta = nn.Parameter(table.beta.clone())

    def code(self, rows: Tensor) -> StyleCode:
        """The codes of these styles, (N, C, 1, 1)."""
        return StyleCode(self.gamma[rows], self.beta[rows])


class _Run(Run):
    options: ConditionalOptions

    def __init__(
        self,
        encoder: Encoder,
        options: ConditionalOptions,
        device: torch.device,
        photos: ImagePool,
        paintings: Mapping[str, Tensor],
        further: ImagePool | None,
        init: Path | None,
    ) -> None:
        torch.manual_seed(options.seed)
        encoder.to(device)
        decoder = new_decoder(
            encoder,
            options.width,
            upsampling=options.upsampling,
            skips=[name for name in options.skips.split(",") if name],
        )
        start = None if init is None else Start.read(init)
        if start is not None:
            start.fill_decoder(decoder)
        decoder.to(device).to(memory_format=torch.channels_last)
        stylizer = Stylizer(encoder, decoder, conditional=True)
        predictor = None
        if further is not None:
            predictor = CodePredictor(sum(encoder.layer_channels.values()), stylizer.code_channels).to(device)
            if start is None or not start.fill_predictor(predictor, stylizer):
                predictor.standardize(statistics(encoder, further, options.size))
                predictor.probe.copy_(probe_of_examples(PROBE_SIZE))
        with torch.no_grad():
            codes = {name: stylizer.measure(painting.to(device)) for name, painting in paintings.items()}
            table = table_of([c if start is None else start.code(name, c, stylizer) for name, c in codes.items()])
            wanted = [layer_codes(encoder, p.to(device)) for p in paintings.values()]
        self.names = list(paintings)
        self.wanted = [table_of(of_layer) for of_layer in zip(*wanted, strict=True)]
        self.model = _Conditional(decoder, table, predictor)
        groups = [
            {"params": list(decoder.parameters()), "lr": options.lr},
            {"params": [self.model.gamma, self.model.beta], "lr": options.code_lr, "weight_decay": 0.0},
        ]
        if predictor is not None:  # a step of Adam changes a sum of thousands of inputs by so much more
            wide = [predictor.first.weight, predictor.look.weight]
            narrow = [p for p in predictor.parameters() if all(p is not w for w in wide)]
            for parameters, lr in ((wide, options.predictor_lr / 20), (narrow, options.predictor_lr)):
                groups.append({"params": parameters, "lr": lr, "weight_decay": 1e-2})
        super().__init__(encoder, self.model, options, device, groups)
        self.photos, self.further = photos, further
        self.stylizer = Stylizer(self.encoder, decoder, conditional=True, predictor=predictor)
        self.loss: Callable[..., Losses] = torch.compile(self._loss) if options.compile else self._loss

    def draw(self) -> tuple[Tensor | None, ...]:
        """Random crops of photos and paintings, the rows of styles, and in what way each pair takes part."""
        o = self.options
        photo = self.photos.crops(o.batch_size, o.size, (0.5, 1.0)).to(memory_format=torch.channels_last)
        count = o.batch_size * o.pairs
        strength = (torch.rand(count, 1, 1, 1) >= o.identity_share).float().to(self.device)
        motion = self.motion()
        predicted = 0 if self.further is None else int(count * o.further_share + torch.rand(()))
        rows = torch.randint(len(self.names), (count - predicted,)).to(self.device)
        if self.further is None or not predicted:
            return photo, rows, strength, motion, None
        painting = painting_crops(self.further, predicted, o.size, o.pattern_share)
        return photo, rows, strength, motion, painting.to(memory_format=torch.channels_last)

    def losses(self, *batch: Tensor | None) -> Losses:
        """Of each photo in ``pairs`` random styles."""
        return self.loss(*batch)

    def _loss(
        self,
        photo: Tensor,
        rows: Tensor,
        strength: Tensor,
        motion: Tensor | None,
        painting: Tensor | None = None,
    ) -> Losses:
        """Of paintings, whose codes are predicted, and of ``rows`` of the table after them."""
        code, wanted = self.model.code(rows), [StyleCode(c.gamma[rows], c.beta[rows]) for c in self.wanted]
        if painting is not None:
            with torch.no_grad():  # the predictor is there to correct what is measured
                features = self.encoder.features(painting)
                with torch.autocast(painting.device.type, torch.bfloat16, enabled=self.options.bf16):
                    measured = self.stylizer.measured(features[-1], skips=by_layer(features))
                found = [code_from_moments(moments(f)) for f in features]
            assert self.model.predictor is not None
            of_painting = self.model.predictor(StyleCode.join(found), measured, self._tried)
            code = table_of([of_painting, code])
            wanted = [table_of([f, w]) for f, w in zip(found, wanted, strict=True)]
        seen = _seen(self.encoder, photo)
        return _losses(self.stylizer, photo, seen, code, wanted, strength, motion, self.options)

    def _tried(self, code: StyleCode) -> StyleCode:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            return self.stylizer.tried(code)

    def state(self) -> dict[str, Tensor]:
        """Decoder and codes."""
        model = cast(_Conditional, self.ema)
        codes = torch.stack([model.gamma, model.beta], 1).flatten(2).detach()
        predictor = {} if model.predictor is None else model.predictor.state_dict()
        parts = {"decoder": model.decoder.state_dict(), "predictor": predictor}
        return {f"{part}.{k}": v for part, state in parts.items() for k, v in state.items()} | {"codes": codes}

    def about(self) -> dict[str, str]:
        """The names of the styles, in the order of the codes."""
        return {"styles": json.dumps(self.names)}

    @torch.no_grad()
    def samples(self) -> Tensor:
        """A grid: photos on top, below them one row for each of up to eight styles."""
        torch.manual_seed(0)
        photos = self.photos.crops(5, self.options.size, (1.0, 1.0))
        model = cast(_Conditional, self.ema)
        stylizer = Stylizer(self.encoder, model.decoder, conditional=True)
        rows = [photos]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            for i in range(0, len(self.names), math.ceil(len(self.names) / 8)):
                rows.append(stylizer(photos, model.code(torch.tensor([i], device=self.device))))
        grid: Tensor = make_grid(torch.cat(rows).float().clamp(0, 1), nrow=5)
        return grid[None].cpu()


@torch.no_grad()
def _seen(encoder: Encoder, photo: Tensor) -> tuple[list[Tensor], list[StyleCode]]:
    """What the encoder finds in photos at relu1_1 to relu4_1: features, and their moments."""
    features = encoder.features(photo)
    return features, [code_from_moments(moments(f)) for f in features]


def _losses(
    stylizer: Stylizer,
    photo: Tensor,
    seen: tuple[list[Tensor], list[StyleCode]],
    code: StyleCode,
    wanted: Sequence[StyleCode],
    strength: Tensor,
    motion: Tensor | None,
    options: ConditionalOptions,
) -> Losses:
    """Of every photo in ``pairs`` styles each, one block of photos after another.

    Args:
        seen: of :func:`_seen`.
        code: (N·pairs, C, 1, 1), of the network.
        wanted: what the encoder finds in the paintings, at relu1_1 to relu4_1.
        strength: (N·pairs, 1, 1, 1); a sample of strength 0 passes no norm, and its wanted style is the photo's own.
        motion: of :meth:`Run.motion`; None to leave out the loss that it is for.
    """

    def restyled(features: Tensor, skips: Skips) -> Tensor:
        with torch.autocast(photo.device.type, torch.bfloat16, enabled=options.bf16):
            return stylizer.restyled(features.repeat(pairs, 1, 1, 1), code, strength, skips)

    pairs = options.pairs
    features, own = seen
    with torch.no_grad():
        goal = [tiled(a, pairs).lerp(b, strength) for a, b in zip(own, wanted, strict=True)]
        target = stylizer.apply_code(features[-1].repeat(pairs, 1, 1, 1), goal[-1])
    picture = restyled(features[-1], by_layer(features))
    picture = picture[..., : photo.shape[-2], : photo.shape[-1]]
    found = stylizer.encoder.features(picture.clamp(0, 1))
    codes = [code_from_moments(moments(f)) for f in found]
    pixel = (picture.float() - photo.repeat(pairs, 1, 1, 1)).square() * (1 - strength)
    unfollowed = torch.zeros_like(pixel[:1, 0, 0, 0])
    if motion is not None:
        unfollowed = followed(photo, picture, motion, lambda moved: restyled(*stylizer.encode(moved)))
        unfollowed = options.equivariance_every * unfollowed
    return Losses(
        content_loss(found[-1], target).mean(),
        style_loss(codes, goal).mean(),
        pixel.mean(),
        grid_loss(picture).mean(),
        unfollowed.mean(),
        range_loss(picture).mean(),
    )


@dataclass(frozen=True)
class Learned:
    """A learned code, and the mean content and style loss over the photos: at first, and as learned."""

    code: StyleCode
    before: tuple[float, float]
    after: tuple[float, float]


def learn_code(
    stylizer: Stylizer,
    painting: Tensor,
    photos: Sequence[Tensor],
    *,
    steps: int = 500,
    size: int = 256,
    lr: float = 2e-2,
    style_weight: float = 10.0,
    grid_weight: float = 60.0,
    damping: float = 0.0,
    seed: int = 0,
    start: StyleCode | None = None,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    preview: Callable[[int, StyleCode], None] = lambda step, code: None,
) -> Learned:
    """A code for one painting, learned while the network stays as it is.

    Args:
        stylizer: frozen; conditional, with codes for other styles, or an AdaIN network whose decoder is told something.
        painting: (1, 3, H, W), at the size at which it is to be measured.
        photos: (1, 3, H, W) each, sides of at least 16; random crops of them are what it learns on.
        size: of the crops.
        style_weight, grid_weight: of the losses beside content. Without the grid loss hundreds of steps draw a mesh.
        damping: of :func:`styleapp.models.refine.refined`.
        start: the code to begin with; None for that of ``stylizer.measure``. Losses at first are of it.
        progress: called with each step and its loss.
        preview: called now and then with the code so far.

    Raises:
        OptionError: for a network whose code has nothing to learn, or no photos.
    """
    if not (stylizer.conditional or stylizer.shifts is not None) or not photos:
        raise OptionError(
            "a code is learned for a conditional network, or a decoder that is told something, on at least one photo"
        )
    device = next(stylizer.parameters()).device
    with torch.no_grad():
        first = stylizer.measure(painting.to(device)) if start is None else start.to(device)
        wanted = layer_codes(stylizer.encoder, painting.to(device))

    @torch.no_grad()
    def means(code: StyleCode) -> tuple[float, float]:
        centres = [centre(photo, size).to(device, memory_format=torch.channels_last) for photo in photos]
        found = [code_losses(stylizer, photo, stylizer.encode(photo), code, wanted)[:2] for photo in centres]
        content, style = torch.tensor(found).mean(0).tolist()
        return content, style

    def told(step: int, loss: float, code: StyleCode) -> None:
        progress(step, loss)
        if step % max(1, steps // 5) == 0:
            preview(step, code)

    draw = torch.Generator().manual_seed(seed)
    count = min(steps, max(CROPS, len(photos)))
    crops = [_random_crop(photos[i % len(photos)], size, draw) for i in range(count)]
    crops = [crop.to(device, memory_format=torch.channels_last) for crop in crops]
    weights = {"style_weight": style_weight, "grid_weight": grid_weight, "damping": damping}
    learned = refined(stylizer, first, wanted, crops, steps=steps, lr=lr, **weights, progress=told)
    return Learned(learned, means(first), means(learned))


def _random_crop(photo: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """A random square of half to all of the short side, perhaps mirrored, (1, 3, size, size)."""
    height, width = photo.shape[-2:]
    part, top, left, flip = torch.rand(4, generator=draw).tolist()
    side = max(1, round(min(height, width) * (0.5 + 0.5 * part)))
    y, x = round(top * (height - side)), round(left * (width - side))
    crop = v2.functional.resize(photo[..., y : y + side, x : x + side], [size, size], antialias=True)
    return (crop.flip(-1) if flip < 0.5 else crop).clamp(0, 1)
