"""The engine without a server: throughput, one stream, prefill, the cache's waste, Python's share of a step.

    python -m benchmarks.engine.offline [--models smollm2-135m qwen3-0.6b] [--precisions bf16 int8 int4]
        [--parts throughput one_stream prefill scheduling] [--quick] [--output FILE]

Models have random weights in real shapes (benchmarks/models.py), prompts are random tokens, greedy, and end of sequence
does not end them. All of it goes through `LLM`; a probe times the parts of its steps (benchmarks/engine/probe.py). A
configuration that fails is reported with its error, and the others go on.

Limits, with the memory's reading speed measured in the same run: one stream cannot give more tokens a second than that
speed over the bytes of weights that a token reads (every linear layer once; scales, norms and the KV cache are left
out, so the limit is a little higher than what can be reached).
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

from benchmarks.engine.probe import Probe, StepTimes, core_of, kv_waste, median_of, runtime_of
from benchmarks.engine.settings import PRECISIONS, WEIGHT_BITS, model_folder, model_name
from benchmarks.limits import LimitMeter
from benchmarks.report import finish, make_parser, rounded, say
from benchmarks.workloads import FIRST_PLAIN_ID, Workload, load_workload
from paged_backend import LLM, SamplingParams

Record = dict[str, Any]

LARGE_MODELS: Final = {"qwen3-0.6b": 12}
"""Models that get only so many requests of each workload."""

MAX_MODEL_LEN: Final = 2304
SCHEDULING_GOAL: Final = 0.05
"""The most of a step of 64 sequences that scheduler and bookkeeping may take."""

_NUM_CURVE_POINTS: Final = 200


def measure_throughput(llm: LLM, model: str, quick: bool) -> Record:
    """All requests of a workload at once, for lengths that vary and lengths that do not."""
    results: Record = {}
    for name in ("lognormal-48", "fixed-32x128x128"):
        workload = load_workload(name, vocab_size(llm)).first(4 if quick else LARGE_MODELS.get(model, 10**9))
        seconds, steps = run_workload(llm, workload)
        results[workload.name] = result = {
            "requests": len(workload.requests),
            "prompt_tokens": workload.num_prompt_tokens,
            "output_tokens": workload.num_output_tokens,
            "seconds": seconds,
            "output_tokens_per_s": workload.num_output_tokens / seconds,
            "total_tokens_per_s": (workload.num_output_tokens + workload.num_prompt_tokens) / seconds,
            "steps": len(steps),
            "kv_waste": kv_waste(steps),
            "kv_waste_curve": waste_curve(steps),
        }
        say(
            f"  {workload.name}: {result['output_tokens_per_s']:.1f} output tokens/s, "
            f"{result['total_tokens_per_s']:.1f} in all, KV waste {result['kv_waste']:.2%}"
        )
    return results


def measure_one_stream(llm: LLM, model: str, quick: bool, bits: int) -> Record:
    """Decode at batch 1: tokens a second, as a fraction of what the memory allows, and Python's share.

    In short rounds, each between two measurements of the memory, because a shared machine's memory changes its speed
    within seconds: the fraction is the median of the rounds'. A step reads for tens of milliseconds, so its limit is
    the mean speed of a long read; `of_peak` compares with what the best short reads reach.
    """
    num_rounds, num_tokens = (2, 8) if quick else (12, 16)
    meter = LimitMeter(runtime_of(llm._client), 0.02 if quick else 0.05)
    num_bytes = weight_bytes(llm, bits)
    steps: list[StepTimes] = []
    bandwidths, peaks, periods_s = [], [], []
    for number in range(num_rounds):
        with meter.around() as limits, Probe(llm._client) as probe:
            llm.generate([random_prompt(llm, 32, f"one stream {number}")], greedy(num_tokens), use_tqdm=False)
        decodes = [step for step in probe.steps()[:-1] if step.is_decode]
        bandwidths.append(limits["memory_mean_bytes"])
        peaks.append(limits["memory_bytes"])
        periods_s.append(median_of(decodes, lambda step: step.period_s))
        steps += decodes
    of_limit = [num_bytes / rate / period_s for rate, period_s in zip(bandwidths, periods_s, strict=True)]
    result = {
        "rounds": num_rounds,
        "output_tokens_per_round": num_tokens,
        "step_ms": statistics.median(periods_s) * 1e3,
        "tokens_per_s": 1 / statistics.median(periods_s),
        "memory_gb_per_s": [rate / 1e9 for rate in bandwidths],
        "memory_peak_gb_per_s": [rate / 1e9 for rate in peaks],
        "weight_mb_per_token": num_bytes / 1e6,
        "limit_tokens_per_s": statistics.median(bandwidths) / num_bytes,
        "of_limit": statistics.median(of_limit),
        "of_limit_by_round": of_limit,
        "of_peak": statistics.median(
            num_bytes / rate / period_s for rate, period_s in zip(peaks, periods_s, strict=True)
        ),
        "python_share": median_of(steps, lambda step: 1 - step.native_s / step.period_s),
        "sampling_share": median_of(steps, lambda step: step.sample_s / step.period_s),
        **parts_us(steps),
    }
    say(
        f"  one stream: {result['tokens_per_s']:.1f} tokens/s, {result['of_limit']:.1%} of the memory's limit "
        f"({result['of_peak']:.1%} of its peak); "
        f"Python's share {result['python_share']:.1%} of a step"
    )
    return result


def measure_prefill(llm: LLM, model: str, quick: bool) -> Record:
    """Prompt tokens a second, from a request's submission to its first token; another prompt each time."""
    results: Record = {}
    for num_tokens in (512,) if quick else (512, 2048):
        seconds = []
        for repeat in range(2 if quick else 3):
            prompt = random_prompt(llm, num_tokens, f"prefill {repeat}")
            start_s = time.perf_counter()
            llm.generate([prompt], greedy(1), use_tqdm=False)
            seconds.append(time.perf_counter() - start_s)
        middle_s = statistics.median(seconds)
        results[str(num_tokens)] = {"seconds": middle_s, "tokens_per_s": num_tokens / middle_s}
        say(f"  prefill of {num_tokens}: {num_tokens / middle_s:.0f} tokens/s")
    return results


