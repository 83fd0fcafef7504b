"""The C++ operations that only move rows and blocks, against what memory and caches give. Ends in one JSON object.

    python -m benchmarks.kernels.rows [--threads 2] [--seconds 0.1] [--quick] [--output FILE]

limit_us is the time to move what an operation must read and write once, each part at the reading speed of where it
lies, measured right before and after (benchmarks/limits.py). Activations stay in the same few buffers, as in an engine:
they count as in "l2" where they are 256 KiB a thread at most, as what that speed is measured on, else as in "l3".
Tables and KV blocks are cold: "memory". 32 rows are sequences that decode, each in a block of its own; 512 are one
prompt. of_limit is limit_us over the best twentieth of the runs. A key's numbers lie a cache line apart in its block,
so writing one token touches many more bytes than it has; the limit counts only those that it has. Threads share an
operation only where it is worth it; the limit is always that of all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from benchmarks.limits import LimitMeter, Limits
from benchmarks.machine import num_cores
from benchmarks.report import finish, make_parser, say
from paged_backend.kernels.cache_layout import LayerCache, block_bytes
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.recorder import Recorder, run
from paged_backend.kernels.cpu.segments import Buffer
from paged_backend.kernels.interface import StepInputs

BLOCK_SIZE: Final = 16
PROMPT_ROWS: Final = 512
ROW_COUNTS: Final = (32, PROMPT_ROWS)
COLD_BYTES = 96 << 20
REPEATS: Final = 16
"""Operations in a program, one after the other on the same buffers."""

_L2_BYTES: Final = 256 << 10  # a thread


class Shape(NamedTuple):
    """Sizes of some model."""

    name: str
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    qk_norm: bool


SHAPES: Final = (
    Shape("135M", 576, 30, 9, 3, 64, 49152, False),
    Shape("0.6B", 1024, 28, 16, 8, 128, 151_936, True),
)


class Part(NamedTuple):
    """Bytes that an operation moves, and whether they are in no cache before."""

    num_bytes: int
    is_cold: bool = False


class Case(NamedTuple):
    """An operation to time.

    Attributes:
        times: seconds of one operation, run after run.
        parts: what it moves.
    """

    work: str
    times: Iterator[float]
    parts: list[Part]


def make_inputs(num_rows: int, shape: Shape, num_slots: int, num_logits_rows: int | None = None) -> StepInputs:
    """Rows of random tokens at random places of the cache, those of a prompt side by side."""
    slots = torch.randperm(num_slots)[:num_rows]
    if num_rows == PROMPT_ROWS:
        slots = torch.arange(num_rows) + int(torch.randint(num_slots - num_rows + 1, ())) // BLOCK_SIZE * BLOCK_SIZE
    return StepInputs(
        token_ids=torch.randint(shape.vocab_size, (num_rows,)),
        positions=torch.randint(2048, (num_rows,)),
        slot_mapping=slots,
        block_tables=torch.empty(0, 0, dtype=torch.int32),
        query_start=torch.zeros(1, dtype=torch.int32),
        context_lens=torch.empty(0, dtype=torch.int32),
        logits_rows=None if num_logits_rows is None else torch.randperm(num_rows)[:num_logits_rows],
    )


def program_times(
    runtime: _cpu.Runtime,
    operation: str,
    record: Callable[[Recorder, list[Buffer]], Buffer],
    widths: list[int],
    inputs: Callable[[], StepInputs],
    count: int = REPEATS,
) -> Iterator[float]:
    """Seconds of one of the `count` operations that `record` writes down, from the program's own clock."""
    recorder = Recorder(runtime, {})
    result = record(recorder, [recorder.input(width) for width in widths])
    program = recorder.finish([result])
    program.timed = True
    first = inputs()
    num_rows = first.token_ids.shape[0]
    rows = [torch.randn(num_rows, width) for width in widths]
    out = torch.empty(num_rows, program.output_stride(0))
    while True:
        before = program.seconds.get(operation, 0.0)
        run(program, inputs(), rows, [out])
        yield (program.seconds[operation] - before) / count


