"""What a container or a service may take, in the files as Linux has them."""

from pathlib import Path

import pytest
import torch

from styleapp import cgroups, memory, process
from styleapp.cgroups import granted_cores, granted_memory

GB = 2**30


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Write files: "process" is /proc/self/cgroup, the others lie in /sys/fs/cgroup."""
    monkeypatch.setattr(cgroups, "OF_PROCESS", tmp_path / "process")
    monkeypatch.setattr(cgroups, "GROUPS", tmp_path / "groups")

    def write(files: dict[str, object]) -> None:
        for name, text in files.items():
            path = tmp_path / name if name == "process" else tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return write


def second(at: str, limit: object, used: int, cached: int = 0) -> dict[str, object]:
    return {
        f"{at}memory.max": limit,
        f"{at}memory.current": used,
        f"{at}memory.stat": f"anon 1\ninactive_file {cached}\nactive_file 7",
    }


def test_no_groups(system):
    assert granted_memory() is None and granted_cores() is None
    system({"process": "0::/"})
    assert granted_memory() is None and granted_cores() is None


def test_a_container(system):
    """Of version 2, with a namespace of its own; cached pages of files make room."""
    system({"process": "0::/", **second("", 2 * GB, GB, GB // 4), "cpu.max": "150000 100000"})
    assert granted_memory() == GB + GB // 4 and granted_cores() == 2
    system({**second("", "max", GB), "cpu.max": "max 100000"})
    assert granted_memory() is None and granted_cores() is None


def test_a_service_within_a_slice(system):
    """The tightest of all groups above counts."""
    system({"process": "0::/app.slice/style.service", **second("app.slice/style.service/", 8 * GB, GB)})
    assert granted_memory() == 7 * GB
    system({**second("app.slice/", 4 * GB, 3 * GB), "app.slice/cpu.max": "50000 100000"})
    assert granted_memory() == GB and granted_cores() == 1
    system(second("app.slice/", 2 * GB, 3 * GB))
    assert granted_memory() == 0


@pytest.mark.parametrize("place", ["/docker/0123", "/"])
def test_version_1(system, place):
    """A container sees the machine's name of its group, and its own files at the root."""
    at = "memory/docker/0123/" if place != "/" else "memory/"
    lines = f"9:name=systemd:{place}\n4:memory:{place}\n1:cpu,cpuacct:{place}\n0::{place}"
    system({"process": lines, f"{at}memory.limit_in_bytes": 3 * GB, f"{at}memory.usage_in_bytes": 2 * GB})
    system({f"{at}memory.stat": f"inactive_file 1\ntotal_inactive_file {GB}"})
    assert granted_memory() == 2 * GB and granted_cores() is None
    system({"cpu/cpu.cfs_quota_us": 400_000, "cpu/cpu.cfs_period_us": 100_000})
    assert granted_cores() == 4
    system({"cpu/cpu.cfs_quota_us": -1, f"{at}memory.limit_in_bytes": 2**63 - 4096})
    assert granted_cores() is None and granted_memory() > 10**15


def test_tiles_and_threads_keep_to_it(system, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(process, "keep_freed_memory", lambda: True)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    process.tune_process()
    assert threads == [] and memory.available(torch.device("cpu")) > 100 * 2**20
    system({"process": "0::/", **second("", GB, GB - 50 * 2**20), "cpu.max": "100000 100000"})
    process.tune_process()
    assert threads == [1] and memory.available(torch.device("cpu")) == 50 * 2**20 and process.cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    process.tune_process()
    assert threads == [1]


def test_this_machine():
    """Whatever it is, what it says can be read."""
    assert granted_memory() is None or granted_memory() >= 0
    assert 1 <= process.cores() <= 4096 and Path("/proc").exists() == cgroups.OF_PROCESS.exists()
