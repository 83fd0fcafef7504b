"""Outputs that are chosen at the end: the best of several samples, and beams, with their texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paged_backend import LLM, BeamSearchParams, InvalidRequestError, SamplingParams
from tests.tiny_models import make_tiny_model

PADDING = 1  # EOS
PROMPTS = ["The quick brown fox", "Numbers like 12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"), tokenizer=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), max_model_len=128, block_size=4, num_threads=1) as llm:
        yield llm


def test_best_of_returns_the_likeliest_samples(llm: LLM) -> None:
    def params(**more: Any) -> SamplingParams:
        return SamplingParams(seed=3, temperature=1.5, max_tokens=12, **more)

    every = llm.generate(PROMPTS, params(n=5, logprobs=1), use_tqdm=False)
    for kept in (1, 3):
        chosen = llm.generate(PROMPTS, params(n=kept, best_of=5), use_tqdm=False)
        for output, alternatives in zip(chosen, every, strict=True):
            ranked = sorted(alternatives.outputs, key=lambda sample: -sample.cumulative_logprob)[:kept]
            assert [sample.token_ids for sample in output.outputs] == [sample.token_ids for sample in ranked]
            assert [sample.text for sample in output.outputs] == [sample.text for sample in ranked]
            assert [sample.index for sample in output.outputs] == list(range(kept))
            assert [s.cumulative_logprob for s in output.outputs] == [s.cumulative_logprob for s in ranked]
            assert all(sample.logprobs is None for sample in output.outputs)
    (output, _) = llm.generate(PROMPTS, params(n=1, best_of=5, logprobs=1), use_tqdm=False)
    assert output.outputs[0].logprobs is not None and len(output.outputs[0].logprobs) == 12


@pytest.mark.parametrize("stop", ["e", "ou", ["a", " "]])
@pytest.mark.parametrize("width", [2, 4])
def test_beams_end_at_stop_strings_as_in_transformers(llm: LLM, folder: Path, stop: Any, width: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    params = SamplingParams(n=width, use_beam_search=True, max_tokens=16, stop=stop)
    for prompt, output in zip(PROMPTS, llm.generate(PROMPTS, params, use_tqdm=False), strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            found = model.generate(
                **inputs,
                num_beams=width,
                num_return_sequences=width,
                do_sample=False,
                max_new_tokens=16,
                pad_token_id=PADDING,
                stop_strings=stop,
                tokenizer=tokenizer,
            )
        rows = found[:, inputs["input_ids"].shape[1] :].tolist()
        lengths = [len(sample.token_ids) for sample in output.outputs]
        assert [sample.token_ids for sample in output.outputs] == [
            row[:length] for row, length in zip(rows, lengths, strict=True)
        ]
        for sample, row in zip(output.outputs, rows, strict=True):
            assert set(row[len(sample.token_ids) :]) <= {PADDING}, "only padding may follow"
            if isinstance(sample.stop_reason, str):
                assert sample.finish_reason == "stop" and not any(part in sample.text for part in stop)
                assert sample.stop_reason in tokenizer.decode(sample.token_ids)


def test_beam_search_has_the_outputs_of_generate(llm: LLM) -> None:
    found = llm.beam_search(PROMPTS, BeamSearchParams(beam_width=3, max_tokens=10, length_penalty=0.6))
    params = SamplingParams(n=3, use_beam_search=True, max_tokens=10, length_penalty=0.6)
    for beams, output in zip(found, llm.generate(PROMPTS, params, use_tqdm=False), strict=True):
        for sequence, sample in zip(beams.sequences, output.outputs, strict=True):
            assert sequence.tokens == [*output.prompt_token_ids, *sample.token_ids]
            assert sequence.cum_logprob == sample.cumulative_logprob
            assert (sequence.finish_reason, sequence.stop_reason) == (sample.finish_reason, sample.stop_reason)
            assert sequence.text is not None and sequence.text.startswith(output.prompt or "?")


def test_a_stream_gets_all_at_once(llm: LLM) -> None:
    for params in (SamplingParams(n=2, use_beam_search=True), SamplingParams(n=1, best_of=3, seed=1)):
        stream = llm._client.submit(PROMPTS[0], params)
        (delta,) = list(stream)
        assert delta.finished and [output.index for output in delta.outputs] == list(range(params.n))
        assert all(output.finish_reason and output.cumulative_logprob for output in delta.outputs)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 1000}, "best_of"),
        ({"length_penalty": 2.0}, "length_penalty"),
        ({"early_stopping": True}, "early_stopping"),
        ({"use_beam_search": True, "early_stopping": "always"}, "early_stopping"),
        ({"use_beam_search": True, "length_penalty": 11}, "length_penalty"),
        ({"use_beam_search": True, "temperature": 0.5}, "temperature"),
        ({"use_beam_search": True, "top_k": 3}, "top_k"),
        ({"use_beam_search": True, "top_p": 0.5}, "top_p"),
        ({"use_beam_search": True, "min_p": 0.5}, "min_p"),
        ({"use_beam_search": True, "n": 3, "allowed_token_ids": [1, 7, 8]}, "allowed_token_ids"),
        ({"use_beam_search": True, "n": 9, "stop_token_ids": list(range(60))}, "n"),
        ({"use_beam_search": True, "n": 200}, "n"),
        ({"use_beam_search": 1}, "use_beam_search"),
    ],
)
def test_what_is_refused(llm: LLM, wrong: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        llm.generate(PROMPTS, SamplingParams(**wrong), use_tqdm=False)
    assert refusal.value.param == param
