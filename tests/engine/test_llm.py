"""The Python API on a real (tiny, random) model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paged_backend import LLM, BeamSearchParams, ConfigError, InvalidRequestError, ModelLoadError, SamplingParams
from paged_backend.kernels.cpu import _cpu
from tests.tiny_models import make_tiny_model

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"), tokenizer=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(model=str(folder), num_threads=1, max_num_seqs=16) as llm:
        yield llm


def test_prompts_of_every_form_keep_their_order(llm: LLM) -> None:
    text = "The quick fox"
    ids = llm.generate(text, GREEDY, use_tqdm=False)[0].prompt_token_ids
    outputs = llm.generate([text, ids, {"prompt": text}, {"prompt_token_ids": ids}, "Another"], GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == [text, None, text, None, "Another"]
    assert len({tuple(output.outputs[0].token_ids) for output in outputs[:4]}) == 1
    assert outputs[4].prompt_token_ids != ids
    assert all(output.finished for output in outputs)
    assert llm.generate(ids, GREEDY, use_tqdm=False)[0].outputs[0].token_ids == outputs[0].outputs[0].token_ids


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_log_says_what_computes(folder: Path, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "paged_backend.engine"):
        LLM(model=str(folder), served_model_name="tiny", num_threads=1, kernel_backend=backend).close()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "paged_backend.engine.loading"]
    assert line.startswith(f"tiny is loaded; CPU threads: 1; kernels: {backend}, ")
    if backend == "cpu":
        assert f"({_cpu.available_instruction_sets()[0]})" in line


def test_one_parameter_set_per_prompt(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in (1, 5, 3)]
    outputs = llm.generate(["a", "b", "c"], params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 5, 3]
    with pytest.raises(InvalidRequestError, match="2 entries for 3 prompts"):
        llm.generate(["a", "b", "c"], params[:2])


def test_the_bar_counts_prompts(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], GREEDY)
    assert "2/2" in capsys.readouterr().err
    llm.generate(["a", "b"], GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_text_is_the_tokens_decoded(llm: LLM) -> None:
    output = llm.generate("The", SamplingParams(n=3, seed=1, max_tokens=40, ignore_eos=True), use_tqdm=False)[0]
    tokenizer = llm._client.tokenizer
    assert tokenizer is not None
    for sample in output.outputs:
        assert sample.text == tokenizer.decode(sample.token_ids)


def test_logprobs_add_up(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=3, ignore_eos=True)
    sample = llm.generate("The", params, use_tqdm=False)[0].outputs[0]
    assert sample.logprobs is not None and sample.cumulative_logprob is not None
    assert len(sample.logprobs) == 5
    for token_id, candidates in zip(sample.token_ids, sample.logprobs, strict=True):
        assert candidates[token_id].rank == 1  # greedy takes the best
        assert len(candidates) == 3
        assert sum(math.exp(candidate.logprob) for candidate in candidates.values()) <= 1 + 1e-6
    total = sum(row[token].logprob for token, row in zip(sample.token_ids, sample.logprobs, strict=True))
    assert sample.cumulative_logprob == pytest.approx(total)


def test_stop_strings_and_stop_tokens(llm: LLM) -> None:
    whole = llm.generate("The", SamplingParams(temperature=0, max_tokens=30, ignore_eos=True), use_tqdm=False)[0]
    text, token_ids = whole.outputs[0].text, whole.outputs[0].token_ids
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    cut = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, stop=stop)
    sample = llm.generate("The", cut, use_tqdm=False)[0].outputs[0]
    assert (sample.text, sample.finish_reason, sample.stop_reason) == (text[: text.index(stop)], "stop", stop)
    by_token = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, stop_token_ids=[token_ids[4]])
    sample = llm.generate("The", by_token, use_tqdm=False)[0].outputs[0]
    first = token_ids.index(token_ids[4])
    assert (sample.token_ids, sample.stop_reason) == (token_ids[: first + 1], token_ids[4])


def test_chat_renders_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "The fox"}]
    one = llm.chat(messages, GREEDY, use_tqdm=False)
    many = llm.chat([messages, [{"role": "user", "content": "A dog"}]], GREEDY, use_tqdm=False)
    tokenizer = llm._client.tokenizer
    assert tokenizer is not None
    assert one[0].prompt == tokenizer.decode(one[0].prompt_token_ids) == "<user>The fox\n<assistant>"
    assert many[0].outputs[0].token_ids == one[0].outputs[0].token_ids
    assert len(many) == 2


def test_chat_takes_a_template_and_tools(llm: LLM) -> None:
    template = "{{ tools[0].name }} {{ mood }} {{ messages[0].content }}"
    (output,) = llm.chat(
        [{"role": "user", "content": "fox"}],
        GREEDY,
        use_tqdm=False,
        chat_template=template,
        tools=[{"name": "f"}],
        chat_template_kwargs={"mood": "sad"},
    )
    assert output.prompt == "f sad fox"


def test_a_wrong_prompt_leaves_nothing_running(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError):
        llm.generate(["fine", [10**6]], SamplingParams(max_tokens=200, ignore_eos=True), use_tqdm=False)
    assert llm.generate("The", GREEDY, use_tqdm=False)[0].finished
    assert llm.stats().num_waiting == 0


@pytest.mark.parametrize(
    ("prompts", "param"),
    [(b"bytes", "prompt"), (None, "prompt"), ("\ud800", "prompt"), ({"prompt_token_ids": "hello"}, "prompt")],
)
def test_odd_prompts_are_refused(llm: LLM, prompts: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        llm.generate(prompts, GREEDY, use_tqdm=False)
    assert raised.value.param == param


def test_empty_lists_are_not_defaults(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="0 entries for 2 prompts"):
        llm.generate(["a", "b"], [])
    for messages in ([], "hi", [["hi"]]):
        with pytest.raises(InvalidRequestError) as raised:
            llm.chat(messages)  # type: ignore[arg-type]
        assert raised.value.param == "messages"


def test_without_a_tokenizer(folder: Path) -> None:
    with LLM(model=str(folder), skip_tokenizer_init=True, num_threads=1) as llm:
        sample = llm.generate([5, 6, 7], GREEDY, use_tqdm=False)[0].outputs[0]
        assert (len(sample.token_ids), sample.text) == (8, "")
        with pytest.raises(InvalidRequestError, match="token ids"):
            llm.generate("text", GREEDY)
        with pytest.raises(InvalidRequestError, match="skip_tokenizer_init"):
            llm.chat([{"role": "user", "content": "x"}])


def test_wrong_arguments_name_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'max_num_seqs'"):
        LLM(model=str(folder), max_num_seq=3)
    with pytest.raises(ConfigError, match="max_model_len"):
        LLM(model=str(folder), max_model_len=10**6)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        LLM(model=str(tmp_path))


def test_a_search_that_is_cut_off_has_found_nothing(folder: Path) -> None:
    with LLM(model=str(folder), num_threads=1, default_timeout_s=1e-9) as llm:
        (found,) = llm.beam_search([[5, 6]], BeamSearchParams(beam_width=2, max_tokens=10))
    ends = [(beam.tokens, beam.cum_logprob, beam.finish_reason, beam.stop_reason) for beam in found.sequences]
    assert ends == [([5, 6], 0.0, "abort", "timeout")] * 2
