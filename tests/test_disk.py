"""Arrays on disk: their numbers, their memory, their files."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from styleapp.disk import can_map, room_on_disk, scratch_array, scratch_folder

pytestmark = pytest.mark.skipif(not can_map(), reason="the system has no posix_fallocate or madvise")


def resident_of_files() -> int:
    """Bytes of mapped files that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint16])
def test_numbers_stay_when_their_memory_is_handed_back(dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    array = scratch_array((1200, 700, 12), dtype)
    assert array.tensor.shape == (1, 12, 1200, 700) and array.tensor.dtype == dtype
    assert array.tensor.is_contiguous(memory_format=torch.channels_last)
    wanted = torch.randint(0, 200, (1, 12, 100, 700)).to(dtype)
    before = resident_of_files()
    array.tensor[:] = 7
    array.tensor[:, :, 500:600] = wanted
    written = resident_of_files()
    array.forget()
    size = array.tensor.numel() * dtype.itemsize
    assert written - before > 0.9 * size and resident_of_files() - before < 0.1 * size
    assert torch.equal(array.tensor[:, :, 500:600], wanted) and bool((array.tensor[:, :, :500] == 7).all())


def test_there_is_no_file_to_leave_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    array = scratch_array((2000, 2000, 20), torch.float32)
    assert not list(tmp_path.iterdir())
    assert free - os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize > 200 * 10**6
    del array
    gc.collect()
    assert free - os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < 160 * 10**6


def test_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert scratch_folder() == tmp_path
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    assert scratch_folder().is_dir()
    monkeypatch.delenv("TMPDIR")
    assert scratch_folder() == Path("/var/tmp") or not os.access("/var/tmp", os.W_OK)


def test_files_in_memory_are_no_room(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm here")
    assert room_on_disk() == 0


def test_more_than_the_disk_has_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(OSError):
        scratch_array((2**20, 2**20, 64), torch.float32)
    assert not list(tmp_path.iterdir())