def measure_scheduling(llm: LLM, model: str, quick: bool) -> Record:
    """What surrounds the model in a decode step of 1 and of 64 sequences: with and without what follows the commit."""
    results: Record = {}
    for count in (1, 64):
        workload = load_workload(f"fixed-{count}x16x{8 if quick else 24}", vocab_size(llm), seed=count)
        _, steps = run_workload(llm, workload)
        decodes = [step for step in steps[:-1] if step.is_decode and step.num_sequences == count]
        result: Record = {
            "sequences": count,
            "steps": len(decodes),
            "goal": SCHEDULING_GOAL,
            "step_ms": median_of(decodes, lambda step: step.period_s) * 1e3,
            "scheduling_share": median_of(decodes, lambda step: step.scheduling_s / step.period_s),
            "scheduling_and_rest_share": median_of(
                decodes, lambda step: (step.scheduling_s + step.rest_s) / step.period_s
            ),
            "python_share": median_of(decodes, lambda step: 1 - step.native_s / step.period_s),
            **parts_us(decodes),
        }
        results[str(count)] = result
        say(
            f"  {count} sequences: plan, inputs and commit {result['scheduling_share']:.2%} of a step, with what "
            f"follows them {result['scheduling_and_rest_share']:.2%} (goal {SCHEDULING_GOAL:.0%}); Python "
            f"{result['python_share']:.2%}"
        )
    return results


def parts_us(steps: list[StepTimes]) -> Record:
    """Medians of a step's parts in microseconds; `rest` is gains, text, metrics, streams and the engine's loop;
    `native` is C++, within `forward` and `sample`."""
    parts: dict[str, Callable[[StepTimes], float]] = {
        "plan": lambda step: step.plan_s,
        "inputs": lambda step: step.inputs_s,
        "forward": lambda step: step.forward_s,
        "sample": lambda step: step.sample_s,
        "commit": lambda step: step.commit_s,
        "rest": lambda step: step.rest_s,
        "native": lambda step: step.native_s,
    }
    return {"parts_us": {name: median_of(steps, value) * 1e6 for name, value in parts.items()}}


