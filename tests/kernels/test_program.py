"""Recorded steps: the same as their operations one by one, for any numbers of rows, and safe against misuse."""

from __future__ import annotations

import gc
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from paged_backend.errors import KernelError
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.kernels import CpuKernels
from paged_backend.kernels.interface import Kernels, Rows, StepInputs
from tests.kernels.step_case import make_cache, make_inputs

Step = Callable[[Kernels, StepInputs], Rows]

KERNELS = CpuKernels(2)
WIDTH, HEADS, HEAD_SIZE, BLOCKS, VOCAB = 64, 4, 16, 60, 100
EPS = 1e-5


class SmallModel:
    """Two decoder layers of every operation but the layer norm."""

    def __init__(self, kernels: CpuKernels, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

        self.embedding = normal(VOCAB, WIDTH).bfloat16()
        self.positions = normal(50, WIDTH)
        angle = torch.arange(50).unsqueeze(1) * torch.rand(HEAD_SIZE, generator=generator)
        self.rotary = (angle.cos(), angle.sin())
        self.norm = normal(WIDTH) + 1
        self.head_norm = normal(HEAD_SIZE) + 1
        self.layers = [
            {
                "qkv": kernels.pack_linear(normal(2 * WIDTH, WIDTH)),
                "out": kernels.pack_linear(normal(WIDTH, WIDTH).bfloat16(), normal(WIDTH)),
                "inner": kernels.pack_linear(normal(6 * WIDTH, WIDTH), gated=True),
                "outer": kernels.pack_linear(normal(WIDTH, 3 * WIDTH)),
            }
            for _ in range(2)
        ]
        self.head = kernels.pack_linear(normal(VOCAB, WIDTH))
        self.caches = [make_cache("float32", BLOCKS, 2, head_size=HEAD_SIZE) for _ in range(2)]
        for cache in self.caches:  # steps may look at tokens that no step has stored
            cache.key_numbers().normal_(generator=generator)
            cache.value_numbers().normal_(generator=generator)

    def __call__(self, kernels: Kernels, inputs: StepInputs) -> Rows:
        x = kernels.embedding(self.embedding, "token_ids", inputs)
        x = kernels.embedding(self.positions, "positions", inputs, add=x)
        for weights, cache in zip(self.layers, self.caches, strict=True):
            normed = kernels.rms_norm(x, self.norm, EPS)
            query = kernels.qkv_to_cache(
                kernels.linear(normed, weights["qkv"]),
                cache,
                inputs,
                num_heads=HEADS,
                rotary=self.rotary,
                query_norm=self.head_norm,
                key_norm=self.head_norm,
                norm_eps=EPS,
            )
            mixed = kernels.paged_attention(query, cache, inputs, scale=0.25, sliding_window=0)
            x = kernels.linear(mixed, weights["out"], residual=x)
            normed = kernels.rms_norm(x, self.norm, EPS)
            x = kernels.linear(
                kernels.linear(normed, weights["inner"], activation="silu"), weights["outer"], residual=x
            )
        x = kernels.linear(kernels.select_rows(x, inputs), self.head)
        return kernels.soft_cap(x, 5.0)


def steps(count: int, seed: int = 0) -> Iterator[StepInputs]:
    """Steps of all sizes, with and without a choice of rows."""
    chooser = random.Random(seed)
    for index in range(count):
        rows = [chooser.choice((1, 1, 2, 7, 30)) for _ in range(chooser.randrange(1, 6))]
        contexts = [count + chooser.randrange(10) for count in rows]
        wanted = None
        if chooser.random() < 0.8:
            chosen = [chooser.randrange(sum(rows)) for _ in range(chooser.randrange(6))]
            wanted = torch.tensor(chosen, dtype=torch.int64)
        yield make_inputs(rows, contexts, num_blocks=BLOCKS, num_tokens=VOCAB, logits_rows=wanted, seed=index)


def test_a_recorded_step_is_its_operations_one_by_one() -> None:
    model = SmallModel(KERNELS)
    recorded = KERNELS.compile(model)
    for inputs in steps(40):
        expected = model(KERNELS, inputs)
        assert torch.equal(recorded(inputs), expected)


def test_no_converted_copy_of_a_tensor_is_recorded() -> None:
    """It would be gone when the program runs."""
    program = _cpu.Program(_cpu.Runtime(1))
    x = program.input(8)
    table, keys = torch.ones(8, 16), torch.zeros(4, 64, dtype=torch.int8)
    for weight in (torch.ones(8, dtype=torch.float64), torch.ones(16)[::2], torch.ones(8, dtype=torch.int32)):
        with pytest.raises(TypeError):
            program.rms_norm(x, weight, EPS)
        with pytest.raises(TypeError):
            program.layer_norm(x, None, weight, EPS)
    with pytest.raises(TypeError):
        program.embedding(table[:, ::2], "token_ids", None)
    with pytest.raises(TypeError):
        program.paged_attention(x, keys, keys, "float32", 1, 1, 8, 1.0, 0, 0.0)
    with pytest.raises(TypeError):
        _cpu.copy_blocks(_cpu.Runtime(1), torch.zeros(1, 2, 2, 64), torch.tensor([[0, 1]]))


@pytest.mark.parametrize("instruction_set", _cpu.available_instruction_sets())
def test_any_number_of_threads(instruction_set: str) -> None:
    results = []
    for threads in (1, 2, 4):
        kernels = CpuKernels(threads, instruction_set)
        recorded = kernels.compile(SmallModel(kernels))
        results.append([recorded(inputs).clone() for inputs in steps(15)])
    for others in results[1:]:
        assert all(torch.equal(other, result) for other, result in zip(others, results[0], strict=True))


def random_step(chooser: random.Random, weights: dict[tuple[int, int], Any]) -> Step:
    """A random graph of operations, which uses any earlier rows any number of times, in place or not."""
    choices = [(chooser.random(), chooser.random(), chooser.random()) for _ in range(chooser.randrange(1, 25))]
    widths = (24, 40)
    tables = {width: torch.randn(VOCAB, width) for width in widths}
    norms = {width: torch.randn(width) for width in widths}

    def step(kernels: Kernels, inputs: StepInputs) -> Rows:
        made: list[tuple[Rows, int]] = [
            (kernels.embedding(tables[width], "token_ids", inputs), width) for width in widths
        ]
        if choices[0][0] < 0.5:
            made = [(kernels.select_rows(x, inputs), width) for x, width in made]
        for kind, first, second in choices:
            x, width = made[int(first * len(made))]
            same = [rows for rows, other in made if other == width]
            other = same[int(second * len(same))]
            if kind < 0.3:
                made.append((kernels.linear(x, weights[width, width], activation="tanh", residual=other), width))
            elif kind < 0.5:
                wider = widths[second < 0.5]
                made.append((kernels.linear(x, weights[width, wider]), wider))
            elif kind < 0.65:
                made.append((kernels.rms_norm(x, norms[width], EPS), width))
            elif kind < 0.8:
                made.append((kernels.layer_norm(x, norms[width], None, EPS), width))
            else:
                made.append((kernels.soft_cap(x, 2.0), width))
        # All of it counts, so that nothing may be lost too early.
        total = made[0][0]
        for x, width in made[1:]:
            total = kernels.linear(x, weights[width, widths[0]], residual=total)
        return total

    return step


@pytest.mark.parametrize("seed", range(25))
def test_buffers_are_used_again_only_when_nobody_needs_them(seed: int) -> None:
    chooser = random.Random(seed)
    weights = {
        (inputs, outputs): KERNELS.pack_linear(torch.randn(outputs, inputs) / inputs**0.5)
        for inputs in (24, 40)
        for outputs in (24, 40)
    }
    step = random_step(chooser, weights)
    recorded = KERNELS.compile(step)
    for inputs in steps(6, seed):
        assert torch.equal(recorded(inputs), step(KERNELS, inputs))


def test_logits_may_be_changed_and_outlive_the_program() -> None:
    model = SmallModel(KERNELS)
    recorded = KERNELS.compile(model)
    inputs = make_inputs([3], num_blocks=BLOCKS, num_tokens=VOCAB)
    with torch.inference_mode():
        first = recorded(inputs)
        copy = first.clone()
    first.mul_(2)
    assert torch.equal(recorded(inputs), copy)
    large = make_inputs([30, 30], num_blocks=BLOCKS, num_tokens=VOCAB)
    kept = recorded(inputs)
    recorded(large)
    assert torch.equal(kept, copy)  # the larger step got memory of its own
    logits = recorded(inputs)
    del recorded, model
    gc.collect()
    assert torch.equal(logits, copy)


def test_a_program_keeps_what_it_uses() -> None:
    model = SmallModel(KERNELS)
    caches = model.caches
    inputs = make_inputs([5], num_blocks=BLOCKS, num_tokens=VOCAB)
    expected = model(KERNELS, inputs).clone()
    recorded = KERNELS.compile(model)
    del model
    gc.collect()
    torch.randn(100_000)
    assert torch.equal(recorded(inputs), expected)
    assert caches[0].keys.any()


def test_a_step_without_tokens() -> None:
    recorded = KERNELS.compile(SmallModel(KERNELS))
    assert recorded(make_inputs([])).shape == (0, VOCAB)
    assert recorded(make_inputs([0, 0], [3, 0], num_blocks=BLOCKS)).shape == (0, VOCAB)
    some = make_inputs([2], num_blocks=BLOCKS, logits_rows=torch.empty(0, dtype=torch.int64))
    assert recorded(some).shape == (0, VOCAB)


WRONG_INPUTS: dict[str, tuple[str, Any]] = {
    "token_ids": ("token_ids", torch.tensor([0, VOCAB, 1])),
    "token_ids below 0": ("token_ids", torch.tensor([0, -1, 1])),
    "token_ids of 32 bits": ("token_ids", torch.tensor([0, 1, 1], dtype=torch.int32)),
    "token_ids too few": ("positions", torch.tensor([0, 1])),
    "token_ids of another device": ("token_ids", torch.empty(3, dtype=torch.int64, device="meta")),
    "positions": ("positions", torch.tensor([0, 1, 50])),
    "slot_mapping": ("slot_mapping", torch.tensor([0, 4 * BLOCKS, 1])),
    "logits_rows": ("logits_rows", torch.tensor([3])),
    "logits_rows below 0": ("logits_rows", torch.tensor([-1])),
    "block_tables": ("block_tables", torch.tensor([[BLOCKS]], dtype=torch.int32)),
    "block_tables too narrow": ("block_tables", torch.empty(1, 0, dtype=torch.int32)),
    "context_lens": ("context_lens", torch.tensor([2], dtype=torch.int32)),
    "query_start": ("query_start", torch.tensor([0, 4], dtype=torch.int32)),
    "query_start not from 0": ("query_start", torch.tensor([1, 3], dtype=torch.int32)),
    "query_start too long": ("query_start", torch.tensor([0, 3, 3], dtype=torch.int32)),
}


@pytest.mark.parametrize(("field", "value"), WRONG_INPUTS.values(), ids=WRONG_INPUTS.keys())
def test_wrong_inputs_change_nothing_and_the_program_can_be_run_again(field: str, value: Tensor) -> None:
    model = SmallModel(KERNELS)
    recorded = KERNELS.compile(model)
    inputs = make_inputs([3], num_blocks=BLOCKS, num_tokens=VOCAB)
    expected = recorded(inputs).clone()
    before = [cache.keys.clone() for cache in model.caches]
    name = field if len(value) == 3 or field not in ("token_ids", "positions") else "positions"
    with pytest.raises(KernelError, match=name):
        recorded(replace(inputs, **{field: value}))
    for cache, keys in zip(model.caches, before, strict=True):
        assert torch.equal(cache.keys, keys)
    assert torch.equal(recorded(inputs), expected)


def test_rows_of_another_step_or_of_none_are_refused() -> None:
    kept: list[Rows] = []
    table = torch.randn(VOCAB, WIDTH)

    def keeping(kernels: Kernels, inputs: StepInputs) -> Rows:
        kept.append(kernels.embedding(table, "token_ids", inputs))
        return kept[0]

    KERNELS.compile(keeping)
    with pytest.raises(KernelError, match=r"x must be .* of this step, got one of another step"):
        KERNELS.compile(lambda kernels, inputs: kernels.soft_cap(kept[0], 1.0))
    with pytest.raises(KernelError, match=r"add must be .* of this step"):
        KERNELS.compile(lambda kernels, inputs: kernels.embedding(table, "token_ids", inputs, kept[0]))
    with pytest.raises(KernelError, match=r"x must be .* of this step, got Tensor"):
        KERNELS.compile(lambda kernels, inputs: kernels.soft_cap(torch.zeros(1, 3), 1.0))
    with pytest.raises(KernelError, match=r"x must be .*got Buffer"):
        KERNELS.soft_cap(kept[0], 1.0)
    with pytest.raises(KernelError, match="result must be"):
        KERNELS.compile(lambda kernels, inputs: torch.zeros(1, 3))


def test_what_cannot_be_recorded_is_refused() -> None:
    table = torch.randn(VOCAB, WIDTH)
    inputs = make_inputs([3])
    for step in (
        lambda kernels, inputs: kernels.pack_linear(table),
        lambda kernels, inputs: kernels.copy_blocks(torch.zeros(1, 2, 1, 64, dtype=torch.uint8), torch.zeros(0, 2)),
        lambda kernels, inputs: kernels.compile(lambda kernels, inputs: None),
        lambda kernels, inputs: kernels.sample(table, None),
    ):
        with pytest.raises(KernelError, match="cannot be part of a compiled step"):
            KERNELS.compile(step)
    with pytest.raises(KernelError, match="inputs must be those that the step was called with"):
        KERNELS.compile(lambda kernels, _: kernels.embedding(table, "token_ids", inputs))


def test_rows_of_tokens_and_of_logits_do_not_mix() -> None:
    table = torch.randn(VOCAB, WIDTH)
    weight = KERNELS.pack_linear(torch.randn(WIDTH, WIDTH))

    def mixed(kernels: Kernels, inputs: StepInputs) -> Rows:
        x = kernels.embedding(table, "token_ids", inputs)
        return kernels.linear(kernels.select_rows(x, inputs), weight, residual=x)

    with pytest.raises(KernelError, match="residual must have a row for each row of the logits"):
        KERNELS.compile(mixed)
    with pytest.raises(KernelError, match="x must have a row for each token"):
        KERNELS.compile(
            lambda kernels, inputs: kernels.select_rows(
                kernels.select_rows(kernels.embedding(table, "token_ids", inputs), inputs), inputs
            )
        )


def test_weights_of_another_implementation_are_refused() -> None:
    with pytest.raises(KernelError, match="weight must be of these kernels"):
        KERNELS.linear(torch.zeros(1, 4), object())  # type: ignore[arg-type]
    if KERNELS.instruction_set != "portable":
        with pytest.raises(KernelError, match="weight must be packed for"):
            KERNELS.linear(torch.zeros(1, 4), CpuKernels(1, "portable").pack_linear(torch.zeros(3, 4)))


def test_head_sizes_have_a_bound() -> None:
    cache = make_cache("float32", 3, 1, head_size=258)
    with pytest.raises(KernelError, match=r"head_size must be .*256, got 258"):
        KERNELS.qkv_to_cache(torch.zeros(1, 3 * 258), cache, make_inputs([1]), num_heads=1)
    with pytest.raises(KernelError, match=r"head_size must be .*256, got 258"):
        KERNELS.paged_attention(torch.zeros(1, 258), cache, make_inputs([1]), scale=1.0)


def test_programs_of_several_threads_take_turns() -> None:
    programs = [KERNELS.compile(SmallModel(KERNELS, seed)) for seed in range(4)]
    all_steps = list(steps(10))
    for program in programs:  # each pass leaves the caches as it will find them again
        for inputs in all_steps:
            program(inputs)
    expected = [[program(inputs).clone() for inputs in all_steps] for program in programs]

    def run(number: int) -> bool:
        return all(
            torch.equal(programs[number](inputs), wanted)
            for _ in range(5)
            for inputs, wanted in zip(all_steps, expected[number], strict=True)
        )

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(4)))


