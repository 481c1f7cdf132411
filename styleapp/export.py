"""The network as an ONNX file, for programs that have no PyTorch: browsers, phones, other languages."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim

from styleapp import __version__
from styleapp.errors import ImageError, OptionError
from styleapp.files import atomic_path, check_place
from styleapp.images import Picture
from styleapp.models import StyleCode, Stylizer, TransformerNet
from styleapp.options import Options
from styleapp.pipeline import StyleTransfer
from styleapp.styles import Style

__all__ = ["NORMS", "check_onnx_output", "export_onnx"]

NORMS = ("auto", "cin", "adain", "in")
"""What can be exported: networks whose norms match moments."""


LEAST_TORCH = (2, 14)
"""The oldest that this was tried with and works: what 2.8 writes of CIN fails for sides that are no multiple of 8."""


class _OneStyle(nn.Module):
    gamma: Tensor
    beta: Tensor

    def __init__(self, stylizer: Stylizer, code: StyleCode, alpha: float) -> None:
        super().__init__()
        self.stylizer = stylizer
        self.alpha = alpha
        self.register_buffer("gamma", code.gamma.clone())
        self.register_buffer("beta", code.beta.clone())

    def forward(self, photo: Tensor) -> Tensor:
        picture: Tensor = self.stylizer(photo, StyleCode(self.gamma, self.beta), self.alpha)
        return picture.clamp(0, 1)


class _AnyStyle(nn.Module):
    def __init__(self, stylizer: Stylizer, alpha: float) -> None:
        super().__init__()
        self.stylizer = stylizer
        self.alpha = alpha

    def forward(self, photo: Tensor, painting: Tensor) -> Tensor:
        picture: Tensor = self.stylizer(photo, self.stylizer.measure(painting), self.alpha)
        return picture.clamp(0, 1)


class _Imported(nn.Module):
    def __init__(self, network: TransformerNet, alpha: float) -> None:
        super().__init__()
        self.network = network
        self.alpha = alpha

    def forward(self, photo: Tensor) -> Tensor:
        picture: Tensor = self.network(photo).clamp(0, 1)
        return photo + self.alpha * (picture - photo)


def export_onnx(
    transfer: StyleTransfer,
    out: Path,
    style: Style | None = None,
    options: Options | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, str]:
    """Write a network as an ONNX file: photos in, pictures out, float32, for any number of photos of any one size.

    Its input ``photo`` and its output ``picture`` are (N, 3, H, W), RGB in [0,1], H and W of at least 16. With a style
    it has that one inside. Without, a second input ``painting``, (1, 3, h, w), is measured each time: a short side of
    512 is what the networks were trained with. The strength is inside.

    Args:
        transfer: in float32, on the CPU.
        style: as for :meth:`StyleTransfer.stylize`.
        options: of these ``alpha``, ``norm`` (:data:`NORMS`; auto is adain without a style), ``style_size``,
            ``refine`` and, with a style, ``detail`` count.

    Returns:
        What the file's metadata say of it.

    Raises:
        OptionError: for another norm, "in" without a style, without the packages that write such files, or for a
            PyTorch older than :data:`LEAST_TORCH`.
        ImageError: if it cannot be written.
        WeightsError: for a network that is not there.
    """
    options = options or Options()
    check_onnx_output(out, overwrite)
    if tuple(map(int, torch.__version__.split(".")[:2])) < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        raise OptionError(f"export needs PyTorch {least} or later, found {torch.__version__}")
    try:  # what torch writes with
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OptionError(f"export needs pip install 'styleapp[onnx]' ({error})") from None
    if transfer.precision != "fp32" or transfer.device.type != "cpu":
        raise OptionError(f"export takes the CPU and fp32, not {transfer.device} and {transfer.precision}")
    if options.norm not in NORMS:
        raise OptionError(f"export takes the norms {', '.join(NORMS)}, not {options.norm}")
    options = transfer.styles.settled(options, [] if style is None else [style])
    if style is None and options.norm == "in":
        raise OptionError("norm in has one network for each style: name one")
    if style is None and options.detail != 1:
        raise OptionError("detail other than 1 needs a style to put into the file")
    about = {"styleapp": __version__, "norm": options.norm, "alpha": f"{options.alpha:g}"}
    photo = torch.zeros(2, 3, 40, 56)  # sizes stand for any
    sizes: dict[str, dict[int, Dim]] = {
        "photo": {0: Dim("batch"), 2: Dim("height", min=16), 3: Dim("width", min=16)},
    }
    inputs: tuple[Tensor, ...] = (photo,)
    if style is None:
        module: nn.Module = _AnyStyle(transfer.networks.of(options.norm), options.alpha)
        inputs = (photo, torch.zeros(1, 3, 48, 64))
        sizes["painting"] = {2: Dim("painting_height", min=16), 3: Dim("painting_width", min=16)}
    else:
        about["style"] = _name_of(style)
        if options.norm == "in" and transfer.networks.is_transformer(style):
            module = _Imported(transfer.networks.transformer(str(style)), options.alpha)
        else:
            code = transfer.styles.code(style, options.style_size, options.norm, options.refine)
            module = _OneStyle(transfer.networks.of(options.norm, [style], options.detail), code, options.alpha)
    with _without_remarks(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            verbose=False,
            input_names=list(sizes),
            output_names=["picture"],
            dynamic_shapes=sizes,
        )
    assert program is not None
    program.model.metadata_props.update(about)
    program.model.producer_name, program.model.producer_version = "styleapp", __version__
    given, made = program.model.graph.inputs[0], program.model.graph.outputs[0]
    made.shape = given.shape  # cropping hides from the exporter that they are the same
    try:
        with atomic_path(out) as temporary:
            program.save(temporary)
    except OSError as error:
        raise ImageError(f"{out}: cannot be written ({error.strerror or error})") from None
    return about


def check_onnx_output(path: Path, overwrite: bool = False) -> None:
    """Refuse a place that cannot be written, before any work is done.

    Raises:
        OptionError: for another suffix than .onnx.
        ImageError: as for :func:`styleapp.files.check_output`.
    """
    if path.suffix.lower() != ".onnx":
        raise OptionError(f"{path}: the name of an ONNX file ends with .onnx")
    check_place(path, overwrite)


def _name_of(style: Style) -> str:
    if isinstance(style, (str, os.PathLike)):
        return Path(style).stem
    if isinstance(style, StyleCode):
        return "a code"
    if isinstance(style, (bytes, Image.Image, Picture)):
        return "a painting"
    parts = style.items() if isinstance(style, Mapping) else style
    return " + ".join(f"{weight:g} {_name_of(part)}" for part, weight in parts)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """What torch and onnxscript say of their own affairs on the way is of no use to anyone here."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
