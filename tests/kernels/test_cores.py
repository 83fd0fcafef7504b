"""The cores that a process may use, on machines and in containers that are only files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from paged_backend.kernels.cores import usable_cores

PAIRS = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}  # 4 cores, each with two processors


@pytest.fixture(autouse=True)
def processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    may_run_on(monkeypatch, range(8))


def may_run_on(monkeypatch: pytest.MonkeyPatch, cpus: range) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(cpus), raising=False)


def machine(root: Path, siblings: Mapping[int, str], files: Mapping[str, str]) -> Path:
    cpus = "sys/devices/system/cpu"
    topology = {f"{cpus}/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in siblings.items()}
    for name, text in {**topology, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(("cpus", "cores"), [(range(8), 4), (range(4), 4), (range(2, 5), 3), (range(3, 8, 4), 1)])
def test_siblings_are_one_core(cpus: range, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_run_on(monkeypatch, cpus)
    assert usable_cores(machine(tmp_path, PAIRS, {})) == cores


def test_without_files_every_processor_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores(tmp_path) == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert usable_cores(tmp_path) == 3


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "1000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "900000 100000"}, 4),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/host/name", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        (
            {
                "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/docker/1\n0::/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            4,
        ),
    ],
)
def test_a_container_limits_them(files: dict[str, str], cores: int, tmp_path: Path) -> None:
    assert usable_cores(machine(tmp_path, PAIRS, files)) == cores


def test_omp_num_threads_asks_for_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine(tmp_path, PAIRS, {})
    for value, cores in (("1", 1), ("3", 3), ("", 4), ("0", 4), ("many", 4), ("100000", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert usable_cores(root) == cores


def test_this_machine() -> None:
    assert usable_cores() >= 1