def run_workload(llm: LLM, workload: Workload) -> tuple[float, list[StepTimes]]:
    """Runs all requests; returns how many seconds that took, less the probe's own, and the steps."""
    params = [greedy(request.num_output_tokens) for request in workload.requests]
    prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in workload.requests]
    with Probe(llm._client) as probe:
        start_s = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start_s - probe.own_s
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert num_tokens == workload.num_output_tokens, "every request gets its length"
    return seconds, probe.steps()


def waste_curve(steps: list[StepTimes]) -> list[list[float]]:
    """[seconds since the beginning, reserved slots, empty slots], a few hundred points at most."""
    stride = max(1, len(steps) // _NUM_CURVE_POINTS)
    return [
        [step.start_s - steps[0].start_s, step.num_reserved_slots, step.num_empty_slots] for step in steps[::stride]
    ]


def weight_bytes(llm: LLM, bits: int) -> float:
    """Bytes of linear weights that one token reads."""
    shape: Any = core_of(llm._client)._executor.architecture
    attention = 2 * shape.hidden_size * (shape.query_size + shape.kv_size)
    feed_forward = (3 if shape.gated else 2) * shape.hidden_size * shape.intermediate_size
    logits = shape.vocab_size * shape.embedding_size
    return float(shape.num_layers * (attention + feed_forward) * bits + logits * max(bits, 8)) / 8


def greedy(max_tokens: int) -> SamplingParams:
    """Greedy, to the given length; text is made, as users get it."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def random_prompt(llm: LLM, num_tokens: int, seed: str) -> dict[str, list[int]]:
    """A prompt that no prefix is known of."""
    draw = random.Random(seed)
    return {"prompt_token_ids": [draw.randrange(FIRST_PLAIN_ID, vocab_size(llm)) for _ in range(num_tokens)]}


def vocab_size(llm: LLM) -> int:
    """The model's."""
    return llm._client.vocab_size


PARTS: Final[dict[str, Callable[..., Record]]] = {
    "throughput": measure_throughput,
    "one_stream": measure_one_stream,
    "prefill": measure_prefill,
    "scheduling": measure_scheduling,
}


def measure(model: str, precision: str, args: argparse.Namespace) -> Record:
    """All parts of one configuration."""
    engine_args = PRECISIONS[precision]
    say(f"{model}, {precision}")
    start_s = time.perf_counter()
    with LLM(model_folder(model), max_model_len=args.max_model_len, **engine_args) as llm:
        result: Record = {
            "model": model_name(model),
            "precision": precision,
            "engine_args": engine_args,
            "load_s": time.perf_counter() - start_s,
        }
        llm.generate([random_prompt(llm, 40, "warm")], greedy(4), use_tqdm=False)
        for name in args.parts:
            extra = {"bits": WEIGHT_BITS[precision]} if name == "one_stream" else {}
            result[name] = PARTS[name](llm, model, args.quick, **extra)
    return result


def main() -> None:
    """Measures every configuration, and ends in JSON; status 1 where one failed."""
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "qwen3-0.6b"], help="shapes, or model folders")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "int8", "int4"], choices=list(PRECISIONS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--max-model-len", type=int, default=MAX_MODEL_LEN, help=f"tokens (default {MAX_MODEL_LEN})")
    args = parser.parse_args()
    if args.quick:
        args.models = args.models[:1]
    results: list[Record] = []
    for model in args.models:
        for precision in args.precisions:
            try:
                results.append(measure(model, precision, args))
            except Exception as error:
                traceback.print_exc()
                results.append({"model": model_name(model), "precision": precision, "error": str(error)})
    finish(rounded({"benchmark": "engine/offline", "results": results}), args.output)
    sys.exit(any("error" in result for result in results))


if __name__ == "__main__":
    main()
