"""Which device computes, and in which precision."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

import torch

from styleapp.errors import DeviceError, unknown_name
from styleapp.models import int8
from styleapp.options import DEVICES, PRECISIONS

__all__ = ["check_compiler", "convolves_bf16", "find_device", "find_precision", "has_bf16", "has_int8"]


def find_device(name: str) -> torch.device:
    """The device of that name; only "auto" falls back to another.

    Raises:
        OptionError: for a name that is no device.
        DeviceError: for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not index.isdecimal())):
        raise unknown_name("device", name, DEVICES)
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {name!r} was asked for, but PyTorch sees no CUDA GPU here; use cpu or auto")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise DeviceError(f"device {name!r} was asked for, but there are {torch.cuda.device_count()} GPUs here")
    return torch.device(name)


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile has what it needs for the device.

    Raises:
        DeviceError: if it has not.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise DeviceError("compiling for a GPU needs the package triton, which is not installed; leave out --compile")
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise DeviceError("compiling for a CPU needs a C++ compiler, and there is no g++ here; leave out --compile")


def find_precision(name: str, device: torch.device, *, integers: bool = True) -> str:
    """fp32, bf16, fp16 or int8; "auto" takes the fastest that the device computes in natively.

    Args:
        integers: whether the weights have an encoder of 8-bit integers; "auto" leaves them out otherwise.

    Raises:
        OptionError: for an unknown name.
        DeviceError: for fp16 on a CPU, whose convolutions are slower in it than in float32; for bf16 on one for
            which there are no such convolutions: a plain loop would take a hundred times as long; for int8 on a GPU,
            and on a CPU without VNNI, where sums of products would overflow.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name == "auto":
        if integers and has_int8(device):
            return "int8"
        return "bf16" if has_bf16(device) else "fp32"
    if name == "int8" and not has_int8(device):
        raise DeviceError("precision 'int8' needs a CPU with VNNI, which this is not; use auto, or see styleapp info")
    if name == "fp16" and device.type == "cpu":
        raise DeviceError("precision 'fp16' needs a GPU; on a CPU use fp32, bf16 or auto")
    if name == "bf16" and device.type == "cpu" and not convolves_bf16():
        raise DeviceError("precision 'bf16' needs a GPU or a CPU with AVX-512, and here is neither; use fp32 or auto")
    return name


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not _cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


def has_int8(device: torch.device) -> bool:
    """Whether the device multiplies integers of 8 bits in hardware, and PyTorch has convolutions for it."""
    if device.type != "cpu" or _cpu_flags().isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"}):
        return False
    return int8.works()


def _cpu_flags() -> set[str]:
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(found[1].split()) if found else set()


def convolves_bf16() -> bool:
    """Whether oneDNN has convolutions in bfloat16 for this CPU, if only by way of float32."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
