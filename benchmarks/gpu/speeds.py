"""The Triton kernels' times beside what bandwidth and multipliers allow, in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.card import Card, Rates
from benchmarks.gpu.cases import AttentionCase, Heads
from paged_backend.errors import KernelError
from paged_backend.kernels.cache_layout import CACHE_DTYPES
from paged_backend.kernels.interface import Kernels
from paged_backend.kernels.quantized_weight import QuantizedWeight
from paged_backend.kernels.registry import select_kernels
from paged_backend.kernels.sampling_batch import SamplingBatch

DECODE_GOAL = 0.8
"""Of the bandwidth, at 256 sequences of 2,048 tokens."""
PREFILL_GOAL = 400e12
"""Operations a second, with heads of 128."""


class Work(NamedTuple):
    """What a launch has to do.

    Attributes:
        num_bytes: that it must read and write.
        num_operations: of multipliers.
    """

    num_bytes: float
    num_operations: float = 0.0


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        of_limit: the limit's time over the measured one; the limit is the larger of both works over their rates.
        goal: what a figure must reach, in words, or None.
        reached: whether it does.
        problem: why there is no figure.
    """

    name: str
    microseconds: float | None = None
    gigabytes_per_s: float | None = None
    teraflops: float | None = None
    of_limit: float | None = None
    goal: str | None = None
    reached: bool | None = None
    problem: str | None = None


class SpeedSizes(NamedTuple):
    """How large the measured work is."""

    num_streams: int
    context: int
    prompt: int
    hidden: int
    intermediate: int
    num_rows: int
    vocab_size: int
    heads: tuple[Heads, ...]


ON_CARD = SpeedSizes(
    256, 2048, 8192, 4096, 14_336, 8192, 151_936, (Heads(32, 8, 128), Heads(16, 8, 128), Heads(32, 8, 64))
)
TRIAL = SpeedSizes(2, 20, 20, 32, 48, 3, 100, (Heads(4, 2, 16),))


def all_speeds(card: Card, rates: Rates, sizes: SpeedSizes) -> Iterator[tuple[str, Callable[[], Speed]]]:
    """(name, how to measure it)."""
    meter = _Meter(card, rates, sizes)
    for heads in sizes.heads:
        shape = f"{heads.num_heads}/{heads.num_kv_heads} heads of {heads.head_size}"
        for cache_dtype in (meter.kernels.cache_dtypes[0], "int8", "fp8_e4m3"):
            name = f"decode attention, {sizes.num_streams} x {sizes.context}, {shape}, cache {cache_dtype}"
            yield name, partial(meter.decode, name, heads, cache_dtype)
        name = f"prefill attention, {sizes.prompt} tokens, {shape}"
        yield name, partial(meter.prefill, name, heads)
    for form in ("library", "batch_invariant", "int8", "int4", "fp8"):
        for num_rows in (1, 32, sizes.num_rows):
            name = f"linear, {form}, {num_rows} x {sizes.hidden} x {2 * sizes.intermediate}, gated"
            yield name, partial(meter.linear, name, form, num_rows)
    for operation in ("rms_norm", "layer_norm"):
        name = f"{operation}, {sizes.num_rows} x {sizes.hidden}"
        yield name, partial(meter.norm, name, operation)
    for top_k in (0, 50):
        name = f"sample, {sizes.num_streams} x {sizes.vocab_size}{', top-k' if top_k else ''}"
        yield name, partial(meter.sample, name, top_k)


def measure(name: str, run: Callable[[], Speed]) -> Speed:
    """What is raised is a result too."""
    try:
        return run()
    except KernelError as error:
        return Speed(name, problem=str(error))
    except Exception as error:  # a card's memory, a compiler: the other figures go on
        return Speed(name, problem=f"{type(error).__name__}: {error}"[:400])


