"""Train the decoder of an AdaIN network (Huang and Belongie 2017, section 5)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.utils import make_grid

from styleapp.errors import WeightsError
from styleapp.files import atomic_path, save_rgb
from styleapp.models import Decoder, Encoder, StyleCode, Stylizer, code_from_moments
from styleapp.models.layers import ReflectConv2d
from styleapp.norms import moments
from styleapp.options import DecoderOptions
from styleapp.training.data import ImagePool, colour_augmentation, patterns
from styleapp.training.losses import content_loss, style_loss

__all__ = ["DecoderOptions", "train_decoder"]


def learning_rate(step: int, options: DecoderOptions) -> float:
    """A linear rise over ``warmup`` steps, then half a cosine down to zero at ``steps``."""
    rise = min(1.0, (step + 1) / max(1, options.warmup))
    return options.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / options.steps)))


def train_decoder(
    encoder: Encoder,
    content: Path,
    style: Path,
    out: Path,
    options: DecoderOptions | None = None,
    *,
    device: torch.device | str = "cpu",
    init: Path | None = None,
    minutes: float = math.inf,
    checkpoint_minutes: float = 2.0,
    sample_minutes: float = 10.0,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Path:
    """Train until ``options.steps`` or ``minutes`` are over and write the averaged weights to ``out``.

    Beside ``out`` lie its checkpoint (``.ckpt``: if there is one, the run goes on from it, also after a
    kill), its log (``.log.jsonl``: the options, then the mean losses since the line before) and grids of
    samples (``.samples/``).

    Args:
        encoder: trained and frozen.
        content, style: folders of photographs and of paintings.
        out: safetensors file, fp16. Written at the end of every call, finished or not.
        init: weights to start from, if there is no checkpoint.
        minutes: longest duration of this call.
        checkpoint_minutes, sample_minutes: how often to write a checkpoint and a grid of samples.
        report: called with each record of the log.

    Raises:
        ImageError: if a folder has no usable image.
        WeightsError: if the checkpoint or ``init`` does not fit ``options``.
    """
    options = options or DecoderOptions()
    started = time.monotonic()
    photos = ImagePool(content, device=device, skipped=lambda e: report({"skipped": str(e)}))
    paintings = ImagePool(style, device=device, skipped=lambda e: report({"skipped": str(e)}))
    run = _Run(encoder, options, torch.device(device))
    checkpoint, log = out.with_suffix(".ckpt"), out.with_suffix(".log.jsonl")
    if checkpoint.exists():
        run.resume(checkpoint)
    elif init is not None:
        run.load(init)

    out.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as lines:

        def record(**entry: Any) -> None:
            lines.write(json.dumps(entry) + "\n")
            lines.flush()
            report(entry)

        record(options=asdict(options), step=run.step, photos=len(photos), paintings=len(paintings))
        logged = saved = sampled = time.monotonic()
        logged_step, sums = run.step, torch.zeros(3)
        while run.step < options.steps and time.monotonic() - started < 60 * minutes:
            sums += run.train_step(photos, paintings)
            now = time.monotonic()
            last = run.step == options.steps
            if last or now - logged > 10:
                steps = run.step - logged_step
                means = dict(zip(("content", "style", "identity"), (sums / steps).tolist(), strict=True))
                rate = steps * options.batch_size * options.pairs / (now - logged)
                run.seconds += now - logged
                record(step=run.step, seconds=run.seconds, images_per_second=rate, **means)
                logged, logged_step, sums = now, run.step, torch.zeros(3)
            if last or now - saved > 60 * checkpoint_minutes:
                run.save(checkpoint)
                saved = now
            if last or now - sampled > 60 * sample_minutes:
                save_rgb(run.samples(photos, paintings), out.with_suffix(".samples") / f"{run.step:07d}.png")
                sampled = now
    run.save(checkpoint)
    state = {name: value.half().contiguous() for name, value in run.ema.module.state_dict().items()}
    with atomic_path(out) as temporary:
        save_file(state, temporary, metadata={"step": str(run.step), "options": json.dumps(asdict(options))})
    return out


class _Run:
    """What changes while a decoder is trained."""

    def __init__(self, encoder: Encoder, options: DecoderOptions, device: torch.device) -> None:
        self.options = options
        self.device = device
        dtype = torch.bfloat16 if options.bf16 else torch.float32
        torch.manual_seed(options.seed)
        self.encoder = encoder.requires_grad_(False).to(device, dtype).to(memory_format=torch.channels_last)
        self.decoder = Decoder(encoder.num_channels, options.width)
        for layer in self.decoder.children():
            assert isinstance(layer, ReflectConv2d) and layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.decoder.to(device).to(memory_format=torch.channels_last)
        self.ema = AveragedModel(self.decoder, multi_avg_fn=get_ema_multi_avg_fn(options.ema))  # type: ignore[no-untyped-call]
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=options.lr, weight_decay=1e-4)
        self.loss = torch.compile(self._loss) if options.compile else self._loss
        self.step = 0
        self.seconds = 0.0

    def load(self, file: Path) -> None:
        """Weights to start from."""
        try:
            self.decoder.load_state_dict(load_file(file))
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"{file}: not a decoder of width {self.options.width}: {error}") from None
        self.ema.module.load_state_dict(self.decoder.state_dict())

    def save(self, checkpoint: Path) -> None:
        with atomic_path(checkpoint) as temporary:
            torch.save(
                {
                    "options": asdict(self.options),
                    "step": self.step,
                    "seconds": self.seconds,
                    "decoder": self.decoder.state_dict(),
                    "ema": self.ema.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                },
                temporary,
            )

    def resume(self, checkpoint: Path) -> None:
        """Go on where ``checkpoint`` was written. Only its length may have changed since."""
        saved = torch.load(checkpoint, map_location=self.device, weights_only=True)
        then = DecoderOptions(**saved["options"])
        same = replace(then, steps=self.options.steps, compile=self.options.compile)
        if same != self.options:
            changed = [k for k, v in asdict(same).items() if v != getattr(self.options, k)]
            raise WeightsError(
                f"{checkpoint} was written with other options ({', '.join(changed)}): "
                "remove it to start anew, or give the same options to go on"
            )
        self.decoder.load_state_dict(saved["decoder"])
        self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = saved["step"], saved["seconds"]

    def train_step(self, photos: ImagePool, paintings: ImagePool) -> Tensor:
        """One step of the optimiser; the means of content, style and identity loss, on the CPU."""
        o = self.options
        torch.manual_seed(o.seed * 1_000_003 + self.step)
        photo = photos.crops(o.batch_size, o.size, (0.6, 1.0)).to(memory_format=torch.channels_last)
        painting = self._paintings(paintings).to(memory_format=torch.channels_last)
        count = o.batch_size * o.pairs
        identity = torch.rand(count, 1, 1, 1) < o.identity_share
        mixed = torch.rand(count, 1, 1, 1) < o.mix_share
        weight = torch.where(mixed, torch.rand(count, 1, 1, 1), torch.zeros(()))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, o)
        content, style, pixel = self.loss(photo, painting, identity.to(self.device), weight.to(self.device))
        self.optimizer.zero_grad()
        (content + o.style_weight * style + o.identity_weight * pixel).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.decoder.parameters(), o.clip)
        self.optimizer.step()
        self.ema.update_parameters(self.decoder)
        self.step += 1
        return torch.stack([content, style, pixel]).detach().cpu()

    def _paintings(self, pool: ImagePool) -> Tensor:
        o = self.options
        drawn = int((torch.rand(o.batch_size) < o.pattern_share).sum())
        crops = (
            colour_augmentation(pool.crops(o.batch_size - drawn, o.size, (0.4, 1.0))) if drawn < o.batch_size else None
        )
        parts = [] if crops is None else [crops]
        return torch.cat([*parts, patterns(drawn, o.size, self.device)] if drawn else parts)

    def _loss(self, photo: Tensor, painting: Tensor, identity: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Content, style and identity loss of all pairs.

        An identity sample is a photo that is its own style: it takes part in every loss, and in the
        pixel loss besides.
        """
        pairs = self.options.pairs
        with torch.no_grad():
            features = self.encoder.features(photo)
            own = [_tile(code_from_moments(moments(f)), pairs) for f in features]
            theirs = [code_from_moments(moments(f)) for f in self.encoder.features(painting)]
            # The k-th pairing of photo i is with painting i + k; the mix brings in painting i + k + 1.
            wanted = [
                _where(identity, mine, _paired(code, pairs).lerp(_paired(code, pairs, 1), weight))
                for mine, code in zip(own, theirs, strict=True)
            ]
            source = features[-1].repeat(pairs, 1, 1, 1)
            stylizer = Stylizer(self.encoder, self.decoder)
            target = stylizer.apply_code(source, wanted[-1])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            picture = self.decoder(target)
        height, width = photo.shape[-2:]
        picture = picture[..., :height, :width]
        seen = self.encoder.features(picture)
        found = [code_from_moments(moments(f)) for f in seen]
        pixel = (picture.float() - photo.repeat(pairs, 1, 1, 1)).square() * identity
        return content_loss(seen[-1], target).mean(), style_loss(found, wanted).mean(), pixel.mean()

    @torch.no_grad()
    def samples(self, photos: ImagePool, paintings: ImagePool) -> Tensor:
        """A grid: photos on top, paintings at the left, the averaged decoder's pictures between them."""
        size = self.options.size
        torch.manual_seed(0)
        a, b = (pool.crops(5, size, (1.0, 1.0)) for pool in (photos, paintings))
        rows = [torch.cat([torch.ones_like(a[:1]), a])]
        stylizer = Stylizer(self.encoder, cast(Decoder, self.ema.module))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
            for painting in b.chunk(len(b)):
                rows.append(torch.cat([painting, stylizer(a, stylizer.measure(painting))]))
        grid: Tensor = make_grid(torch.cat(rows).float().clamp(0, 1), nrow=6)
        return grid[None].cpu()


def _tile(code: StyleCode, pairs: int) -> StyleCode:
    return StyleCode(code.gamma.repeat(pairs, 1, 1, 1), code.beta.repeat(pairs, 1, 1, 1))


def _paired(code: StyleCode, pairs: int, shift: int = 0) -> StyleCode:
    """The code of painting i + k + shift for each photo i, one block for each k."""

    def rolled(t: Tensor) -> Tensor:
        return torch.cat([t.roll(-k - shift, 0) for k in range(pairs)])

    return StyleCode(rolled(code.gamma), rolled(code.beta))


def _where(mask: Tensor, a: StyleCode, b: StyleCode) -> StyleCode:
    return StyleCode(torch.where(mask, a.gamma, b.gamma), torch.where(mask, a.beta, b.beta))
