"""The encoder in integers of 8 bits: for photos, on CPUs that multiply these twice as fast as bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from styleapp.models.layers import extended, max_pool2x2, padded
from styleapp.models.vgg import Encoder

__all__ = ["Int8Encoder", "add_int8_conv2d", "int8_conv2d", "packed", "scaled", "works"]


class Int8Encoder:
    """What :class:`Encoder` computes, with weights and features of 8 bits between its layers.

    For each convolution, of whole numbers w (-127 to 127) and x (0 to 255):

        y = round(relu(step · Σ w·x + bias)), cut to 0 to 255; relu(step · Σ w·x + bias) for the last

    Sums are exact, in 32 bits. Each channel of x has a unit of its own, what 1 is worth in it: 1/255 of the most that
    photos have there. It costs nothing: w has it inside, as relu(u·x) = u·relu(x) (Nagel et al. 2021, A white paper
    on neural network quantization, sections 2.2 and 3.2).

    Args:
        encoder: whose layers these are.
        tensors: for each convolution ``conv1_1.weight`` int8 (O, C, 3, 3), ``.step`` float32 (O,), ``.bias`` float32
            (O,) in units of its output, and ``.unit`` float32 (O,) but for the last.

    Raises:
        ValueError: if ``tensors`` do not fit the layers.
    """

    def __init__(self, encoder: Encoder, tensors: Mapping[str, Tensor]) -> None:
        self.names = encoder.names
        self.last = encoder.last
        self._convs: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._units: dict[str, Tensor] = {}
        for name in (n for n in self.names if n != "M"):
            shape = encoder.get_parameter(f"{name}.weight").shape
            wanted = {"weight": shape, "step": shape[:1], "bias": shape[:1], "unit": shape[:1]}
            if name == self.names[-1]:
                del wanted["unit"]
            for kind, size in wanted.items():
                found = tensors.get(f"{name}.{kind}")
                if found is None or found.shape != size or (found.dtype == torch.int8) != (kind == "weight"):
                    there = "nothing" if found is None else f"{tuple(found.shape)}, {found.dtype}"
                    raise ValueError(f"{name}.{kind}: {there}, expected {tuple(size)}")
            step = tensors[f"{name}.step"]
            self._convs[name] = (packed(tensors[f"{name}.weight"], step), step, tensors[f"{name}.bias"])
            if "unit" in wanted:
                self._units[name.replace("conv", "relu")] = tensors[f"{name}.unit"]

    @torch.no_grad()
    def features(
        self, image: Tensor, layers: Sequence[str], dtype: torch.dtype = torch.float32, *, whole: bool = False
    ) -> list[Tensor]:
        """As :meth:`Encoder.features`, in ``dtype``; of an image in [0,1], whose values are rounded to 8 bits.

        Args:
            whole: all but the last as the whole numbers that they are, uint8: what :meth:`projection` takes.

        Raises:
            ValueError: for a name that this network does not have.
        """
        if unknown := set(layers) - {*self._units, self.last}:
            raise ValueError(f"unknown layers {sorted(unknown)}; choices: {', '.join([*self._units, self.last])}")
        x = (image.float() * 255).round_().clamp_(0, 255).to(torch.uint8)
        x = x.contiguous(memory_format=torch.channels_last)
        found: list[Tensor] = []
        for name in self.names:
            if name == "M":
                x = max_pool2x2(extended(x, x.shape[2] % 2, x.shape[3] % 2))  # "ceil mode"
                continue
            layer = name.replace("conv", "relu")
            x = int8_conv2d(padded(x, "reflect"), *self._convs[name], dtype if layer == self.last else torch.uint8)
            if layer in layers:
                as_is = whole or layer == self.last
                found.append(x if as_is else scaled(x, self.unit(layer), None, dtype))
            if len(found) == len(set(layers)):
                break
        return found

    def unit(self, layer: str) -> Tensor:
        """What 1 is worth in each channel of a layer but the last, (1, C, 1, 1)."""
        return self._units[layer][None, :, None, None]

    def projection(self, layer: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Kernel and step of :func:`int8_conv2d` for the whole numbers of a layer: (O, C, 1, 1) of its features.

        The units go into the weights, which are then rounded to 8 bits, each row in steps of its own.
        """
        weight = weight.detach().float() * self._units[layer][:, None, None]
        step = weight.abs().amax((1, 2, 3)).clamp_min(torch.finfo(torch.float32).tiny) / 127
        return packed((weight / step[:, None, None, None]).round().to(torch.int8), step), step


