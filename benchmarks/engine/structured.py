"""What a grammar costs: time per token with and without one, and what it takes to have it compiled.

    python -m benchmarks.engine.structured [--model smollm2-135m] [--precision bf16] [--streams 32] [--quick]

All streams draw as many tokens from the same prompts. `plain`: any. `one schema`: arrays of objects, without an end,
by one JSON schema. `a schema each`: the same, but every stream has a schema of its own. They take turns, so that other
load meets all of them; times are of whole runs. The grammars are known before, but the automaton of each stream is
made within its run. `masks`: the same tokens once more through matchers of their own alone, on one thread.
`compile_s`: from the request's arrival to its first token, less that of a request without a grammar: one that is new,
and one that is known.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

from benchmarks.engine.probe import core_of
from benchmarks.engine.settings import add_engine_arguments, engine_args, model_folder, model_name
from benchmarks.report import finish, make_parser, rounded, say
from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import SamplingParams, StructuredOutputsParams
from paged_backend.structured.token_masks import TokenMasks

KINDS = ("plain", "one schema", "a schema each")


def schema(number: int) -> dict[str, Any]:
    """An array that never ends; each number gives another one."""
    properties = {
        f"name{number}": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,12}$"}, "maxItems": 4},
        "kind": {"enum": ["red", "green", "blue"]},
        "at": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}, "required": ["x"]},
    }
    item = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "array", "items": item, "minItems": 10_000}


def params_of(kind: str, stream: int, max_tokens: int) -> SamplingParams:
    """A stream's parameters."""
    if kind == "plain":
        return SamplingParams(seed=stream, max_tokens=max_tokens, ignore_eos=True)
    structure = StructuredOutputsParams(json=schema(stream if kind == "a schema each" else -1))
    return SamplingParams(seed=stream, max_tokens=max_tokens, structured_outputs=structure)


def run(client: EngineClient, kind: str, num_streams: int, max_tokens: int) -> tuple[float, list[RequestOutput]]:
    """Seconds that all streams take together, and what they gave."""
    start_s = time.perf_counter()
    streams = [client.submit([i + 8] * 8, params_of(kind, i, max_tokens)) for i in range(num_streams)]
    outputs = [stream.collect() for stream in streams]
    seconds = time.perf_counter() - start_s
    assert all(len(output.outputs[0].token_ids) == max_tokens for output in outputs), kind
    return seconds, outputs


def replay(client: EngineClient, outputs: list[RequestOutput]) -> dict[str, float]:
    """Microseconds of CPU per token that masks take, alone, on one thread."""
    source = client._grammars.source(params_of("one schema", 0, 1))
    assert source is not None
    compiler, masks, spent = core_of(client)._grammars._compiler, TokenMasks(client.vocab_size, 1), []
    for output in outputs:
        matcher, tokens = compiler.compile(source).matcher.result(), list(output.outputs[0].token_ids)
        for known in range(len(tokens)):
            begin_ns = time.thread_time_ns()
            masks.fill(0, matcher, tokens[:known], 0)
            spent.append((time.thread_time_ns() - begin_ns) / 1000)
    return {"mean_us": statistics.fmean(spent), "median_us": statistics.median(spent), "worst_us": max(spent)}


def first_token_s(client: EngineClient, params: SamplingParams) -> float:
    """Seconds to a request's first token, with nothing else to do."""
    start_s = time.perf_counter()
    client.submit([9] * 8, params).collect()
    return time.perf_counter() - start_s


def measure_compiling(client: EngineClient, repeats: int) -> dict[str, float]:
    """Median seconds that a grammar adds to the first token."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(repeats):
        times["plain"].append(first_token_s(client, params_of("plain", 0, 1)))
        for kind in ("new", "known"):
            times[kind].append(first_token_s(client, params_of("a schema each", 1000 + number, 1)))
    plain_s = statistics.median(times["plain"])
    return {kind: max(0.0, statistics.median(times[kind]) - plain_s) for kind in ("new", "known")}


def main() -> None:
    """Measures and reports."""
    parser = make_parser(__doc__)
    add_engine_arguments(parser)
    parser.set_defaults(model="smollm2-135m", precision="bf16")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=128, help="of each stream (default 128)")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    num_rounds, max_tokens = (2, 16) if args.quick else (args.rounds, args.max_tokens)
    flat = {"max_num_seqs": args.streams, "max_model_len": 1024, **engine_args(args)}
    client = EngineClient.start(EngineConfig.from_args(flat, model=model_folder(args.model)))
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    outputs: list[RequestOutput] = []
    for kind in KINDS:
        run(client, kind, args.streams, 8)
    for turn in range(num_rounds):
        for kind in KINDS if turn % 2 == 0 else reversed(KINDS):
            spent_s, drawn = run(client, kind, args.streams, max_tokens)
            seconds[kind].append(spent_s)
            if kind == "one schema":
                outputs = drawn
    steps_ms = {kind: statistics.median(seconds[kind]) / max_tokens * 1000 for kind in KINDS}
    ratios = {
        kind: statistics.median(own / plain for own, plain in zip(seconds[kind], seconds["plain"], strict=True))
        for kind in KINDS[1:]
    }
    compile_s = measure_compiling(client, 3 if args.quick else 15)
    masks = replay(client, outputs)
    client.shutdown()
    for kind, ratio in ratios.items():
        say(f"{kind}: {steps_ms[kind]:.2f} ms a step, plain {steps_ms['plain']:.2f} ms: {ratio - 1:+.1%}")
    say(f"masks: {masks['mean_us']:.1f} us a token; a new grammar {compile_s['new'] * 1000:.1f} ms")
    report = {
        "benchmark": "engine/structured",
        "model": model_name(args.model),
        "streams": args.streams,
        "max_tokens": max_tokens,
        "step_ms": steps_ms,
        "of_plain": ratios,
        "masks": masks,
        "compile_s": compile_s,
    }
    finish(rounded(report), args.output)


if __name__ == "__main__":
    main()
