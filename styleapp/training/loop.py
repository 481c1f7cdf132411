"""What every training has in common: a loop that can be killed, resumed and read afterwards."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from styleapp.errors import OptionError, TrainingError, WeightsError
from styleapp.files import atomic_path, save_rgb, save_tensors
from styleapp.models import Decoder, Encoder
from styleapp.models.layers import ReflectConv2d
from styleapp.models.recorded import Recorded, layout
from styleapp.options import TrainOptions
from styleapp.training.moves import random_motion

__all__ = ["Losses", "Report", "Run", "check_out", "learning_rate", "new_decoder", "train"]

BEFORE = {
    "upsampling": "nearest",
    "skips": "",
    "shifts": False,
    "freeze": False,
    "equivariance_every": 1,
    "range_weight": 0.0,
}
"""What a checkpoint had that is older than these options."""

Report = Callable[[dict[str, Any]], None]


class Losses(NamedTuple):
    """Means over a batch: what :class:`TrainOptions` weighs."""

    content: Tensor
    style: Tensor
    identity: Tensor
    grid: Tensor
    equivariance: Tensor
    range: Tensor


def learning_rate(step: int, options: TrainOptions) -> float:
    """The share of the peak: a linear rise over ``warmup`` steps, then half a cosine down to zero at ``steps``."""
    rise = min(1.0, (step + 1) / max(1, options.warmup))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / options.steps)))


def new_decoder(
    encoder: Encoder, width: float, norm: str = "none", upsampling: str = "nearest", skips: Sequence[str] = ()
) -> Decoder:
    """A decoder of fresh filters, He's initialisation; of what comes in from ``skips`` it makes nothing at first.

    Raises:
        OptionError: for a norm that there is not, or whose groups do not divide the channels.
    """
    channels = {name: encoder.layer_channels[name] for name in skips}
    try:
        decoder = Decoder(encoder.num_channels, width, norm, upsampling, channels)
    except ValueError as error:
        raise OptionError(f"no decoder with norm {norm!r}: {error}") from None
    for name in channels:
        nn.init.zeros_(decoder.get_parameter(f"skip_{name}.weight"))
    for layer in decoder.modules():
        if isinstance(layer, ReflectConv2d):
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return decoder


class Run(ABC):
    """What changes while a network is trained.

    Args:
        encoder: trained; frozen from here on.
        network: its parameters are trained, and their moving average is what is saved.
        groups: of the optimiser, where they are not simply all parameters; "lr" of each is its peak.
    """

    def __init__(
        self,
        encoder: Encoder,
        network: nn.Module,
        options: TrainOptions,
        device: torch.device,
        groups: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        self.options = options
        self.device = device
        dtype = torch.bfloat16 if options.bf16 else torch.float32
        self.encoder = encoder.requires_grad_(False).to(device, dtype).to(memory_format=torch.channels_last)
        self.network = network
        self.ema = copy.deepcopy(network).requires_grad_(False)
        parameters = [{"params": list(network.parameters())}] if groups is None else list(groups)
        cuda = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=1e-4, fused=cuda)
        self.beside = torch.cuda.Stream(device) if cuda else None
        self.recorded: dict[object, Recorded[tuple[Tensor, list[Tensor | None]]]] = {}
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.seconds = 0.0

    @abstractmethod
    def draw(self) -> tuple[Tensor | None, ...]:
        """A random batch, on the device."""

    @abstractmethod
    def losses(self, *batch: Tensor | None) -> Losses:
        """Of a batch of :meth:`draw`."""

    @abstractmethod
    def samples(self) -> Tensor:
        """(1, 3, H, W): a picture to look at."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The averaged weights, as they are to be saved."""

    def about(self) -> dict[str, str]:
        """What else is to be known of the weights."""
        return {}

    def train_step(self) -> Tensor:
        """One step of the optimiser; the losses, (6,). Does not wait for a GPU."""
        o = self.options
        torch.manual_seed(o.seed * 1_000_003 + self.step)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * learning_rate(self.step, o)
        batch = self._drawn()
        compute: Callable[..., tuple[Tensor, list[Tensor | None]]] = self._gradients
        if self.device.type == "cuda":
            if (key := layout(*batch)) not in self.recorded:
                self.recorded[key] = Recorded(compute, *batch)
            compute = self.recorded[key]
        losses, gradients = compute(*batch)
        for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(self.network.parameters(), o.clip)
        self.optimizer.step()
        self._average()
        self.step += 1
        return losses

    def motion(self) -> Tensor | None:
        """How this step's photos move, for the loss of detail that does not follow them; None where it is left out."""
        o = self.options
        if not o.equivariance_weight or self.step % o.equivariance_every:
            return None
        return random_motion(o.size).to(self.device)

    @torch.no_grad()
    def _average(self) -> None:
        """The moving average goes on. (torch.optim.swa_utils counts on the CPU and waits for the GPU to tell it.)"""
        share = 1 - self.options.ema if self.step else 1.0
        for mean, parameter in zip(self.ema.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(parameter, share)
        for kept, buffer in zip(self.ema.buffers(), self.network.buffers(), strict=True):
            kept.copy_(buffer)

    def _gradients(self, *batch: Tensor | None) -> tuple[Tensor, list[Tensor | None]]:
        """The losses, (6,), and the gradient of each parameter."""
        o = self.options
        losses = self.losses(*batch)
        self.optimizer.zero_grad()
        weights = (1.0, o.style_weight, o.identity_weight, o.grid_weight, o.equivariance_weight, o.range_weight)
        total = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return torch.stack(losses).detach(), [parameter.grad for parameter in self.network.parameters()]

    def _drawn(self) -> tuple[Tensor | None, ...]:
        """A batch. A GPU crops it while it still works on the step before, of which that part does not wait."""
        if self.beside is None:
            return self.draw()
        with torch.cuda.stream(self.beside):
            batch = self.draw()
        main = torch.cuda.current_stream(self.device)
        main.wait_stream(self.beside)
        for tensor in batch:
            if tensor is not None:
                tensor.record_stream(main)
        return batch

    def check(self, checkpoint: Path) -> None:
        """That it has not diverged. A weight that is not finite stays so, and a step later all are.

        Raises:
            TrainingError: if it has. What ``checkpoint`` holds is of before.
        """
        if not torch.stack([p.detach().isfinite().all() for p in self.network.parameters()]).all():
            before = f"; {checkpoint} is of a step before that" if checkpoint.exists() else ""
            raise TrainingError(
                f"the training diverged before step {self.step}: its weights are no finite numbers any more{before}. "
                f"Start anew with another seed or a lower rate than {self.options.lr:g}"
            )

    def save(self, checkpoint: Path) -> None:
        """Everything that is needed to go on.

        Raises:
            TrainingError: if the training has diverged; what was saved before is kept.
        """
        self.check(checkpoint)
        with atomic_path(checkpoint) as temporary:
            torch.save(
                {
                    "options": asdict(self.options),
                    "step": self.step,
                    "seconds": self.seconds,
                    "decoder": self.network.state_dict(),
                    "ema": self.ema.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                },
                temporary,
            )

    def resume(self, checkpoint: Path) -> None:
        """Go on where ``checkpoint`` was written. Only its length may have changed since.

        Raises:
            WeightsError: if it cannot be read, is of another network or of other options.
        """
        try:
            saved = torch.load(checkpoint, map_location=self.device, weights_only=True)
            self._restore(saved, checkpoint)
        except OSError as error:
            raise WeightsError(f"{checkpoint}: cannot be read ({error.strerror})") from None
        except (RuntimeError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(
                f"{checkpoint}: no checkpoint that this training can go on from ({reason}): remove it to start anew"
            ) from None

    def _restore(self, saved: dict[str, Any], checkpoint: Path) -> None:
        known = asdict(self.options)
        stored = {**BEFORE, **saved["options"]}
        then = type(self.options)(**{name: value for name, value in stored.items() if name in known})
        same = replace(then, steps=self.options.steps, compile=self.options.compile)
        if same != self.options:
            changed = [k for k, v in asdict(same).items() if v != getattr(self.options, k)]
            raise WeightsError(
                f"{checkpoint} was written with other options ({', '.join(changed)}): "
                "remove it to start anew, or give the same options to go on"
            )
        self.network.load_state_dict(saved["decoder"])
        average = {name.removeprefix("module."): value for name, value in saved["ema"].items()}
        average.pop("n_averaged", None)  # of 0.5 and before
        self.ema.load_state_dict(average)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = saved["step"], saved["seconds"]


def check_out(out: Path) -> None:
    """Refuse a place for weights that cannot be written, before any image is read; its folder is made.

    Raises:
        OptionError: for another suffix than .safetensors.
        WeightsError: if nothing can be written there.
    """
    if out.suffix != ".safetensors":
        raise OptionError(f"{out}: the name of a file of weights ends with .safetensors")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{out}: cannot be written ({error.strerror})") from None
    if out.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise WeightsError(f"{out}: cannot be written")


def train(
    run: Run,
    out: Path,
    *,
    minutes: float = math.inf,
    checkpoint_minutes: float = 2.0,
    sample_minutes: float = 10.0,
    stop: Callable[[], int] = lambda: 0,
    report: Report = lambda record: None,
    **about: Any,
) -> Path:
    """Train until the steps of the options or ``minutes`` are over and write the averaged weights to ``out``.

    Beside ``out`` lie its checkpoint (``.ckpt``: if there is one, the run goes on from it, also after a
    kill), its log (``.log.jsonl``: the options, then the mean losses since the line before) and grids of
    samples (``.samples/``). ``out`` is written at the end of every call, finished or not.

    Args:
        stop: asked after every step; where it is true, that was the last of this call.
        about: goes into the first line of the log.

    Raises:
        WeightsError: if the checkpoint cannot be read, or does not fit the options.
        TrainingError: if the training diverges; the checkpoint stays as it was before, and ``out`` is not written.
    """
    started = time.monotonic()
    options = run.options
    checkpoint, log = out.with_suffix(".ckpt"), out.with_suffix(".log.jsonl")
    if checkpoint.exists():
        run.resume(checkpoint)
    with log.open("a") as lines:

        def record(**entry: Any) -> None:
            lines.write(json.dumps(entry) + "\n")
            lines.flush()
            report(entry)

        record(options=asdict(options), step=run.step, **about)
        logged = saved = sampled = time.monotonic()
        logged_step, sums = run.step, torch.zeros(len(Losses._fields), device=run.device)
        while run.step < options.steps and time.monotonic() - started < 60 * minutes and not stop():
            sums += run.train_step()
            now = time.monotonic()
            last = run.step == options.steps
            if last or now - logged > 10:
                steps = run.step - logged_step
                means = dict(zip(Losses._fields, (sums / steps).tolist(), strict=True))
                run.check(checkpoint)
                rate = steps * options.batch_size * options.pairs / (now - logged)
                run.seconds += now - logged
                record(step=run.step, seconds=run.seconds, images_per_second=rate, **means)
                logged, logged_step, sums = now, run.step, torch.zeros_like(sums)
            if last or now - saved > 60 * checkpoint_minutes:
                run.save(checkpoint)
                saved = now
            if last or now - sampled > 60 * sample_minutes:
                save_rgb(run.samples(), out.with_suffix(".samples") / f"{run.step:07d}.png")
                sampled = now
    run.save(checkpoint)
    state = {name: value.half() for name, value in run.state().items()}
    save_tensors(state, out, {"step": str(run.step), "options": json.dumps(asdict(options)), **run.about()})
    return out
