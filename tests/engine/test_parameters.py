"""What parameters do to whole outputs, against transformers or a definition in plain Python."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from paged_backend import (
    LLM,
    ConfigError,
    InvalidRequestError,
    LogitsProcessorConstructor,
    RequestFailedError,
    SamplingParams,
)
from paged_backend.config import EngineConfig
from paged_backend.engine.client import EngineClient
from paged_backend.engine.parameters import ParameterDesk
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.sampling_params import RepetitionDetectionParams
from tests.engine import example_processors
from tests.engine.fake_executor import FakeExecutor
from tests.tiny_models import VOCAB_SIZE, make_tiny_model

EXAMPLES = "tests.engine.example_processors"
ALLOWED = [f"{EXAMPLES}:{name}" for name in ("Shift", "forbid_even", "raise_in_the_third_step", "give_a_list")]
PROMPTS = [[5, 9, 200, 17], [30], list(range(40, 90)), [7, 7, 7, 7, 7, 7, 7, 8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"), tokenizer=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(model=str(folder), num_threads=1, max_num_seqs=32, logits_processors=ALLOWED) as llm:
        yield llm


def tokens(llm: LLM, prompts: Sequence[Any], params: Any) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]


def test_bad_words_as_in_transformers(llm: LLM, folder: Path) -> None:
    """transformers counts what the prompt ends with, too; so words here begin with no token of any prompt."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    free = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    for prompt, drawn in zip(PROMPTS, tokens(llm, PROMPTS, free), strict=True):
        words = [drawn[3:4], drawn[5:7], drawn[8:11], [VOCAB_SIZE - 1, 3]]
        words = [word for word in words if word[0] not in prompt]
        params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, bad_words_token_ids=words)
        (ours,) = tokens(llm, [prompt], params)
        with torch.no_grad():
            found = model.generate(
                torch.tensor([prompt]),
                bad_words_ids=words,
                max_new_tokens=16,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert ours == found[0, len(prompt) :].tolist() != drawn
        for word in words:
            assert all(ours[i : i + len(word)] != list(word) for i in range(len(ours)))


def test_bad_words_become_tokens_in_vllms_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, reference = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    desk = ParameterDesk(EngineConfig(), tokenizer, VOCAB_SIZE, frozenset())
    for words in (["fox"], [" the", "the", "q"], ["lines of text", "東京", "z"], ["fox", "fox"]):
        expected: list[list[int]] = []
        for word in words:
            plain = reference.encode(word.lstrip(), add_special_tokens=False)
            spaced = reference.encode(" " + word.lstrip(), add_special_tokens=False)
            expected.append(plain)
            if spaced[0] != plain[0] and len(spaced) == len(plain):
                expected.append(spaced)
        prepared = desk.prepare(SamplingParams(bad_words=words, bad_words_token_ids=[[3, 4]]))
        assert prepared.bad_words == () and prepared.bad_words_token_ids is not None
        assert list(prepared.bad_words_token_ids) == list(dict.fromkeys([(3, 4), *map(tuple, expected)]))
    monkeypatch.setattr(tokenizer, "encode", lambda *args, **kwargs: pytest.fail("too many to be encoded"))
    with pytest.raises(InvalidRequestError, match="1024") as raised:
        desk.prepare(SamplingParams(bad_words=[f"w{i}" for i in range(1100)]))
    assert raised.value.param == "bad_words"
    monkeypatch.undo()
    some = [[number] for number in range(3, 303)]
    with pytest.raises(InvalidRequestError, match="with those of bad_words_token_ids"):
        desk.prepare(SamplingParams(bad_words=[f"w{i}" for i in range(1000)], bad_words_token_ids=some))
    with pytest.raises(InvalidRequestError, match=r"a text of \d+ tokens; 64 are") as raised:
        desk.prepare(SamplingParams(bad_words=["fox " * 200]))
    assert raised.value.param == "bad_words"
    # One that is given over and over counts once, and hides none behind it.
    often = desk.prepare(SamplingParams(bad_words=["a"] * 1100 + ["b"]))
    assert often.bad_words_token_ids == desk.prepare(SamplingParams(bad_words=["a", "b"])).bad_words_token_ids
    with pytest.raises(InvalidRequestError, match="bad_words_token_ids"):
        ParameterDesk(EngineConfig(), None, VOCAB_SIZE, frozenset()).prepare(SamplingParams(bad_words=["a"]))


def test_bad_words_are_not_drawn(llm: LLM, folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    params = {"max_tokens": 40, "seed": 3, "ignore_eos": True}
    (drawn,) = tokens(llm, ["The quick"], SamplingParams(**params))
    texts = {tokenizer.decode([token]): token for token in drawn}
    words = [word for word, token in texts.items() if word.strip() and tokenizer.encode(word.lstrip()) == [token]]
    (others,) = tokens(llm, ["The quick"], SamplingParams(**params, bad_words=words))
    assert words and not {texts[word] for word in words}.intersection(others)


def test_a_request_whose_parameters_leave_nothing_says_so(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="leave no token"):
        llm.generate([[5]], SamplingParams(allowed_token_ids=[9], bad_words_token_ids=[[9]]), use_tqdm=False)
    assert tokens(llm, [[5]], SamplingParams(max_tokens=2, ignore_eos=True))


def repeats(output: Sequence[int], params: RepetitionDetectionParams) -> bool:
    """By the definition: the output ends with min_count copies of one pattern of an allowed size."""
    for size in range(max(1, params.min_pattern_size), params.max_pattern_size + 1):
        pattern = list(output[len(output) - size :])
        if size <= len(output) and list(output[len(output) - size * params.min_count :]) == pattern * params.min_count:
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_repetition_by_its_definition(data: st.DataObject) -> None:
    most = data.draw(st.integers(0, 5))
    params = RepetitionDetectionParams(most, data.draw(st.integers(0, most)), data.draw(st.integers(2, 4)))
    prompt = data.draw(st.lists(st.integers(0, 1), max_size=5))
    output = data.draw(st.lists(st.integers(0, 1), max_size=14))
    assert params.found_in([*prompt, *output], len(prompt)) == repeats(output, params)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(2, 4), st.integers(0, 400), st.integers(0, 1))
def test_repetition_of_long_patterns(size: int, count: int, place: int, seed: int) -> None:
    """With or without one token in it that is another."""
    draw = random.Random(seed)
    output = [draw.randrange(2) for _ in range(size)] * count
    if place < len(output):
        output[place] += 2
    params = RepetitionDetectionParams(size, size, count)
    assert params.found_in([7, *output], 1) == repeats(output, params) == (place >= len(output))


@pytest.mark.parametrize("params", [{}, {"min_tokens": 6}, {"seed": 4, "temperature": 0.4, "n": 3}], ids=str)
def test_circles_end_an_output(llm: LLM, params: dict[str, Any]) -> None:
    circles = RepetitionDetectionParams(max_pattern_size=3, min_count=2)
    base: dict[str, Any] = {"max_tokens": 30, "ignore_eos": True, "temperature": 0, **params}
    base["allowed_token_ids"] = [40, 41]
    least = base.get("min_tokens", 0)
    free = llm.generate(PROMPTS, SamplingParams(**base), use_tqdm=False)
    cut = llm.generate(PROMPTS, SamplingParams(**base, repetition_detection=circles), use_tqdm=False)
    for whole, output in zip(free, cut, strict=True):
        for one, sample in zip(whole.outputs, output.outputs, strict=True):
            end = next(end for end in range(max(1, least), 31) if repeats(one.token_ids[:end], circles))
            assert sample.token_ids == one.token_ids[:end] and end < 30
            assert (sample.finish_reason, sample.stop_reason) == ("repetition", "repetition_detected")


def test_users_functions_change_one_row(llm: LLM) -> None:
    plain = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2)
    even = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2, logits_processors=[ALLOWED[1]])
    before = llm.generate(PROMPTS, plain, use_tqdm=False)
    mixed = llm.generate([*PROMPTS, *PROMPTS], [plain] * 4 + [even] * 4, use_tqdm=False)
    assert [o.outputs for o in mixed[:4]] == [o.outputs for o in before]
    for output, free in zip(mixed[4:], before, strict=True):
        (sample,), prompt = output.outputs, output.prompt_token_ids
        assert all(token % 2 for token in sample.token_ids) and sample.token_ids != free.outputs[0].token_ids
        assert sample.logprobs is not None and free.outputs[0].logprobs is not None
        # Log-probabilities are the model's own: that of a token says how likely it was before.
        (scored,) = llm.generate(
            [[*prompt, *sample.token_ids]], SamplingParams(max_tokens=0, prompt_logprobs=2), use_tqdm=False
        )
        assert scored.prompt_logprobs is not None
        assert list(scored.prompt_logprobs[len(prompt) :]) == sample.logprobs
    (own,) = tokens(llm, PROMPTS[:1], SamplingParams(temperature=0, max_tokens=8, ignore_eos=True,
                                                     logits_processors=[example_processors.forbid_even]))  # fmt: skip
    assert own == mixed[4].outputs[0].token_ids


