"""Outputs that are chosen at the end: the best of several samples, and beams, with their texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from paged_backend import LLM, BeamSearchParams, InvalidRequestError, SamplingParams
from paged_backend.engine.assembler import DeltaAssembler
from paged_backend.engine.detokenizer import Finish
from paged_backend.engine.request import EngineRequest, Gain, PromptFacts
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.scheduler.plan import SampledToken
from tests.engine_driver import Collector, new_core, new_request
from tests.tiny_models import make_tiny_model

PADDING = 1  # EOS
PROMPTS = ["The quick brown fox", "Numbers like 12"]


class Clock:
    """The time that the core sees."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


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


def test_samples_that_were_cut_off_come_behind_those_that_have_ended() -> None:
    """Else the sample with the fewest tokens would be the likeliest, and one without any the likeliest of all."""
    ends = [Finish("abort", "timeout"), Finish("length"), Finish("abort", "timeout"), Finish("stop"), Finish("abort")]
    logprobs = [[], [-2.0, -2.0], [-0.5, -0.7, -0.3], [-1.0, -2.0], [-0.4, -0.8]]
    gains: list[Gain] = []
    for index, (end, values) in enumerate(zip(ends, logprobs, strict=True)):
        gains += [(index, 7, None, SampledToken(7, value, 1), None, PromptFacts()) for value in values]
        gains.append((index, None, None, None, end, PromptFacts()))
    for n, places in ((5, [3, 1, 2, 4, 0]), (2, [3, 1]), (3, [3, 1, 2])):
        request = EngineRequest("r", [5], SamplingParams(n=n, best_of=5 if n < 5 else None))
        assembler = DeltaAssembler(request, None)
        assembler._chooses = True
        delta = assembler.assemble(gains)
        assert [output.cumulative_logprob for output in delta.outputs] == [sum(logprobs[place]) for place in places]
        assert [output.finish_reason for output in delta.outputs] == [ends[place].reason for place in places]
        assert delta.num_unchosen_tokens == 9 - sum(len(logprobs[place]) for place in places)


def test_a_beam_search_whose_deadline_passes_ends_with_the_best_so_far(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.load(folder)
    core = new_core(folder, tokenizer, max_model_len=128, block_size=4)
    params = SamplingParams(n=3, best_of=4, use_beam_search=True, max_tokens=60, ignore_eos=True, stop=["no one says"])
    clock = Clock()
    monkeypatch.setattr("paged_backend.engine.core.time", clock)
    collector = Collector(tokenizer)
    for name, deadline_s in (("timed", 8.0), ("patient", None)):
        request = replace(new_request(name, tokenizer.encode(PROMPTS[0]), params), deadline_s=deadline_s)
        collector.expect(request)
        core.add(request)
    while core.has_work():
        clock.now_s += 1.0
        collector.take(core.step())
    timed, patient = collector.outputs["timed"], collector.outputs["patient"]
    assert [sample.finish_reason for sample in patient.outputs] == ["length"] * 3
    for sample in timed.outputs:
        assert (sample.finish_reason, sample.stop_reason) == ("abort", "timeout")
        assert sample.token_ids and sample.text == tokenizer.decode(sample.token_ids)
    scores = [sample.cumulative_logprob for sample in timed.outputs]
    assert scores == sorted(scores, reverse=True)
    assert core.stats().num_used_blocks == 0
    generated = [sum(len(sample.token_ids) for sample in output.outputs) for output in (timed, patient)]
    assert core.stats().generation_tokens == sum(generated)


def test_a_beam_search_whose_deadline_passes_before_its_first_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = new_core(folder, max_model_len=128, block_size=4)
    clock = Clock()
    monkeypatch.setattr("paged_backend.engine.core.time", clock)
    request = replace(new_request("r", [5, 6], SamplingParams(n=2, use_beam_search=True)), deadline_s=1.0)
    collector = Collector()
    collector.expect(request)
    core.add(request)
    clock.now_s = 2.0
    collector.take(core.step())
    assert [(s.token_ids, s.finish_reason, s.stop_reason) for s in collector.outputs["r"].outputs] == [
        ([], "abort", "timeout")
    ] * 2


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(n=4, use_beam_search=True, max_tokens=1, allowed_token_ids=[7, 8]),
        SamplingParams(n=3, min_tokens=1, allowed_token_ids=[1], seed=1),
    ],
)
def test_what_fails_generates_nothing(folder: Path, params: SamplingParams) -> None:
    """Fewer tokens than beams, and no token at all: what the client would refuse, and what logits can do."""
    core = new_core(folder, max_model_len=128, block_size=4)
    collector = Collector()
    request = new_request("r", [5, 6], params)
    collector.expect(request)
    core.add(request)
    while core.has_work():
        collector.take(core.step())
    assert list(collector.errors) == ["r"]
    assert core.stats().generation_tokens == 0 and core.stats().num_used_blocks == 0


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
