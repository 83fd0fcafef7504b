"""Packed linear layers against this machine's limits, and against torch. Ends in one JSON object on stdout.

    python -m benchmarks.kernels.linear [--threads 2] [--seconds 0.1] [--quick] [--output FILE]

A call's limit is the larger of two times: its weights' bytes over the bandwidth of the memory, and its operations over
the peak of the arithmetic that it uses; both are measured right before and after each call (benchmarks/limits.py).
Copies of a layer take turns, 96 MiB of them, so that no cache holds the weights. All figures are of the best twentieth
of the runs, and with --threads 1 in processor time: other work on the machine counts for little.
"""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.limits import LimitMeter
from benchmarks.machine import num_cores
from benchmarks.report import finish, make_parser, say
from paged_backend.kernels.cpu import _cpu
from paged_backend.kernels.cpu.linear import CpuLinear, Route
from paged_backend.kernels.quantized_weight import QuantizedWeight

ROW_COUNTS = (1, 2, 4, 8, 12, 16, 32, 64, 256)
COLD_BYTES = 96 << 20
PEAKS = {"float32": "float_flops", "int16": "int16_ops", "int8": "int8_ops"}


class Shape(NamedTuple):
    """A layer of some model."""

    name: str
    num_outputs: int
    num_inputs: int
    gated: bool = False


SHAPES = (
    Shape("135M attention output", 576, 576),
    Shape("135M query, key, value", 960, 576),
    Shape("135M gate and up", 3072, 576, gated=True),
    Shape("135M down", 576, 1536),
    Shape("135M head", 49152, 576),
    Shape("0.6B query, key, value", 4096, 1024),
    Shape("0.6B attention output", 1024, 2048),
    Shape("0.6B gate and up", 6144, 1024, gated=True),
    Shape("0.6B down", 1024, 3072),
    Shape("2048 x 2048", 2048, 2048),
    Shape("2048 x 8192", 2048, 8192),
)


class Format(NamedTuple):
    """How a weight is held, and its arithmetic."""

    name: str
    route: Route = "auto"
    bits: int = 0
    group_size: int = 0  # 0: one scale a row


FORMATS = (
    Format("float32"),
    Format("bfloat16"),
    Format("float16"),
    Format("int8", bits=8),
    Format("int8", bits=8, route="int16"),
    Format("int4", bits=4, group_size=128),
    Format("int4", bits=4, group_size=32),
)


def make_layer(runtime: _cpu.Runtime, shape: Shape, form: Format) -> CpuLinear:
    """A layer of random numbers; times do not depend on them."""
    size = (shape.num_outputs, shape.num_inputs)
    if not form.bits:
        weight = torch.randn(size).to(getattr(torch, form.name))
        return CpuLinear(runtime, weight, gated=shape.gated)
    group_size = form.group_size or shape.num_inputs
    values = torch.randint(-7, 8, size, dtype=torch.int8)
    scales = torch.rand(shape.num_outputs, -(-shape.num_inputs // group_size))
    quantized = QuantizedWeight(values, scales, form.bits, group_size)
    return CpuLinear(runtime, quantized, gated=shape.gated, route=form.route)


def rows_apart(num_rows: int, width: int) -> Tensor:
    """As an engine holds activations: the rows a few cache lines further apart than they are wide."""
    return torch.randn(num_rows, width + 16)[:, :width]


def library_seconds(shape: Shape, num_rows: int, seconds: float) -> float:
    """torch's float32 layer, in the best twentieth of calls, its weight as warm as it gets."""
    weight, x = torch.randn(shape.num_outputs, shape.num_inputs), torch.randn(num_rows, shape.num_inputs)
    end = perf_counter() + seconds
    times: list[float] = []
    while perf_counter() < end or len(times) < 5:
        begin = perf_counter()
        linear(x, weight)
        times.append(perf_counter() - begin)
    return sorted(times)[len(times) // 20]


def measure(
    runtime: _cpu.Runtime, meter: LimitMeter, layers: list[CpuLinear], shape: Shape, num_rows: int, seconds: float
) -> dict[str, float | str]:
    """One line of the table."""
    layer = layers[0]
    x, out = rows_apart(num_rows, shape.num_inputs), rows_apart(num_rows, layer.num_outputs)
    packed = [each.packed for each in layers]
    with meter.around() as limits:
        taken = _cpu.time_linear(packed, runtime, x, out, "silu" if shape.gated else "", seconds)
    operations = 2 * num_rows * shape.num_outputs * shape.num_inputs
    by_memory = layer.num_bytes / limits["memory_bytes"]
    by_arithmetic = operations / limits[PEAKS[layer.route]]
    return {
        "microseconds": round(taken * 1e6, 2),
        "limit": "memory" if by_memory > by_arithmetic else "arithmetic",
        "of_limit": round(max(by_memory, by_arithmetic) / taken, 3),
        "gflops": round(operations / taken / 1e9, 1),
        "gb_per_s": round(layer.num_bytes / taken / 1e9, 2),
    }


def main() -> None:
    """Runs every format with every shape."""
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, default=num_cores(), help="threads of torch and of C++")
    parser.add_argument("--instruction-set", default="auto", help="what C++ runs with (default: the best)")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each figure")
    parser.add_argument("--shapes", default="", help="only shapes whose names hold this")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROW_COUNTS), help="numbers of rows")
    options = parser.parse_args()
    shapes = [shape for shape in SHAPES if options.shapes in shape.name]
    if options.quick:
        shapes, options.rows, options.seconds = shapes[:1], options.rows[:2], 0.01
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    runtime = _cpu.Runtime(options.threads, options.instruction_set)
    meter = LimitMeter(runtime, options.seconds / 10)
    results = []
    for shape in shapes:
        library_us = {num_rows: library_seconds(shape, num_rows, options.seconds) * 1e6 for num_rows in options.rows}
        for form in FORMATS:
            layers = [make_layer(runtime, shape, form)]
            layers += [make_layer(runtime, shape, form) for _ in range(COLD_BYTES // layers[0].num_bytes)]
            for num_rows in options.rows:
                line = measure(runtime, meter, layers, shape, num_rows, options.seconds)
                line["torch_float32_us"] = round(library_us[num_rows], 2)
                group = f" in groups of {form.group_size}" if form.group_size else ""
                results.append(
                    {
                        "shape": shape.name,
                        "weights": form.name + group,
                        "route": layers[0].route,
                        "rows": num_rows,
                        **line,
                    }
                )
                say(" ".join(str(value) for value in results[-1].values()))
    report = {
        "benchmark": "kernels/linear",
        "threads": options.threads,
        "instruction_set": runtime.instruction_set,
        "limits_g_per_s": meter.report(),
        "least_of_limit": min(line["of_limit"] for line in results),
        "results": results,
    }
    finish(report, options.output)


if __name__ == "__main__":
    main()