def test_users_classes_take_arguments(llm: LLM) -> None:
    def ask(*args: Any, **kwargs: Any) -> SamplingParams:
        made = {"qualname": ALLOWED[0], "args": list(args), "kwargs": kwargs}
        return SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logits_processors=[made])

    assert tokens(llm, PROMPTS, ask(33, by=1000.0)) == [[33] * 4] * 4
    both = LogitsProcessorConstructor(qualname=ALLOWED[0], args=(34,), kwargs={"by": 2000.0})
    first = {"qualname": ALLOWED[0], "args": [33], "kwargs": {"by": 1000.0}}
    params = SamplingParams(temperature=0, max_tokens=4, logits_processors=[first, both])
    assert tokens(llm, PROMPTS[:1], params) == [[34] * 4]
    biased = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logit_bias={50: 2.5})
    assert tokens(llm, PROMPTS, ask(50, by=2.5))[0] == tokens(llm, PROMPTS, biased)[0][:4]
    with pytest.raises(InvalidRequestError, match="TypeError"):
        llm.generate([[5]], ask(), use_tqdm=False)
    # What other parameters rule out stays ruled out.
    fenced = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, allowed_token_ids=[60, 61],
                            logits_processors=ask(33, by=1000.0).logits_processors)  # fmt: skip
    assert set(tokens(llm, PROMPTS[:1], fenced)[0]) <= {60, 61}


