"""Choose a norm by name, and swap the norms of any network."""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from styleapp.norms.batch_norms import (
    BatchRenorm,
    DecorrelatedBatchNorm,
    GhostBatchNorm,
    ModeNorm,
    RepresentativeBatchNorm,
)
from styleapp.norms.conditional import AttentiveNorm, ConditionalInstanceNorm
from styleapp.norms.kin import (
    ActNorm,
    DynamicErf,
    DynamicTanh,
    EvoNormB0,
    EvoNormS0,
    FilterResponseNorm,
    GlobalResponseNorm,
    LocalContrastNorm,
    ScaleNorm,
)
from styleapp.norms.mixed import (
    BatchInstanceNorm,
    HalfInstanceNorm,
    IBNa,
    IBNb,
    InstanceLayerNorm,
    SwitchableNorm,
)
from styleapp.norms.named import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LayerNorm2d,
    LocalResponseNorm,
    RMSNorm,
    SyncBatchNorm,
)
from styleapp.norms.norm import Norm
from styleapp.norms.population import FrozenBatchNorm
from styleapp.norms.steps import CrossIterationBatchNorm, MovingAverageBatchNorm, OnlineNorm

__all__ = ["NORMS", "Report", "convert_norms", "convert_sync", "freeze", "make_norm", "unfreeze"]

NORMS: dict[str, Callable[..., nn.Module]] = {
    "bn": BatchNorm,
    "syncbn": SyncBatchNorm,
    "frozenbn": FrozenBatchNorm,
    "ghostbn": GhostBatchNorm,
    "brn": BatchRenorm,
    "dbn": functools.partial(DecorrelatedBatchNorm, iterations=None),
    "iternorm": DecorrelatedBatchNorm,
    "modenorm": ModeNorm,
    "rbn": RepresentativeBatchNorm,
    "mabn": MovingAverageBatchNorm,
    "online": OnlineNorm,
    "in": InstanceNorm,
    "ln": functools.partial(GroupNorm, num_groups=1),
    "ln2d": LayerNorm2d,
    "layernorm": LayerNorm,
    "rms": RMSNorm,
    "scalenorm": ScaleNorm,
    "lrn": LocalResponseNorm,
    "lcn": LocalContrastNorm,
    "pono": functools.partial(Norm, over="position"),
    "gn": GroupNorm,
    "cin": ConditionalInstanceNorm,
    "attentive": AttentiveNorm,
    "switchable": SwitchableNorm,
    "ibn-a": IBNa,
    "ibn-b": IBNb,
    "half-in": HalfInstanceNorm,
    "bin": BatchInstanceNorm,
    "iln": InstanceLayerNorm,
    "frn": FilterResponseNorm,
    "grn": GlobalResponseNorm,
    "actnorm": ActNorm,
    "evonorm-b0": EvoNormB0,
    "evonorm-s0": EvoNormS0,
    "dyt": DynamicTanh,
    "derf": DynamicErf,
    "none": nn.Identity,
}
"""Every norm that is made of a number of channels. "ln" is over (C, H, W), "ln2d" over C at each position."""

_ARGUMENT = {
    "gn": "num_groups",
    "ghostbn": "virtual_batch_size",
    "dbn": "num_groups",
    "iternorm": "num_groups",
    "modenorm": "modes",
    "mabn": "window",
    "lrn": "size",
    "lcn": "kernel_size",
    "ibn-a": "ratio",
    "cin": "num_styles",
    "attentive": "mixtures",
    "evonorm-s0": "num_groups",
}
_WITHOUT_EPS = ("lrn", "dyt", "derf", "none")


def make_norm(norm: str | Callable[..., nn.Module] | None, num_channels: int, **options: Any) -> nn.Module:
    """A norm for ``num_channels`` channels.

    Args:
        norm: a name of :data:`NORMS`, with its one argument after a colon where it has one ("gn:32", "ghostbn:16",
            "ibn-a:0.25", "cin:24"); a callable that takes the channels; or None for no norm.
        num_channels: C.
        options: passed on.

    Raises:
        ValueError: for an unknown name (the message suggests one), an argument that is no number, or one
            for a norm that takes none.
    """
    if norm is None:
        return nn.Identity()
    if not isinstance(norm, str):
        return norm(num_channels, **options)
    name, argument = _name(norm), norm.partition(":")[2]
    if name not in NORMS:
        close = difflib.get_close_matches(name, NORMS, n=1, cutoff=0.5)  # names are short
        hint = f", did you mean {close[0]!r}?" if close else ";"
        raise ValueError(f"unknown norm {name!r}{hint} choices: {', '.join(NORMS)}")
    if argument:
        if name not in _ARGUMENT:
            raise ValueError(f"norm {name!r} takes no argument, got {norm!r}; {', '.join(_ARGUMENT)} do")
        try:
            value = float(argument) if name == "ibn-a" else int(argument)
        except ValueError:
            raise ValueError(f"the argument of {name!r} must be a number, got {norm!r}") from None
        options = {_ARGUMENT[name]: value, **options}
    if name == "none":
        return nn.Identity()
    return NORMS[name](num_channels, **options)


def _name(norm: str) -> str:
    return norm.partition(":")[0].lower().replace("_", "-")


@dataclass
class Report:
    """What :func:`convert_norms` did, by the names of the modules.

    Attributes:
        converted: old and new class.
        kept_affine: modules whose γ and β were taken over.
        lost_affine: modules that had γ and β which did not fit the new norm.
        original: the old modules: pass them to ``convert_norms`` as ``norm`` to go back.
    """

    converted: dict[str, str] = field(default_factory=dict)
    kept_affine: list[str] = field(default_factory=list)
    lost_affine: list[str] = field(default_factory=list)
    original: dict[str, nn.Module] = field(default_factory=dict)