def norms(runtime: _cpu.Runtime, shape: Shape, num_rows: int) -> Iterator[Case]:
    """Both norms: a row in, a row out, each of what the one before has given."""
    weight, bias = torch.ones(shape.hidden), torch.zeros(shape.hidden)
    row_bytes = num_rows * shape.hidden * 4
    inputs = make_inputs(num_rows, shape, num_rows)

    def record(norm: Callable[[Recorder, Buffer], Buffer]) -> Callable[[Recorder, list[Buffer]], Buffer]:
        def chain(recorder: Recorder, given: list[Buffer]) -> Buffer:
            (x,) = given
            for _ in range(REPEATS):
                x = norm(recorder, x)
            return x

        return chain

    norms: dict[str, Callable[[Recorder, Buffer], Buffer]] = {
        "rms_norm": lambda recorder, x: recorder.rms_norm(x, weight, 1e-5),
        "layer_norm": lambda recorder, x: recorder.layer_norm(x, weight, bias, 1e-5),
    }
    for name, norm in norms.items():
        times = program_times(runtime, name, record(norm), [shape.hidden], lambda: inputs)
        yield Case(name, times, [Part(2 * row_bytes)])


def qkv_to_cache(runtime: _cpu.Runtime, shape: Shape, num_rows: int) -> Iterator[Case]:
    """Norms (where the model has them), rotary, and the write into a bfloat16 cache, layer after layer."""
    size = block_bytes("bfloat16", shape.num_kv_heads, BLOCK_SIZE, shape.head_size)
    num_blocks = max(-(-num_rows // BLOCK_SIZE), COLD_BYTES // (2 * REPEATS * size))
    storage = torch.zeros(REPEATS, 2, num_blocks, size, dtype=torch.uint8)
    caches = [
        LayerCache(
            keys=layer[0],
            values=layer[1],
            dtype="bfloat16",
            num_kv_heads=shape.num_kv_heads,
            block_size=BLOCK_SIZE,
            head_size=shape.head_size,
        )
        for layer in storage
    ]
    rotary = (torch.ones(2048, shape.head_size // 2), torch.zeros(2048, shape.head_size // 2))
    norm = torch.ones(shape.head_size) if shape.qk_norm else None
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_size

    def record(recorder: Recorder, given: list[Buffer]) -> Buffer:
        for cache in caches:
            result = recorder.qkv_to_cache(
                *(given[0], cache, recorder.inputs),
                num_heads=shape.num_heads,
                rotary=rotary,
                query_norm=norm,
                key_norm=norm,
                norm_eps=1e-6 if shape.qk_norm else 0.0,
            )
        return result

    times = program_times(
        runtime, "qkv_to_cache", record, [width], lambda: make_inputs(num_rows, shape, num_blocks * BLOCK_SIZE)
    )
    activations = num_rows * (width + shape.num_heads * shape.head_size) * 4
    written = num_rows * 2 * shape.num_kv_heads * shape.head_size * 2
    yield Case("qkv_to_cache", times, [Part(activations), Part(written, is_cold=True)])


def embedding(runtime: _cpu.Runtime, shape: Shape, num_rows: int) -> Iterator[Case]:
    """Rows of a bfloat16 table, other ones each time."""
    table = torch.randn(min(shape.vocab_size, COLD_BYTES // (2 * shape.hidden)), shape.hidden, dtype=torch.bfloat16)
    shape = shape._replace(vocab_size=len(table))
    times = program_times(
        runtime,
        "embedding",
        lambda recorder, _: recorder.embedding(table, "token_ids", recorder.inputs),
        [],
        lambda: make_inputs(num_rows, shape, num_rows),
        count=1,
    )
    read, written = num_rows * shape.hidden * 2, num_rows * shape.hidden * 4
    yield Case("embedding", times, [Part(read, is_cold=True), Part(written)])


def select_rows(runtime: _cpu.Runtime, shape: Shape, num_rows: int) -> Iterator[Case]:
    """Half of the rows."""
    inputs = make_inputs(num_rows, shape, num_rows, num_rows // 2)

    def record(recorder: Recorder, given: list[Buffer]) -> Buffer:
        return [recorder.select_rows(given[0], recorder.inputs) for _ in range(REPEATS)][-1]

    times = program_times(runtime, "select_rows", record, [shape.hidden], lambda: inputs)
    moved = 2 * (num_rows // 2) * shape.hidden * 4
    yield Case("select_rows", times, [Part(moved)])


def copy_blocks(runtime: _cpu.Runtime, shape: Shape, num_rows: int) -> Iterator[Case]:
    """A bfloat16 block of all layers for each 16 rows: here `rows` counts the tokens in the blocks."""
    size = block_bytes("bfloat16", shape.num_kv_heads, BLOCK_SIZE, shape.head_size)
    count = num_rows // BLOCK_SIZE
    num_blocks = max(2 * count, COLD_BYTES // (2 * shape.num_layers * size))
    storage = torch.zeros(shape.num_layers, 2, num_blocks, size, dtype=torch.uint8)

    def times() -> Iterator[float]:
        while True:
            pairs: Tensor = torch.randperm(num_blocks)[: 2 * count].view(-1, 2)
            begin = perf_counter()
            _cpu.copy_blocks(runtime, storage, pairs)
            yield perf_counter() - begin

    yield Case("copy_blocks", times(), [Part(2 * count * 2 * shape.num_layers * size, is_cold=True)])


OPERATIONS: Final = (norms, qkv_to_cache, embedding, select_rows, copy_blocks)


def level(part: Part, num_threads: int) -> str:
    """Where it lies."""
    if part.is_cold:
        return "memory"
    return "l2" if part.num_bytes <= _L2_BYTES * num_threads else "l3"


def limit_seconds(parts: list[Part], limits: Limits, num_threads: int) -> float:
    """The least time to move all parts."""
    return sum(part.num_bytes / limits[level(part, num_threads) + "_bytes"] for part in parts)


def measure(meter: LimitMeter, case: Case, num_threads: int, seconds: float) -> dict[str, Any]:
    """One line of the table."""
    with meter.around() as limits:
        end = perf_counter() + seconds
        times: list[float] = []
        for taken in itertools.islice(case.times, 1, None):  # the first warms up
            times.append(taken)
            if perf_counter() > end and len(times) > 4:
                break
    best_s = sorted(times)[len(times) // 20]
    num_bytes = sum(part.num_bytes for part in case.parts)
    levels = dict.fromkeys(level(part, num_threads) for part in case.parts)
    limit_s = limit_seconds(case.parts, limits, num_threads)
    return {
        "microseconds": round(best_s * 1e6, 2),
        "limit_us": round(limit_s * 1e6, 2),
        "limit": " and ".join(levels),
        "of_limit": round(limit_s / best_s, 3),
        "gb_per_s": round(num_bytes / best_s / 1e9, 2),
    }


def main() -> None:
    """Runs every operation on every shape."""
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--instruction-set", default="auto", help="what C++ runs with (default: the best)")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each figure")
    options = parser.parse_args()
    shapes = SHAPES[:1] if options.quick else SHAPES
    if options.quick:
        options.seconds = 0.02
    torch.manual_seed(0)
    runtime = _cpu.Runtime(options.threads, options.instruction_set)
    meter = LimitMeter(runtime, options.seconds / 10)
    results = []
    for shape in shapes:
        for make in OPERATIONS:
            for num_rows in ROW_COUNTS:
                for case in make(runtime, shape, num_rows):
                    line = measure(meter, case, options.threads, options.seconds)
                    results.append({"work": case.work, "shape": shape.name, "rows": num_rows, **line})
                    say(" ".join(str(value) for value in results[-1].values()))
    report = {
        "benchmark": "kernels/rows",
        "threads": options.threads,
        "instruction_set": runtime.instruction_set,
        "limits_g_per_s": meter.report(),
        "results": results,
    }
    finish(report, options.output)


if __name__ == "__main__":
    main()