@pytest.mark.parametrize(("name", "words"), [(ALLOWED[2], "raised RuntimeError"), (ALLOWED[3], "must return float32")])
def test_a_function_that_fails_ends_its_request_alone(llm: LLM, name: str, words: str) -> None:
    plain = SamplingParams(max_tokens=30, seed=1, ignore_eos=True)
    before = tokens(llm, PROMPTS, plain)
    streams = [llm._client.submit(prompt, plain) for prompt in PROMPTS]
    bad = llm._client.submit(PROMPTS[0], SamplingParams(max_tokens=30, n=2, logits_processors=[name], logprobs=1))
    with pytest.raises(InvalidRequestError, match=words) as raised:
        bad.collect()
    assert name in str(raised.value) and "secret" not in str(raised.value)
    assert [stream.collect().outputs[0].token_ids for stream in streams] == before


def test_only_what_the_operator_names(folder: Path, llm: LLM) -> None:
    for name in ("os:system", f"{EXAMPLES}:torch", "nowhere"):
        with pytest.raises(InvalidRequestError, match="not allowed") as raised:
            llm.generate([[5]], SamplingParams(logits_processors=[name]), use_tqdm=False)
        assert raised.value.param == "logits_processors"
    for name in ("nowhere.at:all", f"{EXAMPLES}:nothing", f"{EXAMPLES}:VALUE", "os", "a b:c"):
        with pytest.raises(ConfigError, match="logits_processors"):
            LLM(model=str(folder), logits_processors=[name])


PARAMETERS: dict[str, dict[str, Any]] = {
    "bad_words": {"bad_words": ["e", "fox", "the"]},
    "bad_words_token_ids": {"bad_words_token_ids": [[40], [50, 60]]},
    "logprobs": {"logprobs": 4},
    "logprob_token_ids": {"logprob_token_ids": [9, 3, 300]},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "repetition_detection": {"repetition_detection": {"max_pattern_size": 3, "min_count": 2}, "top_k": 3},
    "logits_processors": {"logits_processors": [ALLOWED[1]]},
    "skip_reading_prefix_cache": {"skip_reading_prefix_cache": True},
    "spaces_between_special_tokens": {"spaces_between_special_tokens": False, "skip_special_tokens": False},
    "stream_interval": {"stream_interval": 5},
    "nothing": {"max_tokens": 0},
    "all": {"bad_words_token_ids": [[40]], "logits_processors": [ALLOWED[1]], "logprobs": 2, "prompt_logprobs": 2},
}


