"""What Triton would compile for launches: kernels are told apart by more than their constants.

Triton compiles a kernel anew, which takes seconds, for an integer that is 1, or a multiple of 16, or does not fit into
32 bits, for a pointer at a multiple of 16 bytes, and for each value of a constant; but not where an argument is named
in `do_not_specialize`. What differs from step to step must not make a difference.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import KernelParam, create_function_from_signature

from paged_backend.kernels.triton.sampling.blocks import blocks_kernel

KERNEL: Any = type(blocks_kernel)
"""Of a card, or of the interpreter."""

Variant = tuple[str, ...]
"""A kernel's name, then what each of its arguments is compiled as, then its options."""


@contextmanager
def recorded() -> Iterator[set[Variant]]:
    """The variants of all kernels launched within; nothing is computed, and results are whatever was in memory."""
    variants: set[Variant] = set()

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert max((0, *grid[1:])) < 2**16 and grid[0] < 2**31, f"{kernel.fn.__name__} has too large a grid: {grid}"
        assert "enable_fp_fusion" in kwargs, f"{kernel.fn.__name__} is rounded as this version of Triton likes to"
        variants.add(variant_of(kernel, args, kwargs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KERNEL, "run", record)
        yield variants


def variant_of(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Variant:
    """What a launch is compiled as."""
    bound, specialized, options = _binder(kernel)(*args, **kwargs)
    kinds = (f"{name}={kind}" for name, kind in zip(bound, specialized, strict=True))
    return (kernel.fn.__name__, *kinds, *(f"{name}={value}" for name, value in sorted(options.items())))


@cache
def _binder(kernel: Any) -> Any:
    """Triton's own function that looks at arguments."""
    settings = getattr(kernel, "kwargs", None) or vars(kernel)
    by_name = {name: settings.get(name) or () for name in ("do_not_specialize", "do_not_specialize_on_alignment")}
    signature = inspect.signature(kernel.fn)
    assert set().union(*by_name.values()) <= set(signature.parameters), f"{kernel.fn.__name__}: no such arguments"
    parameters = [
        KernelParam(number, parameter, *(parameter.name in names for names in by_name.values()))
        for number, parameter in enumerate(signature.parameters.values())
    ]
    return create_function_from_signature(signature, parameters, make_backend(GPUTarget("cuda", 90, 32)))
