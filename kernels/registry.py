"""Chooses an implementation for each operation; what was chosen, and why not another, is in the report."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paged_backend.errors import ConfigError
from paged_backend.kernels import checks
from paged_backend.kernels.interface import OPERATIONS
from paged_backend.kernels.reference.activation import activation
from paged_backend.kernels.reference.copy_blocks import copy_blocks
from paged_backend.kernels.reference.gated_activation import gated_activation
from paged_backend.kernels.reference.layer_norm import layer_norm
from paged_backend.kernels.reference.linear import linear
from paged_backend.kernels.reference.paged_attention import paged_attention
from paged_backend.kernels.reference.rms_norm import rms_norm
from paged_backend.kernels.reference.rotary import rotary
from paged_backend.kernels.reference.write_kv import write_kv

BACKENDS = ("auto", "reference", "cpu")
"""What `select_kernels` takes as backend."""


class OperationChoice(NamedTuple):
    """How an operation is computed.

    Attributes:
        implementation: "reference" or "cpu".
        reason: why this one, and why not another, in one sentence.
    """

    implementation: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Functions:
    """One function per operation, with the signature of the `Kernels` method of its name."""

    write_kv: Callable[..., None] = write_kv
    paged_attention: Callable[..., Tensor] = paged_attention
    copy_blocks: Callable[..., None] = copy_blocks
    rms_norm: Callable[..., tuple[Tensor, Tensor]] = rms_norm
    layer_norm: Callable[..., tuple[Tensor, Tensor]] = layer_norm
    rotary: Callable[..., tuple[Tensor, Tensor]] = rotary
    activation: Callable[..., Tensor] = activation
    gated_activation: Callable[..., Tensor] = gated_activation
    linear: Callable[..., Tensor] = linear


class KernelSet:
    """The chosen implementations behind `interface.Kernels`: checks the arguments, then calls.

    Attributes:
        report: for each operation, what computes it and why.
    """

    def __init__(self, functions: _Functions, report: dict[str, OperationChoice]) -> None:
        assert tuple(report) == OPERATIONS
        self.report: MappingProxyType[str, OperationChoice] = MappingProxyType(dict(report))
        self._functions = functions

    def write_kv(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """See `Kernels.write_kv`."""
        checks.check_write_kv(key, value, key_cache, value_cache, slot_mapping)
        self._functions.write_kv(key, value, key_cache, value_cache, slot_mapping)

    def paged_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        query_start: Tensor,
        context_lens: Tensor,
        *,
        scale: float,
        sliding_window: int = 0,
        soft_cap: float = 0.0,
    ) -> Tensor:
        """See `Kernels.paged_attention`."""
        checks.check_paged_attention(
            query,
            key_cache,
            value_cache,
            block_tables,
            query_start,
            context_lens,
            scale,
            sliding_window,
            soft_cap,
        )
        return self._functions.paged_attention(
            query,
            key_cache,
            value_cache,
            block_tables,
            query_start,
            context_lens,
            scale=scale,
            sliding_window=sliding_window,
            soft_cap=soft_cap,
        )

    def copy_blocks(self, cache: Tensor, pairs: Tensor) -> None:
        """See `Kernels.copy_blocks`."""
        checks.check_copy_blocks(cache, pairs)
        self._functions.copy_blocks(cache, pairs)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Kernels.rms_norm`."""
        checks.check_norm(x, weight, None, eps, residual)
        return self._functions.rms_norm(x, weight, eps, residual)

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels.layer_norm`."""
        checks.check_norm(x, weight, bias, eps, residual)
        return self._functions.layer_norm(x, weight, bias, eps, residual)

    def rotary(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """See `Kernels.rotary`."""
        checks.check_rotary(query, key, cos, sin)
        return self._functions.rotary(query, key, cos, sin)

    def activation(self, x: Tensor, name: str) -> Tensor:
        """See `Kernels.activation`."""
        checks.check_activation(x, name)
        return self._functions.activation(x, name)

    def gated_activation(self, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """See `Kernels.gated_activation`."""
        checks.check_gated_activation(gate, up, activation)
        return self._functions.gated_activation(gate, up, activation)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `Kernels.linear`."""
        checks.check_linear(x, weight, bias)
        return self._functions.linear(x, weight, bias)


def select_kernels(
    backend: str = "auto", device: str | torch.device = "cpu", *, num_threads: int | None = None
) -> KernelSet:
    """Binds every operation to an implementation.

    Args:
        backend: "reference" (plain torch), "cpu" (C++ where there is a C++ kernel), or "auto": the fastest
            that serves the device and can be loaded.
        device: where the tensors will be.
        num_threads: threads of the C++ kernels; None means the cores that this process may use.

    Raises:
        ConfigError: the backend is unknown, does not serve the device, or was asked for and cannot be loaded.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"kernel_backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"num_threads must be at least 1, got {num_threads!r}.")
    device_type = torch.device(device).type
    if backend == "reference":
        return _reference_set("kernel_backend is reference.")
    if device_type != "cpu":
        if backend == "cpu":
            raise ConfigError(
                f"kernel_backend cpu serves the device cpu only, got {device_type!r}: choose reference or auto."
            )
        return _reference_set(f"The C++ kernels serve the device cpu only; this is {device_type}.")
    loaded = _load_cpu_paged_attention(num_threads)
    if isinstance(loaded, str):
        if backend == "cpu":
            raise ConfigError(
                f"kernel_backend cpu needs the C++ module, and it cannot be loaded ({loaded}). Install a "
                "wheel of this platform or run `make install` with a C++17 compiler, or choose "
                "kernel_backend reference."
            )
        return _reference_set(f"The C++ module cannot be loaded: {loaded}.")
    chosen, level = loaded
    report = dict.fromkeys(OPERATIONS, OperationChoice("reference", "There is no C++ kernel of this operation yet."))
    report["paged_attention"] = OperationChoice("cpu", f"C++ kernel ({level}): faster than the reference on the CPU.")
    return KernelSet(replace(_Functions(), paged_attention=chosen), report)


def _reference_set(reason: str) -> KernelSet:
    return KernelSet(_Functions(), dict.fromkeys(OPERATIONS, OperationChoice("reference", reason)))


def _load_cpu_paged_attention(num_threads: int | None) -> tuple[Callable[..., Tensor], str] | str:
    """The C++ operation and the instruction set that it runs with, or why it cannot be had."""
    try:
        # Lazy: this file must load where the C++ module does not.
        from paged_backend.kernels.cpu.paged_attention import PagedAttention
    except ImportError as error:
        return str(error)
    operation = PagedAttention(num_threads or _num_usable_cores())
    return operation, operation.instruction_set


def _num_usable_cores() -> int:
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