def test_many_tiny_rounds_on_more_threads_than_cores() -> None:
    kernels = CpuKernels(6)
    weight = kernels.pack_linear(torch.randn(256, 32))
    recorded = kernels.compile(SmallModel(kernels))
    inputs = make_inputs([1, 1, 1], [4, 9, 2], num_blocks=BLOCKS, num_tokens=VOCAB)
    expected = recorded(inputs).clone()
    x = torch.randn(3, 32)
    product = kernels.linear(x, weight)
    for _ in range(300):
        assert torch.equal(recorded(inputs), expected)
        assert torch.equal(kernels.linear(x, weight), product)


def test_time_by_operation() -> None:
    recorded = KERNELS.compile(SmallModel(KERNELS))
    inputs = make_inputs([3], num_blocks=BLOCKS, num_tokens=VOCAB)
    recorded(inputs)
    assert recorded.seconds == {}
    recorded.start_timing()
    recorded(inputs)
    assert {"plan", "embedding", "rms_norm", "qkv_to_cache", "paged_attention", "linear 64 -> 192 gated"} <= set(
        recorded.seconds
    )
    assert all(seconds > 0 for seconds in recorded.seconds.values())


def test_a_system_that_gives_fewer_threads() -> None:
    """The address space ends after some stacks: those threads are stopped, and the process goes on."""
    script = """
import resource, threading
from paged_backend.errors import KernelError
from paged_backend.kernels.cpu.kernels import CpuKernels

with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))
try:
    CpuKernels(1000)
except KernelError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(CpuKernels(3).num_threads)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    told = r"num_threads is 1000, but the system gives this process \d+ \(.+\): lower .*\n3\n$"
    assert re.match(told, done.stdout), done


def test_runtimes_that_cannot_be_are_refused() -> None:
    for num_threads in (0, 100_000):
        with pytest.raises(KernelError, match=f"num_threads must be 1 or more, and 1024 at most, got {num_threads}"):
            CpuKernels(num_threads)
    with pytest.raises(KernelError, match="instruction_set must be auto"):
        CpuKernels(1, "abacus")
