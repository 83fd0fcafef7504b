"""A row of the C++ row operations has the same bits whatever is computed beside it, on any number of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.kernels import CpuKernels
from paged_backend.kernels.interface import StepInputs
from tests.kernels.rounding import unit
from tests.kernels.step_case import make_cache, make_inputs

INSTRUCTION_SETS = _cpu.available_instruction_sets()
sets = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
KERNELS = {(name, threads): CpuKernels(threads, name) for name in INSTRUCTION_SETS for threads in (1, 2, 5)}
EPS = 1e-6
WIDTH, VOCAB = 610, 50  # no multiple of any vector
WEIGHT, BIAS = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(5)).unbind(0)
TABLE = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(6)).bfloat16()

Operation = Callable[[CpuKernels, Tensor, StepInputs], Tensor]
OPERATIONS: dict[str, Operation] = {
    "rms_norm": lambda kernels, x, inputs: kernels.rms_norm(x, WEIGHT, EPS),
    "layer_norm": lambda kernels, x, inputs: kernels.layer_norm(x, WEIGHT, BIAS, EPS),
    "embedding": lambda kernels, x, inputs: kernels.embedding(TABLE, "token_ids", inputs, x),
    "select_rows": lambda kernels, x, inputs: kernels.select_rows(x, inputs),
    "soft_cap": lambda kernels, x, inputs: kernels.soft_cap(x, 3.0),
}
operations = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())


def some_rows(inputs: StepInputs, rows: slice) -> StepInputs:
    """What the row operations look at, of some rows of a step."""
    return StepInputs(
        token_ids=inputs.token_ids[rows],
        positions=inputs.positions[rows],
        slot_mapping=inputs.slot_mapping[rows],
        block_tables=inputs.block_tables[:0],
        query_start=torch.zeros(1, dtype=torch.int32),
        context_lens=inputs.context_lens[:0],
        logits_rows=None,
    )


@sets
@operations
def test_rows_alone_among_others_and_on_any_threads(instruction_set: str, operation: Operation) -> None:
    inputs = make_inputs([100, 1, 60], num_tokens=VOCAB)
    x = torch.randn(161, WIDTH)
    expected = operation(KERNELS[instruction_set, 1], x, inputs)
    for threads in (2, 5):
        for _ in range(3):
            assert torch.equal(operation(KERNELS[instruction_set, threads], x, inputs), expected)
    for rows in (slice(0, 1), slice(77, 78), slice(31, 90), slice(160, 161)):
        kernels = KERNELS[instruction_set, 2]
        assert torch.equal(operation(kernels, x[rows].clone(), some_rows(inputs, rows)), expected[rows])


@sets
@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16", "float16", "int8"])
def test_qkv_to_cache_alone_among_others_and_on_any_threads(instruction_set: str, cache_dtype: str) -> None:
    num_heads, head_size = 6, 36
    inputs = make_inputs([100, 1, 60], num_blocks=50)
    angle = torch.arange(100).unsqueeze(1) * torch.rand(24)
    norms = torch.randn(2, head_size)
    qkv = torch.randn(161, (num_heads + 4) * head_size)

    def run(threads: int, *parts: slice) -> tuple[Tensor, Tensor, Tensor]:
        cache = make_cache(cache_dtype, 50, head_size=head_size)
        cache.keys.zero_()
        cache.values.zero_()
        queries = [
            KERNELS[instruction_set, threads].qkv_to_cache(
                qkv[rows],
                cache,
                some_rows(inputs, rows),
                num_heads=num_heads,
                rotary=(angle.cos(), angle.sin()),
                query_norm=norms[0],
                key_norm=norms[1],
                norm_eps=EPS,
            )
            for rows in parts
        ]
        return torch.cat(queries), cache.keys, cache.values

    expected = run(1, slice(0, 161))
    alone = [slice(i, i + 1) for i in range(40)]
    for threads, parts in ((2, [slice(0, 161)]), (5, [slice(0, 161)]), (2, [*alone, slice(40, 99), slice(99, 161)])):
        for result, wanted in zip(run(threads, *parts), expected, strict=True):
            assert torch.equal(result, wanted)


@sets
@pytest.mark.parametrize("width", [64, 1000, 8192])
def test_norms_are_right_to_some_units(instruction_set: str, width: int) -> None:
    """64 partial sums: their errors average out, so that the norm of a long row is as good as that of a short one."""
    x = torch.randn(20, width) * torch.logspace(-3, 3, 20).unsqueeze(1)
    weight = torch.rand(width) + 1
    kernels = KERNELS[instruction_set, 2]
    wide = x.double()
    exact = wide / (wide.square().mean(1, keepdim=True) + EPS).sqrt() * weight
    # Four roundings of single operations, and the sum's, of which 64 chains hardly leave anything.
    assert bool(((kernels.rms_norm(x, weight, EPS) - exact).abs() <= 8 * unit(torch.float32) * exact.abs()).all())
    centred = wide - wide.mean(1, keepdim=True)
    exact = centred / (centred.square().mean(1, keepdim=True) + EPS).sqrt() * weight
    largest = exact.abs().amax(1, keepdim=True)
    error = (kernels.layer_norm(x, weight, None, EPS) - exact).abs()
    assert bool((error <= 8 * unit(torch.float32) * largest).all())


def test_instruction_sets_sum_in_the_same_order() -> None:
    """What has no multiply-add in it has the same bits everywhere."""
    x = torch.randn(30, 700)
    results = [CpuKernels(1, name).layer_norm(x, None, None, 0.0) for name in INSTRUCTION_SETS if "512" in name]
    assert all(torch.equal(result, results[0]) for result in results)