def test_each_alone_and_in_a_batch(llm: LLM) -> None:
    """Bit for bit, and twice: the second time in other company, over a warm cache."""
    rng = random.Random(2)
    asked = [
        (rng.choice(PROMPTS), SamplingParams(**{"max_tokens": 12, "seed": seed, "ignore_eos": True, **fields}))
        for seed, fields in enumerate(PARAMETERS.values())
    ]

    def facts(output: Any) -> Any:
        return output.prompt_logprobs, output.outputs

    alone = [facts(llm.generate([prompt], params, use_tqdm=False)[0]) for prompt, params in asked]
    for _ in range(2):
        rng.shuffle(order := list(range(len(asked))))
        outputs = llm.generate([asked[i][0] for i in order], [asked[i][1] for i in order], use_tqdm=False)
        assert [facts(output) for output in outputs] == [alone[i] for i in order]


def test_the_prefix_cache_can_be_left_alone(llm: LLM) -> None:
    prompt = [(7 * i) % 300 + 3 for i in range(64)]
    for params, cached in (({}, 0), ({}, 48), ({"skip_reading_prefix_cache": True}, 0), ({"prompt_logprobs": 0}, 0)):
        (output,) = llm.generate([prompt], SamplingParams(max_tokens=1, **params), use_tqdm=False)  # type: ignore[arg-type]
        assert output.num_cached_tokens == cached


@pytest.mark.parametrize(("engine", "asked", "interval"), [(1, None, 1), (1, 4, 4), (3, None, 3), (3, 2, 3), (3, 5, 5)])
def test_streams_gather_tokens(engine: int, asked: int | None, interval: int) -> None:
    client = EngineClient(EngineConfig.from_args(stream_interval=engine), FakeExecutor(), None)  # type: ignore[arg-type]
    try:
        params = SamplingParams(max_tokens=12, n=2, stream_interval=asked)
        sizes = [len(delta.outputs[0].token_ids) for delta in client.submit([5, 6], params)]
        assert sizes[0] == 1 and sum(sizes) == 12 and set(sizes[1:-1]) <= {interval} and sizes[-1] <= interval
        whole = client.submit([5, 6], SamplingParams(max_tokens=12, n=2, stream_interval=asked, seed=1)).collect()
        parts: list[int] = []
        for delta in client.submit([5, 6], SamplingParams(max_tokens=12, n=2, stream_interval=asked, seed=1)):
            parts += delta.outputs[0].token_ids
        assert parts == whole.outputs[0].token_ids
    finally:
        client.shutdown()


def test_an_error_comes_after_what_was_gathered() -> None:
    executor = FakeExecutor()
    released = threading.Event()

    def fail_in_the_sixth_step(plan: Any) -> None:
        released.wait(20)
        if len(executor.plans) == 6:
            raise RuntimeError("broken")

    executor.before_run = fail_in_the_sixth_step
    client = EngineClient(EngineConfig.from_args(stream_interval=4), executor, None)  # type: ignore[arg-type]
    try:
        stream = client.submit([5, 6], SamplingParams(max_tokens=12))
        released.set()
        sizes: list[int] = []
        with pytest.raises(RequestFailedError, match="try it again"):
            sizes.extend(len(delta.outputs[0].token_ids) for delta in stream)
        assert sizes in ([1, 4], [1])  # what nobody has seen when it fails may be lost
    finally:
        client.shutdown()


def test_special_tokens_without_spaces(tmp_path: Path) -> None:
    """A tokenizer without a decoder puts a space before every token."""
    from tokenizers import AddedToken, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken("<x>", special=True), AddedToken("<y>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    from paged_backend.engine.detokenizer import Finish, SampleText

    drawn = [0, 3, 4, 3, 1, 0, 4]
    for params, expected in (
        ({"skip_special_tokens": False}, "a <x> <y> <x> b a <y>"),
        ({"skip_special_tokens": False, "spaces_between_special_tokens": False}, "a <x><y><x> b a <y>"),
        ({"spaces_between_special_tokens": False}, "a b a"),
    ):
        text = SampleText(tokenizer, [1], SamplingParams(**params))
        said = "".join(text.take(token, None)[0] for token in drawn) + text.take(None, Finish("length"))[0]
        assert said.strip() == expected
