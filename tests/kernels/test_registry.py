"""The choice of implementations is explicit, and its report says why."""

from __future__ import annotations

import sys

import pytest
import torch

from paged_backend.errors import ConfigError
from paged_backend.kernels.interface import OPERATIONS, Kernels
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.kernels.registry import select_kernels

CPU_MODULE = "paged_backend.kernels.cpu.kernels"


def implementations(kernels: Kernels) -> set[str]:
    return {choice.implementation for choice in kernels.report.values()}


def test_operations_are_the_protocol() -> None:
    methods = [name for name in vars(Kernels) if not name.startswith("_")]
    assert set(methods) - {"report", "pack_linear", "compile"} == set(OPERATIONS)
    assert all(callable(getattr(ReferenceKernels, name)) for name in OPERATIONS)


def test_reference_is_used_alone_when_asked_for() -> None:
    kernels = select_kernels("reference")
    assert isinstance(kernels, ReferenceKernels)
    assert tuple(kernels.report) == OPERATIONS
    assert implementations(kernels) == {"reference"}


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_cpp_serves_what_it_has_and_the_report_says_so(backend: str) -> None:
    kernels = select_kernels(backend, torch.device("cpu"), num_threads=2)
    assert tuple(kernels.report) == OPERATIONS
    assert kernels.report["linear"].implementation == "cpu"
    assert all(choice.reason for choice in kernels.report.values())


@pytest.mark.parametrize("hidden", [CPU_MODULE, "paged_backend.kernels.cpu._cpu"])
def test_a_missing_module(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error when it was asked for; else the report says so."""
    for name in [name for name in sys.modules if name.startswith("paged_backend.kernels.cpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(ConfigError, match=r"kernel_backend cpu needs the C\+\+ module.*make install"):
        select_kernels("cpu")
    kernels = select_kernels("auto")
    assert implementations(kernels) == {"reference"}
    assert "cannot be loaded" in kernels.report["paged_attention"].reason


def test_another_device_gets_the_reference_and_refuses_cpp() -> None:
    assert implementations(select_kernels("auto", "meta")) == {"reference"}
    with pytest.raises(ConfigError, match="device cpu only"):
        select_kernels("cpu", "meta")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="kernel_backend"):
        select_kernels("cuda")
    with pytest.raises(ConfigError, match="num_threads"):
        select_kernels("cpu", num_threads=0)


def test_the_report_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        select_kernels("reference").report["linear"] = None  # type: ignore[index]