def convert_norms(
    model: nn.Module,
    norm: str | Callable[..., nn.Module] | dict[str, nn.Module] | None,
    where: Callable[[str, nn.Module], bool] = lambda name, module: True,
    **options: Any,
) -> Report:
    """Replace every norm in ``model``, in place.

    γ and β are kept where both norms have them in the same shape. Devices, dtypes, eps and modes are kept.
    A module that is used in several places stays one module.

    Args:
        model: any; its batch, instance, group and layer norms are found, ours and torch.nn's. (The model
            itself, if it is a norm, is not replaced: there is nothing that holds it.)
        norm: for :func:`make_norm`; or ``report.original`` of an earlier call, to go back.
        where: (name, module) → whether to replace it.
        options: for :func:`make_norm`.

    Raises:
        ValueError: for an unknown norm, or one that does not fit a module's channels (the message names the
            module; nothing is changed then).
    """
    report = Report()
    replacements: dict[int, nn.Module] = {}
    slots: list[tuple[nn.Module, str, str, nn.Module]] = []
    for name, module in model.named_modules(remove_duplicate=False):
        parent_name, _, attribute = name.rpartition(".")
        if not name or _num_channels(module) is None or not where(name, module):
            continue
        parent = model.get_submodule(parent_name)
        if _num_channels(parent) is not None and parent is not model:
            continue  # a part of a norm that is replaced as a whole
        if id(module) not in replacements:
            replacements[id(module)] = _replacement(name, module, norm, options, report)
        slots.append((parent, attribute, name, module))
    for parent, attribute, name, module in slots:
        new = replacements[id(module)]
        if new is not module:
            report.original[name] = module
            report.converted[name] = f"{type(module).__name__} → {type(new).__name__}"
            setattr(parent, attribute, new)
    return report


def _replacement(name: str, module: nn.Module, norm: Any, options: dict[str, Any], report: Report) -> nn.Module:
    if isinstance(norm, dict):
        return norm.get(name, module)
    channels = _num_channels(module)
    assert channels is not None
    takes_eps = isinstance(norm, str) and _name(norm) not in _WITHOUT_EPS
    extra = {"eps": module.eps} if takes_eps and _has_eps(module) else {}
    try:
        new = make_norm(norm, channels, **{**extra, **options})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {type(module).__name__} of {channels} channels: {error}") from None
    like = next(iter([*module.parameters(), *module.buffers()]), None)
    if like is not None and like.is_floating_point():
        new.to(like.device, like.dtype)
    _copy_affine(name, module, new, report)
    _copy_statistics(module, new)
    return new.train(module.training)


def _has_eps(module: nn.Module) -> bool:
    return isinstance(getattr(module, "eps", None), float)


def _copy_affine(name: str, old: nn.Module, new: nn.Module, report: Report) -> None:
    pairs = [(getattr(old, k, None), getattr(new, k, None)) for k in ("weight", "bias")]
    if all(a is None for a, _ in pairs):
        return
    if all(isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape for a, b in pairs):
        with torch.no_grad():
            for a, b in pairs:
                b.copy_(a)  # type: ignore[union-attr]
        report.kept_affine.append(name)
    else:
        report.lost_affine.append(name)


def _copy_statistics(old: nn.Module, new: nn.Module) -> None:
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        a, b = getattr(old, key, None), getattr(new, key, None)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            b.copy_(a)
    for key in ("momentum", "track_running_stats"):
        if isinstance(new, _BatchNorm) and isinstance(old, _BatchNorm):
            setattr(new, key, getattr(old, key))


# What is a norm and an activation in one (EvoNorm), or more than one input's, is not replaced by a norm.
_OURS = (
    FrozenBatchNorm,
    DecorrelatedBatchNorm,
    LocalResponseNorm,
    RepresentativeBatchNorm,
    MovingAverageBatchNorm,
    OnlineNorm,
    SwitchableNorm,
    IBNa,
    HalfInstanceNorm,
    BatchInstanceNorm,
    InstanceLayerNorm,
    FilterResponseNorm,
    DynamicTanh,
    Norm,
)


def _num_channels(module: nn.Module) -> int | None:
    """C of a module that is a norm, else None."""
    if isinstance(module, CrossIterationBatchNorm):
        return None
    if isinstance(module, _BatchNorm | _InstanceNorm):
        return module.num_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return module.normalized_shape[-1] if len(module.normalized_shape) == 1 else None
    if isinstance(module, _OURS) or type(module).__name__ == "FrozenBatchNorm2d":  # torchvision's and detectron2's
        return int(getattr(module, "num_channels", None) or len(cast(Tensor, module.weight)))
    return None


def convert_sync(model: nn.Module, process_group: Any = None) -> Report:
    """Every batch norm to :class:`~styleapp.norms.named.SyncBatchNorm`, with its parameters and statistics."""
    return convert_norms(model, SyncBatchNorm, lambda _, m: isinstance(m, _BatchNorm), process_group=process_group)


def freeze(model: nn.Module) -> Report:
    """Every batch norm that tracks statistics to :class:`~styleapp.norms.population.FrozenBatchNorm`."""
    report = convert_norms(model, "frozenbn", lambda _, m: isinstance(m, _BatchNorm) and m.running_mean is not None)
    if not report.converted:
        warnings.warn("freeze found no batch norm with running statistics", stacklevel=2)
    return report


def unfreeze(model: nn.Module) -> Report:
    """Every frozen batch norm back to a trainable :class:`~styleapp.norms.named.BatchNorm`."""
    return convert_norms(model, "bn", lambda _, m: isinstance(m, FrozenBatchNorm))
