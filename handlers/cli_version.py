"""What `paged-backend version` prints: the first thing to put into a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from paged_backend.version import __version__


def describe_installation() -> str:
    """One aligned line per part: package, Python, torch, kernels, hosts."""
    rows = [
        ("paged-backend", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", _torch()),
        ("triton", _version("triton")),
        *_kernels(),
        ("bentoml", _version("bentoml")),
        ("torchserve", _version("torchserve")),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _torch() -> str:
    import torch

    device = "with CUDA" if torch.cuda.is_available() else "CPU"
    return f"{torch.__version__} ({device}, {torch.get_num_threads()} of {os.cpu_count()} cores)"


def _kernels() -> list[tuple[str, str]]:
    """Which implementation serves each operation on this machine, and why not another."""
    from paged_backend.kernels.devices import select_device
    from paged_backend.kernels.registry import select_kernels

    report = select_kernels("auto", select_device()).report
    return [(f"kernel {operation}", f"{chosen}: {reason}") for operation, (chosen, reason) in report.items()]
