"""The kernels of a GPU, by Triton's interpreter on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from styleapp import kernels

pytest.importorskip("triton")


def test_where_they_do_not_compile_they_are_not_taken():
    assert not kernels.work(torch.device("cpu"))
    assert not kernels.suits(torch.zeros(1, 8, 4, 4).contiguous(memory_format=torch.channels_last))


@pytest.mark.long
def test_what_they_compute_is_what_torch_does():
    """In a process of its own: Triton decides when it is imported whether it compiles."""
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("triton_interpreted.py")], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("156 28 30 88 compared\n", "156 compared\n"), "the second with Triton before 3.6"
