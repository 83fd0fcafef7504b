"""Beam search equals transformers' own in float32, token for token, and shares its blocks."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from paged_backend.engine.core import EngineCore
from paged_backend.engine.request import request_key
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import SamplingParams
from tests.engine_driver import Collector, new_core, new_request, run_core
from tests.tiny_models import VOCAB_SIZE, make_tiny_model

NUM_NEW_TOKENS = 20
RNG = random.Random(5)
ENDS = sorted(RNG.sample(range(5, VOCAB_SIZE), 60))
"""Enough tokens that end a text that random weights come by them."""
PROMPTS = [[RNG.randrange(5, VOCAB_SIZE) for _ in range(length)] for length in (1, 9, 40)]
SEARCH = SamplingParams(
    use_beam_search=True, n=4, max_tokens=NUM_NEW_TOKENS, stop_token_ids=ENDS, ignore_eos=True, logprobs=1
)
VARIANTS = [
    (width, penalty, early)
    for width, penalty in ((2, 0.6), (2, 1.0), (2, 2.0), (4, 0.6), (4, 1.0), (4, 2.0), (4, -1.0))
    for early in (False, True, "never")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"), max_position_embeddings=512)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def core(folder: Path) -> EngineCore:
    return new_core(folder, block_size=8, max_model_len=128)


def truth(model: Any, prompt: list[int], params: SamplingParams, **more: Any) -> list[list[int]]:
    """The tokens that transformers finds, the best beam's first."""
    with torch.no_grad():
        found = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=params.num_sequences,
            num_return_sequences=params.n,
            do_sample=False,
            max_new_tokens=params.max_tokens,
            eos_token_id=list(params.stop_token_ids or ()),
            pad_token_id=0,
            length_penalty=float(params.length_penalty),
            early_stopping=params.early_stopping,
            **more,
        )
    rows = found[:, len(prompt) :].tolist()
    assert params.stop_token_ids is not None
    return [
        row[: next((i for i, token in enumerate(row, start=1) if token in params.stop_token_ids), len(row))]
        for row in rows
    ]


def tokens(output: RequestOutput) -> list[list[int]]:
    return [sample.token_ids for sample in output.outputs]


def test_every_variant_of_several_prompts_at_once(model: Any, core: EngineCore) -> None:
    requests = [
        (prompt, replace(SEARCH, n=width, length_penalty=penalty, early_stopping=early))
        for width, penalty, early in VARIANTS
        for prompt in PROMPTS
    ]
    outputs = run_core(core, requests)
    expected = [truth(model, prompt, params) for prompt, params in requests]
    assert [tokens(output) for output in outputs] == expected
    assert core.stats().num_used_blocks == 0
    samples = [sample for output in outputs for sample in output.outputs]
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    assert len({str(row) for row in expected}) > 15, "the variants must matter"
    assert core.stats().generation_tokens == sum(len(sample.token_ids) for sample in samples)
    for sample in samples:
        assert sample.logprobs is not None
        total = sum(entry[token].logprob for token, entry in zip(sample.token_ids, sample.logprobs, strict=True))
        assert sample.cumulative_logprob == pytest.approx(total, abs=1e-4)
        assert (sample.stop_reason == sample.token_ids[-1]) == (sample.finish_reason == "stop")


@pytest.mark.parametrize("caching", [True, False])
def test_chunked_and_preempted(model: Any, folder: Path, caching: bool) -> None:
    crowd = new_core(
        folder,
        block_size=8,
        max_model_len=128,
        max_num_seqs=12,
        max_num_batched_tokens=16,
        num_gpu_blocks_override=22,
        enable_prefix_caching=caching,
    )
    alone = new_core(folder, block_size=8, max_model_len=128)
    requests = [(prompt, replace(SEARCH, length_penalty=penalty)) for penalty in (0.6, 2.0) for prompt in PROMPTS]
    requests.insert(2, (PROMPTS[2], SamplingParams(n=3, seed=1, max_tokens=30, ignore_eos=True, logprobs=0)))
    outputs = run_core(crowd, requests, steps_between=3)
    assert crowd.stats().num_preemptions > 0 and crowd.stats().num_used_blocks == 0
    singles = [run_core(alone, [request])[0] for request in requests]
    assert [output.outputs for output in outputs] == [output.outputs for output in singles]  # to the bit
    for (prompt, params), output in zip(requests, outputs, strict=True):
        if params.use_beam_search:
            assert tokens(output) == truth(model, prompt, params)


