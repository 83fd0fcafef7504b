"""The choice of implementations is explicit, and its report says why."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from paged_backend.errors import ConfigError
from paged_backend.kernels.devices import select_device
from paged_backend.kernels.interface import OPERATIONS, Kernels
from paged_backend.kernels.reference.kernels import ReferenceKernels
from paged_backend.kernels.registry import select_kernels

CPU_MODULE = "paged_backend.kernels.cpu.kernels"


def implementations(kernels: Kernels) -> set[str]:
    return {choice.implementation for choice in kernels.report.values()}


def test_operations_are_the_protocol() -> None:
    methods = [name for name in vars(Kernels) if not name.startswith("_")]
    others = {"report", "token_major_keys", "cache_dtypes", "pack_linear", "pack_experts", "launch_sample"}
    others |= {"collective", "compile", "warm_up"}
    assert set(methods) - others == set(OPERATIONS)
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
    assert implementations(kernels) == {"cpu", "none"}
    assert [name for name, choice in kernels.report.items() if choice.implementation == "none"] == ["experts"]
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


def test_triton_on_the_cpu_is_for_tests() -> None:
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        kernels = select_kernels("triton", "cpu")
        assert tuple(kernels.report) == OPERATIONS
        assert implementations(kernels) == {"triton"}
        assert all("interpreted on the CPU" in choice.reason for choice in kernels.report.values())


def test_triton_uninterpreted_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"kernel_backend triton serves the device cuda.*Choose kernel_backend"):
        select_kernels("triton", "cpu")


def test_a_missing_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paged_backend.kernels.triton.kernels", None)
    for backend, device in (("triton", "cpu"), ("triton", "cuda"), ("auto", "cuda")):
        with pytest.raises(ConfigError, match=r"kernel_backend triton needs Triton.*paged-backend\[gpu\]"):
            select_kernels(backend, device)
    assert "triton" not in implementations(select_kernels("auto", "cpu"))


@pytest.mark.parametrize(("capability", "served"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cards(capability: tuple[int, int], served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if served:
        select_kernels("auto", "cuda")
        return
    with pytest.raises(ConfigError, match=r"needs a card of compute capability 8\.0.*a card has 7\.5"):
        select_kernels("auto", "cuda")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == select_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="device cuda needs a build of torch with CUDA"):
        select_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match="device cuda needs an NVIDIA GPU"):
        select_device("cuda")


def test_importing_the_package_does_not_import_triton() -> None:
    program = "import sys, paged_backend.kernels.registry as r, paged_backend.engine.llm; r.select_kernels('reference')"
    program += "; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
