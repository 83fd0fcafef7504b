"""What a benchmark ran on: a description for its JSON."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

_INSTRUCTION_SETS: Final = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve"),
)
"""Names in /proc/cpuinfo, x86 and arm64, that kernels may care about."""

_PACKAGES: Final = (
    "torch",
    "transformers",
    "numpy",
    "bentoml",
    "torchserve",
    "openai",
    "openvino-genai",
    "llama-cpp-python",
)


def describe_machine() -> dict[str, Any]:
    """Processor, memory, versions, load and date; nothing that names the machine or its folders."""
    processor, flags = _processor()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor,
        "architecture": platform.machine(),
        "cores": num_cores(),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "memory_gib": _memory_gib(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": _versions(),
        "commit": _commit(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def num_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _processor() -> tuple[str, frozenset[str]]:
    """The model's name and the flags of the first processor."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return name, frozenset()
    for line in text.partition("\n\n")[0].splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = value
        elif key in ("flags", "Features"):
            flags = value
    return name, frozenset(flags.split())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The source's commit, with a plus sign where files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