def packed(weight: Tensor, step: Tensor) -> Tensor:
    """An int8 kernel in the order in which oneDNN wants it."""
    result: Tensor = torch.ops.onednn.qconv_prepack(weight, step, 1.0, 0, [1, 1], [0, 0], [1, 1], 1, None)
    return result


def int8_conv2d(
    x: Tensor,
    kernel: Tensor,
    step: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    then: Literal["relu", "none"] = "relu",
) -> Tensor:
    """relu(step · Σ w·x + bias) of a kernel from :func:`packed`, rounded and cut where ``dtype`` is uint8.

    Args:
        x: uint8 (N, C, H, W), channels_last; no padding is added.
        step, bias: float32 (O,).
        then: "none" leaves the relu out.
    """
    zero = torch.zeros(len(step), dtype=torch.int8)
    result: Tensor = torch.ops.onednn.qconv2d_pointwise(
        *(x, 1.0, 0), *(kernel, step, zero), bias, [1, 1], [0, 0], [1, 1], 1, *(1.0, 0), dtype, then, [], ""
    )
    return result


def add_int8_conv2d(y: Tensor, x: Tensor, kernel: Tensor, step: Tensor) -> Tensor:
    """``y + step · Σ w·x`` in one pass over memory, rounded once; ``y`` may change."""
    zero = torch.zeros(len(step), dtype=torch.int8)
    convolution = [1, 1], [0, 0], [1, 1], 1
    added: tuple[object, ...] = (1.0, 0, y.dtype, 1.0, 0, "sum", 1.0, "none", [], "")
    result: Tensor = torch.ops.onednn.qconv2d_pointwise.binary(
        *(x, 1.0, 0), *(kernel, step, zero), y, None, *convolution, *added
    )
    return result


def scaled(x: Tensor, scale: Tensor, shift: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``x`` · scale + shift, worked out in float32 part by part, so that memory is gone over once.

    Args:
        x: uint8 (N, C, H, W).
        scale, shift: (N or 1, C, 1, 1); no shift for None.
    """
    channels, width = x.shape[1], x.shape[3]
    out = torch.empty(x.shape, dtype=dtype, memory_format=torch.channels_last)
    rows = max(1, 2**18 // (channels * width))  # that stay in the cache
    for k in range(len(x)):
        s = scale[k % len(scale)].flatten()
        b = torch.zeros(()) if shift is None else shift[k % len(shift)].flatten()
        for part, place in zip(x[k].permute(1, 2, 0).split(rows), out[k].permute(1, 2, 0).split(rows), strict=True):
            place.copy_(torch.addcmul(b, part.float(), s))
    return out


@functools.cache
def works() -> bool:
    """Whether these convolutions are there and right with the largest numbers.

    They are not of PyTorch's documented interface; and without VNNI, or where oneDNN is told to leave it alone, sums of
    two products are cut to 16 bits.
    """
    x = torch.full((1, 16, 3, 3), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    weight = torch.full((16, 16, 3, 3), 127, dtype=torch.int8)
    step = torch.full((16,), 1 / (9 * 16 * 127))
    y = torch.ones(1, 16, 1, 1).contiguous(memory_format=torch.channels_last)
    try:
        kernel = packed(weight, step)
        y = add_int8_conv2d(y, x, kernel, step)
        whole = int8_conv2d(x, kernel, step, torch.zeros(16), torch.uint8)
        return bool((whole == 255).all() and (y - 256).abs().max() < 1e-3)
    except (AttributeError, RuntimeError):
        return False