class _Meter:
    def __init__(self, card: Card, rates: Rates, sizes: SpeedSizes) -> None:
        self.card, self.rates, self.sizes = card, rates, sizes
        # The interpreter computes bfloat16 wrongly, and times say nothing there.
        self.dtype = torch.bfloat16 if card.is_real else torch.float32
        self.kernels = select_kernels("triton", card.device, dtype=self.dtype)
        self.fixed = select_kernels("triton", card.device, dtype=self.dtype, batch_invariant=True)

    def decode(self, name: str, heads: Heads, cache_dtype: str) -> Speed:
        count, context = self.sizes.num_streams, self.sizes.context
        case = self._case(heads, [1] * count, [context] * count, cache_dtype)
        scales = 4 if case.cache.has_scales else 0
        head_bytes = CACHE_DTYPES[cache_dtype].itemsize * heads.head_size + scales
        work = Work(2.0 * count * context * heads.num_kv_heads * head_bytes + 2 * case.query.nbytes)
        goal = f">= {DECODE_GOAL:.0%} of bandwidth" if heads.head_size == 128 and not scales else None
        return self._speed(name, work, lambda: case.run(self.kernels), goal, lambda speed: speed.of_limit, DECODE_GOAL)

    def prefill(self, name: str, heads: Heads) -> Speed:
        length = self.sizes.prompt
        case = self._case(heads, [length], [length], self.kernels.cache_dtypes[0])
        # Two products of which causality leaves half.
        work = Work(2 * case.query.nbytes, 2.0 * heads.num_heads * heads.head_size * length * (length + 1))
        goal = f">= {PREFILL_GOAL / 1e12:.0f} TFLOP/s" if heads.head_size == 128 else None
        return self._speed(
            name, work, lambda: case.run(self.kernels), goal, lambda speed: speed.teraflops, PREFILL_GOAL / 1e12
        )

    def linear(self, name: str, form: str, num_rows: int) -> Speed:
        kernels: Kernels = self.fixed if form == "batch_invariant" else self.kernels
        outputs, inputs = 2 * self.sizes.intermediate, self.sizes.hidden
        layer = kernels.pack_linear(self._weight(form, outputs, inputs), gated=True)
        x = self._randn(num_rows, inputs)
        num_bytes = layer.num_bytes + x.nbytes + num_rows * outputs // 2 * x.itemsize
        work = Work(num_bytes, 2.0 * num_rows * inputs * outputs)
        return self._speed(name, work, lambda: kernels.linear(x, layer, activation="silu"))

    def norm(self, name: str, operation: str) -> Speed:
        x = self._randn(self.sizes.num_rows, self.sizes.hidden)
        weight, bias = torch.randn(2, self.sizes.hidden, device=self.card.device)
        if operation == "rms_norm":
            return self._speed(name, Work(2 * x.nbytes), lambda: self.kernels.rms_norm(x, weight, 1e-6))
        return self._speed(name, Work(2 * x.nbytes), lambda: self.kernels.layer_norm(x, weight, bias, 1e-6))

    def sample(self, name: str, top_k: int) -> Speed:
        """With the host's part: making tables, and reading the tokens."""
        count = self.sizes.num_streams
        logits = torch.randn(count, self.sizes.vocab_size, device=self.card.device)
        batch = SamplingBatch(
            seeds=[(row,) for row in range(count)],
            temperatures=[0.8] * count,
            positions=[100] * count,
            top_k=[top_k] * count,
            top_p=[1.0] * count,
            min_p=[0.0] * count,
        )
        return self._speed(name, Work(logits.nbytes), lambda: self.kernels.sample(logits, batch), graph=False)

    def _case(self, heads: Heads, rows: list[int], contexts: list[int], cache_dtype: str) -> AttentionCase:
        return AttentionCase.make(heads, rows, contexts, self.dtype, cache_dtype, self.card.device)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.card.device).to(self.dtype)

    def _weight(self, form: str, num_outputs: int, num_inputs: int) -> Tensor | QuantizedWeight:
        """Random: what numbers a weight holds does not change how long it takes."""
        device = self.card.device
        if form in ("library", "batch_invariant"):
            return self._randn(num_outputs, num_inputs)
        if form == "fp8":
            values = torch.randn(num_outputs, num_inputs, device=device).to(torch.float8_e4m3fn)
            return QuantizedWeight(values, torch.ones(num_outputs, 1, device=device), 8, num_inputs)
        bits, group = (8, num_inputs) if form == "int8" else (4, min(64, num_inputs))
        shape = (num_outputs, num_inputs)
        values = torch.randint(-7, 8, shape, device=device, dtype=torch.int8)
        return QuantizedWeight(values, torch.ones(num_outputs, -(-num_inputs // group), device=device), bits, group)

    def _speed(
        self,
        name: str,
        work: Work,
        run: Callable[[], object],
        goal: str | None = None,
        figure: Callable[[Speed], float | None] | None = None,
        wanted: float = 0.0,
        *,
        graph: bool = True,
    ) -> Speed:
        seconds = self.card.seconds(run, graph=graph)
        least = max(work.num_bytes / self.rates.bandwidth, work.num_operations / self.rates.matmul)
        speed = Speed(
            name,
            microseconds=round(seconds * 1e6, 1),
            gigabytes_per_s=round(work.num_bytes / seconds / 1e9, 1),
            teraflops=round(work.num_operations / seconds / 1e12, 2) if work.num_operations else None,
            of_limit=round(least / seconds, 3),
            goal=goal,
        )
        if goal is None or figure is None:
            return speed
        return Speed(**{**vars(speed), "reached": (figure(speed) or 0.0) >= wanted})