def test_what_changes_log_probabilities(model: Any, core: EngineCore) -> None:
    prompt = PROMPTS[1]
    allowed = sorted({*RNG.sample(range(5, VOCAB_SIZE), 60), *ENDS})
    biases = {token: RNG.uniform(-2, 2) for token in RNG.sample(range(5, VOCAB_SIZE), 80)}
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"min_tokens": 6}, {"min_new_tokens": 6}),
        ({"allowed_token_ids": allowed}, {"prefix_allowed_tokens_fn": lambda batch, ids: allowed}),
        ({"logit_bias": biases}, {"sequence_bias": [[[token], bias] for token, bias in biases.items()]}),
        (
            {"logit_bias": biases, "repetition_penalty": 1.3, "min_tokens": 3},
            {
                "sequence_bias": [[[token], bias] for token, bias in biases.items()],
                "repetition_penalty": 1.3,
                "min_new_tokens": 3,
            },
        ),
    ]
    plain = tokens(run_core(core, [(prompt, SEARCH)])[0])
    for ours, theirs in cases:
        params = replace(SEARCH, **ours)
        found = tokens(run_core(core, [(prompt, params)])[0])
        assert found == truth(model, prompt, params, **theirs), ours
        assert found != plain, "the case must matter"


def test_blocks_are_shared_and_given_back(folder: Path) -> None:
    prompt = PROMPTS[2] + PROMPTS[2]  # ten full blocks
    core = new_core(folder, block_size=8, max_model_len=128)
    request = new_request("r", prompt, replace(SEARCH, max_tokens=30, stop_token_ids=()))
    collector = Collector()
    collector.expect(request)
    core.add(request)
    used = []
    while core.has_work():
        collector.take(core.step())
        used.append(core.stats().num_used_blocks)
    assert [len(sample.token_ids) for sample in collector.outputs["r"].outputs] == [30] * 4
    assert used[0] == 10 and used[-1] == 0
    assert max(used) <= 10 + 4 * 4 < 4 * 14 / 2, "four copies of 14 blocks would be twice as many"


def test_more_beams_than_outputs(model: Any, core: EngineCore) -> None:
    params = replace(SEARCH, n=2, best_of=4)
    (output,) = run_core(core, [(PROMPTS[2], params)])
    assert tokens(output) == truth(model, PROMPTS[2], params)
    assert tokens(output) == tokens(run_core(core, [(PROMPTS[2], SEARCH)])[0])[:2]


def test_an_abort_frees_all(folder: Path) -> None:
    core = new_core(folder, block_size=8, max_model_len=128)
    core.add(new_request("r", PROMPTS[2], SEARCH))
    for _ in range(5):
        core.step()
    assert core.stats().num_running == 4
    (state,) = core.abort(request_key("", "r"))
    assert state.over and core.stats().num_used_blocks == 0 and not core.has_work()


@pytest.mark.parametrize("num_steps", [1, 2, 5, 9])
@pytest.mark.parametrize(("width", "penalty"), [(2, 0.6), (4, 1.0), (4, 2.0)])
def test_cut_off_it_ends_with_what_it_would_have_at_that_length(
    model: Any, folder: Path, width: int, penalty: float, num_steps: int
) -> None:
    core = new_core(folder, block_size=8, max_model_len=128)
    params = replace(SEARCH, n=width, length_penalty=penalty)
    for prompt in PROMPTS:
        collector = Collector()
        request = new_request("r", prompt, params)
        collector.expect(request)
        core.add(request)
        for _ in range(num_steps):
            collector.take(core.step())
        before = core.stats().generation_tokens
        collector.take(core.abort(request.key))
        output = collector.outputs["r"]
        assert tokens(output) == truth(model, prompt, replace(params, max_tokens=num_steps))
        for sample in output.outputs:
            has_ended = sample.token_ids[-1] in ENDS
            assert sample.finish_reason == ("stop" if has_ended else "abort")
            assert has_ended or len(sample.token_ids) == num_steps
            assert sample.logprobs is not None and len(sample.logprobs) == len(sample.token_ids)
        stats = core.stats()
        assert stats.generation_tokens - before in (0, sum(map(len, tokens(output))))
        assert stats.num_used_blocks == 0 and not core.has_work()


def test_past_a_sliding_window(tmp_path: Path) -> None:
    folder = make_tiny_model("mistral", tmp_path, sliding_window=24)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    core = new_core(
        folder,
        block_size=4,
        max_model_len=128,
        max_num_seqs=16,
        max_num_batched_tokens=16,
        num_gpu_blocks_override=50,
    )
    params = replace(SEARCH, max_tokens=40, stop_token_ids=ENDS[:6], length_penalty=2.0)
    outputs = run_core(core, [(prompt, params) for prompt in PROMPTS[1:] * 2], steps_between=2)
    for prompt, output in zip(PROMPTS[1:] * 2, outputs, strict=True):
        assert tokens(output) == truth(model, prompt, params)
    assert core.stats().num_used_blocks == 0
