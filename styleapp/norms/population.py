"""Which population batch norm's statistics stand for: running, frozen, precise, of the batch; once a batch.

Section numbers are those of "Rethinking 'Batch' in BatchNorm" (Wu and Johnson 2021, arXiv 2105.07576).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from styleapp.norms.functional import EPS
from styleapp.norms.moments import Moments, merge, moments
from styleapp.norms.norm import per_channel

__all__ = [
    "FrozenBatchNorm",
    "batch_statistics",
    "checkpoint_safe",
    "momentum_from_keep",
    "precise_statistics",
    "shuffle_batch",
    "unshuffle_batch",
]


def momentum_from_keep(keep: float) -> float:
    """torch's momentum for the convention of Keras and of the paper, running = keep · running + (1 - keep) · new.

    Raises:
        ValueError: outside [0,1].
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep must be from 0 to 1, got {keep}")
    return 1 - keep


class FrozenBatchNorm(nn.Module):
    """Batch norm with fixed statistics and fixed γ, β: one multiplication and addition for each channel.

    y = x · s + (β - μ · s) with s = γ / sqrt(σ² + ε), computed in float32. All four are buffers: no
    optimiser sees them. Fresh from the constructor it is the identity exactly: σ² starts at 1 - ε.

    Args:
        num_channels: C.
        eps: added to the variance; 0 for checkpoints of implementations that had none.

    Shape:
        (N, C, *) to the same. Loads state dicts of batch norm with and without num_batches_tracked.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_channels: int, *, eps: float = EPS) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_channels))
        self.register_buffer("bias", torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels) - eps)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift."""
        scale, shift = self.scale_and_shift()
        wide = torch.promote_types(x.dtype, torch.float32)
        return (x.to(wide) * per_channel(scale, x).to(wide) + per_channel(shift, x).to(wide)).to(x.dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(γ / sqrt(σ² + ε), β - μ γ / sqrt(σ² + ε)), (C,) each, for folding into a convolution."""
        wide = torch.promote_types(self.running_var.dtype, torch.float32)
        scale = self.weight.to(wide) / (self.running_var.to(wide) + self.eps).sqrt()
        return scale, self.bias.to(wide) - self.running_mean.to(wide) * scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        # Batch norm without γ and β has the same statistics and the identity for an affine part.
        if f"{prefix}running_mean" in state_dict:
            state_dict.setdefault(f"{prefix}weight", torch.ones_like(self.weight))
            state_dict.setdefault(f"{prefix}bias", torch.zeros_like(self.bias))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """What is shown by print(module)."""
        return f"{self.num_channels}, eps={self.eps}"


def _tracking(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, every batch norm of ``model`` uses the statistics of the batch, also in evaluation (section 3.3).

    Running statistics, their count, momentum and mode are afterwards what they were.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    before = [(m, m.training, m.momentum, _buffers(m)) for m in layers]
    try:
        for layer in layers:
            layer.training, layer.momentum = True, 0.0
        yield
    finally:
        for layer, training, momentum, buffers in before:
            layer.training, layer.momentum = training, momentum
            for name, value in buffers.items():
                getattr(layer, name).copy_(value)


def _buffers(layer: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)}


@torch.no_grad()
def precise_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object] | None = None
) -> list[str]:
    """PreciseBN: set running mean and variance to those of all ``batches`` together (section 3.1).

    Moments are merged exactly in float64, so neither the number nor the size of the batches matters. Each
    layer normalises with the statistics of the batch meanwhile. A layer that runs several times in a
    forward pass gets the moments of all of them.

    Args:
        model: its batch norms that track statistics are measured; modes of other modules stay.
        batches: inputs.
        forward: how to run one; ``model(batch)`` by default.

    Returns:
        Names of the layers that never ran; they keep the statistics they had.

    Raises:
        Whatever ``forward`` raises; the model is then as it was. Also as it was, but for the two
        statistics, if all goes well: momentum, count and mode.
    """
    layers = _tracking(model)
    found: dict[str, Moments] = {}

    def measure(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
            x = inputs[0].double()
            m = moments(x, (0, *range(2, x.dim())))
            found[name] = merge(found[name], m) if name in found else m

        return hook

    handles = [layer.register_forward_hook(measure(name)) for name, layer in layers.items()]
    try:
        with batch_statistics(model):
            for batch in batches:
                model(batch) if forward is None else forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, m in found.items():
        layers[name].running_mean.copy_(m.mean.flatten())  # type: ignore[union-attr]
        layers[name].running_var.copy_(m.var.flatten())  # type: ignore[union-attr]
    return [name for name in layers if name not in found]


def shuffle_batch(x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """``x`` with its samples in random order, and that order, for :func:`unshuffle_batch`.

    Normalising in another order than that of the labels keeps a network from reading a sample's label
    off the statistics of its neighbours (section 6).
    """
    order = torch.randperm(x.shape[0], generator=generator).to(x.device)
    return x[order], order


def unshuffle_batch(x: Tensor, order: Tensor) -> Tensor:
    """Undo :func:`shuffle_batch`."""
    return x[order.argsort()]


def checkpoint_safe(bn: _BatchNorm, *, exact: bool = True) -> _BatchNorm:
    """Make a batch norm count each batch once under activation checkpointing, where forward runs twice.

    Exact (the default): the second run, inside the backward pass, normalises but updates nothing. Every
    buffer ends up as in plain training, and a layer outside a checkpoint is not disturbed.

    Otherwise by the momentum rule: with m' = 1 - sqrt(1 - m), in torch's convention, two updates with the
    same batch weigh as much as one with m, (1 - m')² = 1 - m; the keep-momentum becomes its square root.
    Right only where every forward is run twice; num_batches_tracked counts double.

    Args:
        bn: changed in place and returned.
        exact: which of the two.

    Raises:
        ValueError: for the momentum rule with momentum=None: the cumulative average has no momentum.
    """
    if exact:
        bn.register_forward_pre_hook(_before_recomputation)
        bn.register_forward_hook(_after_recomputation, always_call=True)
    elif bn.momentum is None:
        raise ValueError("the momentum rule needs a momentum; with momentum=None use exact=True")
    else:
        bn.momentum = 1 - math.sqrt(1 - bn.momentum)
    return bn


def _before_recomputation(bn: nn.Module, _: Any) -> None:
    # Recomputation happens inside a backward pass, an ordinary forward never does.
    if bn.training and torch._C._current_graph_task_id() != -1:
        # Copies take the update. The originals must not be written to: the backward pass needs them.
        bn.__dict__["_before"] = dict(bn._buffers)
        bn._buffers.update({k: None if v is None else v.clone() for k, v in bn._buffers.items()})


def _after_recomputation(bn: nn.Module, _: Any, __: Any) -> None:
    before = bn.__dict__.pop("_before", None)
    if before is not None:
        bn._buffers.update(before)
