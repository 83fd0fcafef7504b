"""How many cores this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any


def usable_cores(root: Path = Path("/")) -> int:
    """The default of num_threads: physical cores, as the threads of one share what multiplies.

    Counted are those with a processor that this process may run on; where its container has less processor time than
    that, as many as the time fills; and OMP_NUM_THREADS where that asks for fewer.

    Args:
        root: where "sys" and "proc" are; systems without them count every processor as a core.
    """
    affinity: Any = getattr(os, "sched_getaffinity", None)
    processors = affinity(0) if affinity is not None else range(os.cpu_count() or 1)
    cores = _num_physical(processors, root)
    quota = min(_quotas(root), default=None)
    if quota is not None:
        cores = min(cores, max(1, ceil(quota)))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) > 0 else cores


def _num_physical(processors: Iterable[int], root: Path) -> int:
    folder = root / "sys/devices/system/cpu"
    return len({_read(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in processors})


def _quotas(root: Path) -> Iterator[Fraction]:
    """Processors' worth of time that this process's control groups may use, of version 2 and 1, parents included."""
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the group's name may be the host's, and what is mounted the group itself.
        for path in (Path(group), *Path(group).parents):
            folder = mounts / ("cpu" if controllers else "") / path.relative_to("/")
            if controllers:
                limit = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
            else:
                limit = _read(folder / "cpu.max")
            quota, _, period = limit.partition(" ")
            if quota.isdecimal() and period.isdecimal() and int(quota) * int(period) > 0:
                yield Fraction(int(quota), int(period))


def _read(path: Path) -> str:
    """Empty where there is no such file, or it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
