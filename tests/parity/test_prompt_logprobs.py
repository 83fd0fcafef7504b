"""Log-probabilities of prompts: transformers' numbers, and the same bits however the prompt came to be computed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from paged_backend import LLM, RequestOutput, SamplingParams
from paged_backend.engine import core as core_module
from paged_backend.scheduler.plan import StepPlan, StepResult
from tests.engine_driver import new_core, run_core
from tests.tiny_models import FAMILIES, VOCAB_SIZE, make_tiny_model

TOLERANCE = 2e-4


def random_prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, VOCAB_SIZE) for _ in range(length)]


PROMPTS = [random_prompt(length, length) for length in (1, 2, 7, 31, 64, 100)]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_has_the_same_numbers(family: str, tmp_path: Path) -> None:
    folder = make_tiny_model(family, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    params = SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=3, logprobs=3, ignore_eos=True)
    outputs = run_core(new_core(folder, max_num_batched_tokens=40, max_num_seqs=8), [(p, params) for p in PROMPTS])
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        tokens = [*prompt, *output.outputs[0].token_ids]
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), dim=-1)
        assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
        entries = [*output.prompt_logprobs[1:], *(output.outputs[0].logprobs or ())]
        assert len(entries) == len(tokens) - 1
        for place, entry in enumerate(entries):
            assert entry is not None
            row, token = expected[place], tokens[place + 1]
            assert entry[token].logprob == pytest.approx(float(row[token]), abs=TOLERANCE)
            more_likely = (row > row[token] + TOLERANCE).sum(), (row > row[token] - TOLERANCE).sum()
            assert more_likely[0] + 1 <= entry[token].rank <= more_likely[1] + 1
            top = sorted((c for c in entry.values() if c.rank <= 3), key=lambda c: c.rank)
            assert [c.logprob for c in top] == pytest.approx(row.topk(3).values.tolist(), abs=TOLERANCE)
            assert 3 <= len(entry) <= 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"), tokenizer=True)


LONG = [random_prompt(length, 200 + length) for length in (40, 61, 80, 33, 96, 47)]
ASKED = SamplingParams(max_tokens=24, seed=5, prompt_logprobs=2, ignore_eos=True)


def facts(output: RequestOutput) -> tuple[Any, ...]:
    return output.prompt_logprobs, [(sample.token_ids, sample.logprobs) for sample in output.outputs]


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[tuple[Any, ...]]:
    """Each by itself, in one piece."""
    return [facts(run_core(new_core(folder), [(prompt, ASKED)])[0]) for prompt in LONG]


TIGHT = {
    "num_gpu_blocks_override": 24,
    "max_model_len": 190,
    "block_size": 8,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 8,
}


@pytest.mark.parametrize(
    ("engine_args", "max_rows"),
    [
        ({}, 10**6),
        ({"max_num_batched_tokens": 11, "max_num_seqs": 8}, 10**6),
        ({"max_num_batched_tokens": 64, "max_num_seqs": 8}, 5),
        (TIGHT, 2),
        ({**TIGHT, "kv_offloading_size": 0.001, "preemption_mode": "swap"}, 2),
        ({"enable_prefix_caching": False, "num_threads": 3}, 1),
    ],
    ids=str,
)
def test_the_bits_are_the_same_in_company(
    folder: Path,
    alone: Sequence[tuple[Any, ...]],
    engine_args: dict[str, Any],
    max_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core_module, "_SCORED_BYTES", 4 * VOCAB_SIZE * max_rows)
    core = new_core(folder, **engine_args)
    plain = SamplingParams(max_tokens=60, seed=5, ignore_eos=True)
    num_resumed = 0
    run = core._executor.run

    def look_and_run(plan: StepPlan) -> StepResult:
        nonlocal num_resumed
        for task in plan.scoring:
            line = plan.sequences[task.line]
            num_resumed += line.num_computed_tokens + task.offset > 0 and line.seq_id not in seen
        seen.update(line.seq_id for line in plan.sequences)
        seen.intersection_update(line.seq_id for line in plan.sequences)
        return run(plan)

    seen: set[int] = set()
    core._executor.run = look_and_run  # type: ignore[method-assign]
    others = [(prompt[: len(prompt) - 3], plain) for prompt in LONG]
    for steps_between in (0, 2):  # the second time, prefixes are warm
        outputs = run_core(core, [*others, *((prompt, ASKED) for prompt in LONG)], steps_between=steps_between)
        assert [facts(output) for output in outputs[len(others) :]] == list(alone)
        assert [output.outputs[0].token_ids for output in outputs[: len(others)]]
        assert all(output.num_cached_tokens == 0 for output in outputs[len(others) :])
    assert (num_resumed > 0) == ("num_gpu_blocks_override" in engine_args), "preempted between two pieces of a prompt"


def test_no_step_scores_more_rows_than_it_may(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "_SCORED_BYTES", 4 * VOCAB_SIZE * 12)
    core = new_core(folder, max_num_seqs=8)
    counts = []
    run = core._executor.run

    def count_and_run(plan: StepPlan) -> StepResult:
        counts.append([len(task.token_ids) for task in plan.scoring])
        return run(plan)

    core._executor.run = count_and_run  # type: ignore[method-assign]
    run_core(core, [(prompt, ASKED) for prompt in LONG])
    assert all(sum(count) <= 12 + len(count) for count in counts) and max(map(sum, counts)) >= 12
    assert sum(map(sum, counts)) == sum(len(prompt) - 1 for prompt in LONG)


@pytest.mark.parametrize(
    "params", [{"n": 3}, {"n": 2, "best_of": 4}, {"n": 2, "use_beam_search": True}, {"n": 3, "max_tokens": 0}], ids=str
)
def test_samples_and_beams_share_one_prompt(
    folder: Path, alone: Sequence[tuple[Any, ...]], params: dict[str, Any]
) -> None:
    asked = SamplingParams(**{"max_tokens": 5, "prompt_logprobs": 2, **params})
    core = new_core(folder, num_gpu_blocks_override=40, block_size=8, max_num_batched_tokens=32, max_num_seqs=8)
    outputs = run_core(core, [(prompt, asked) for prompt in LONG])
    assert [output.prompt_logprobs for output in outputs] == [expected[0] for expected in alone]
    assert all(len(output.outputs) == asked.n for output in outputs)


def test_scoring_alone_draws_nothing(folder: Path) -> None:
    """Also a prompt that fills the whole context."""
    with LLM(model=str(folder), max_model_len=64, num_threads=1) as llm:
        prompt = random_prompt(64, 1)
        scoring = SamplingParams(max_tokens=0, prompt_logprobs=0)
        prompts = [prompt[:63], prompt, prompt[:1]]
        one_token = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0)
        short, whole, one = llm.generate(prompts, [one_token, scoring, scoring], use_tqdm=False)
        assert whole.prompt_logprobs is not None and short.prompt_logprobs is not None
        assert list(whole.prompt_logprobs[:63]) == list(short.prompt_logprobs) and len(whole.prompt_logprobs) == 64
        assert one.prompt_logprobs == [None]
        for output in (whole, one):
            (sample,) = output.outputs
            assert (sample.token_ids, sample.text, sample.finish_reason) == ([], "", "length")
        params = SamplingParams(max_tokens=0, prompt_logprobs=-1, stop="e")
        with pytest.raises(ValueError, match="max_logprobs"):
            llm.generate([prompt], params, use_tqdm=False)
    with LLM(model=str(folder), max_logprobs=-1, num_threads=1) as llm:
        (output,) = llm.generate([prompt[:9]], params, use_tqdm=False)
        assert output.prompt_logprobs is not None
        for entry in output.prompt_logprobs[1:]:
            assert entry is not None and len(entry) == VOCAB_SIZE
            assert sum(2.718281828459045**candidate.logprob for candidate in entry.values()) == pytest.approx(
                1, abs=1e-4
            )
            assert sorted(candidate.rank for candidate in entry.values()) == list(range(1, VOCAB_SIZE + 1))
            assert all(candidate.decoded_token is not None for candidate in entry.values())
