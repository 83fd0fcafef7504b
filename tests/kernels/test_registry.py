"""The choice of implementations is explicit, and its report says why."""

from __future__ import annotations

import sys

import pytest
import torch

from paged_backend.errors import ConfigError
from paged_backend.kernels.cpu.paged_attention import PagedAttention
from paged_backend.kernels.interface import OPERATIONS, Kernels
from paged_backend.kernels.registry import KernelSet, select_kernels
from tests.kernels.paged_case import make_case

CPU_MODULE = "paged_backend.kernels.cpu.paged_attention"


def implementations(kernels: KernelSet) -> set[str]:
    return {choice.implementation for choice in kernels.report.values()}


def test_operations_are_the_protocol() -> None:
    methods = [name for name in vars(Kernels) if not name.startswith("_")]
    assert tuple(methods) == OPERATIONS
    assert all(callable(getattr(KernelSet, name)) for name in OPERATIONS)


def test_reference_is_used_alone_when_asked_for() -> None:
    kernels = select_kernels("reference")
    assert tuple(kernels.report) == OPERATIONS
    assert implementations(kernels) == {"reference"}


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_cpp_serves_what_it_has_and_the_report_says_so(backend: str) -> None:
    kernels = select_kernels(backend, torch.device("cpu"), num_threads=2)
    assert kernels.report["paged_attention"].implementation == "cpu"
    assert PagedAttention(1).instruction_set in kernels.report["paged_attention"].reason
    assert kernels.report["linear"].implementation == "reference"
    assert "no C++ kernel" in kernels.report["linear"].reason
    case = make_case([1, 9], [20, 40])
    assert torch.equal(case.run(kernels.paged_attention), case.run(PagedAttention(1)))


def test_a_missing_module_is_an_error_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, CPU_MODULE, None)
    with pytest.raises(ConfigError, match=r"kernel_backend cpu needs the C\+\+ module.*make install"):
        select_kernels("cpu")


def test_a_missing_module_is_reported_by_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, CPU_MODULE, None)
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
