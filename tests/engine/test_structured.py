"""Structured output through the engine: alone or in company, preempted or not, the same tokens; and always valid."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paged_backend import LLM, InvalidRequestError, SamplingParams
from paged_backend.engine.client import EngineClient
from paged_backend.engine.core import EngineCore
from paged_backend.engine.grammars import GrammarDesk, make_compiler
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import StructuredOutputsParams
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.prover import Prover
from paged_backend.structured.source import GrammarSource
from paged_backend.structured.vocabulary import Vocabulary
from tests.engine_driver import Collector, new_core, new_request
from tests.tiny_models import make_tiny_model

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": -99, "maximum": 99}, "maxItems": 4},
        "kind": {"enum": ["fox", "dog"]},
    },
    "required": ["name", "sizes", "kind"],
    "additionalProperties": False,
}
JSON = StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)
EOS = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"), tokenizer=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), max_num_seqs=16, seed=1) as llm:
        yield llm


def structured(seed: int = 0, **more: Any) -> SamplingParams:
    return SamplingParams(**{"structured_outputs": JSON, "seed": seed, "max_tokens": 150, **more})


def generate(llm: LLM, *params: SamplingParams) -> list[RequestOutput]:
    prompts = [[3 + i % 5] * (1 + i % 7) for i in range(len(params))]
    return llm.generate(prompts, list(params), use_tqdm=False)


def check(text: str) -> None:
    value = json.loads(text)
    assert list(value) == ["name", "sizes", "kind"]
    assert len(value["name"]) <= 6 and len(value["sizes"]) <= 4 and value["kind"] in ("fox", "dog")
    assert all(-99 <= size <= 99 for size in value["sizes"])


def tokens_of(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[list(sample.token_ids) for sample in output.outputs] for output in outputs]


def test_kinds(llm: LLM) -> None:
    tag = '{"structures": [{"begin": "<f>", "schema": {"enum": [1, 2]}, "end": "!"}], "triggers": ["<f"]}'
    kinds = {
        r"[1-9][0-9]{2}-[a-c]+": StructuredOutputsParams(regex="[1-9][0-9]{2}-[a-c]+"),
        r"the fox|a dog\n|東京": StructuredOutputsParams(choice=["the fox", "a dog\n", "東京"]),
        r"(ab)+|x": StructuredOutputsParams(grammar='root ::= more | "x"\nmore ::= "ab" more | "ab"'),
        r"y=[0-9]{2}": StructuredOutputsParams(grammar='start: "y=" N N\nN: /[0-9]/'),
        r"\{[\s\S]*\}": StructuredOutputsParams(json_object=True),
        r"[\s\S]*": StructuredOutputsParams(structural_tag=tag),
    }
    for pattern, structure in kinds.items():
        for seed in range(4):
            (output,) = generate(llm, structured(seed, structured_outputs=structure))
            sample = output.outputs[0]
            if sample.finish_reason == "stop":
                assert re.fullmatch(pattern, sample.text) and sample.token_ids[-1] == EOS
                assert sample.stop_reason is None


def test_parameters_that_go_with_it(llm: LLM) -> None:
    """Each sample is its own; what draws and what weighs tokens changes which output comes, not that it is valid."""
    for more in (
        {"n": 4},
        {"n": 2, "best_of": 4},
        {"temperature": 0.0},
        {"temperature": 2.0, "top_p": 0.9, "top_k": 40},
        {"min_p": 0.1, "repetition_penalty": 1.4, "presence_penalty": 1.0, "frequency_penalty": -0.5},
        {"logit_bias": {EOS: 100.0, 5: 100.0}},
        {"min_tokens": 40},
        {"logprobs": 3},
        {"stop": ["never said"]},
    ):
        (output,) = generate(llm, structured(3, max_tokens=200, **more))
        for sample in output.outputs:
            assert sample.finish_reason == "stop", more
            check(sample.text)
            if "logprobs" in more:  # of all tokens, whether they were allowed or not
                assert sample.logprobs is not None
                assert all(len(of_token) >= 3 for of_token in sample.logprobs)
                described = zip(sample.token_ids, sample.logprobs, strict=True)
                assert any(of_token[token].rank > 3 for token, of_token in described)
    texts = {sample.text for sample in generate(llm, structured(3, n=4))[0].outputs}
    assert len(texts) > 1


def test_what_may_cut_it_off(llm: LLM) -> None:
    (short,) = generate(llm, structured(max_tokens=5))
    assert short.outputs[0].finish_reason == "length" and len(short.outputs[0].token_ids) == 5
    (stopped,) = generate(llm, structured(stop=['"sizes"']))
    assert stopped.outputs[0].stop_reason == '"sizes"' and stopped.outputs[0].text.startswith('{"name":')
    choices = StructuredOutputsParams(choice=["a", "b"])
    (sample,) = generate(llm, structured(structured_outputs=choices, min_tokens=9))[0].outputs
    assert sample.text in ("a", "b") and sample.finish_reason == "stop"  # nothing else was left
    (longer,) = generate(llm, structured(structured_outputs=StructuredOutputsParams(regex="x*"), min_tokens=9))
    assert len(longer.outputs[0].token_ids) > 9


def test_where_nothing_is_left(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="leave no token"):
        generate(llm, structured(allowed_token_ids=[5, 6, EOS]))
    with pytest.raises(InvalidRequestError, match="uniqueItems") as caught:
        unique = {"type": "array", "uniqueItems": True}
        generate(llm, structured(structured_outputs=StructuredOutputsParams(json=unique)))
    assert caught.value.param == "structured_outputs"
    check(generate(llm, structured())[0].outputs[0].text)  # the others go on


def test_company_changes_nothing(folder: Path, llm: LLM) -> None:
    """Alone, together, with others, preempted, in chunks, with a cold or warm prefix: the same tokens."""
    params = [structured(seed, n=1 + seed % 3, logprobs=2) for seed in range(6)]
    params += [SamplingParams(seed=seed, max_tokens=30) for seed in range(3)]
    alone = [generate(llm, *params[: i + 1])[-1] for i in range(len(params))]
    together = generate(llm, *params)
    assert tokens_of(together) == tokens_of(alone)
    assert [[s.logprobs for s in o.outputs] for o in together] == [[s.logprobs for s in o.outputs] for o in alone]
    tight = {"max_num_seqs": 16, "seed": 1, "block_size": 4, "num_gpu_blocks_override": 80}
    tight["enable_prefix_caching"] = False
    for more in ({"max_num_batched_tokens": 17}, {"preemption_mode": "recompute"}, {"preemption_mode": "swap"}):
        swap = {"kv_offloading_size": 0.01} if more.get("preemption_mode") == "swap" else {}
        with LLM(str(folder), **{**tight, **more, **swap}) as small:
            assert tokens_of(generate(small, *params)) == tokens_of(alone), more
            assert small.stats().num_preemptions > 0, more


class GatedVocabulary:
    """Compiles when it is told to."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.gate = threading.Event()

    def prove(self, source: GrammarSource, prover: Prover) -> str:
        assert self.gate.wait(30)
        return self._vocabulary.prove(source, prover)

    def matcher(self, grammar: str, num_samples: int) -> Matcher:
        return self._vocabulary.matcher(grammar, num_samples)


@pytest.fixture
def gated(folder: Path) -> Iterator[tuple[EngineCore, GatedVocabulary, GrammarDesk]]:
    tokenizer = Tokenizer.load(folder)
    compiler, lacks = make_compiler(tokenizer, 320, frozenset({EOS}))
    assert compiler is not None
    vocabulary = GatedVocabulary(compiler._vocabulary)  # type: ignore[arg-type]
    compiler._vocabulary = vocabulary
    core = new_core(folder, tokenizer, compiler=compiler)
    yield core, vocabulary, GrammarDesk(lacks)
    vocabulary.gate.set()
    core.close()


def test_others_go_on_while_a_grammar_is_compiled(gated: Any) -> None:
    core, vocabulary, desk = gated
    collector = Collector(Tokenizer.load(core._executor.model_folder))
    slow, quick = structured(1), SamplingParams(seed=2, max_tokens=20)
    requests = {name: new_request(name, [5, 6], params) for name, params in (("slow", slow), ("quick", quick))}
    requests["slow"] = new_request("slow", [5, 6], slow, grammar=desk.source(slow))
    for request in requests.values():
        collector.expect(request)
        core.add(request)
    while "quick" not in collector.finished:
        assert core.stats().num_waiting >= 1 and core.has_work()
        collector.take(core.step())
    assert not collector.outputs["slow"].outputs[0].token_ids
    vocabulary.gate.set()
    while core.has_work():
        collector.take(core.step())
    check(collector.outputs["slow"].outputs[0].text)


def test_one_that_waits_for_its_grammar_can_be_aborted(gated: Any) -> None:
    core, vocabulary, desk = gated
    request = new_request("slow", [5, 6], structured(1), grammar=desk.source(structured(1)))
    core.add(request)
    assert core.step() == [] and core.stats().num_waiting == 1
    (ended,) = core.abort(request.key)
    assert ended.over and ended.reason == "abort" and not core.has_work()
    vocabulary.gate.set()
    assert core.stats().num_waiting == 0


def test_a_grammar_is_compiled_for_those_who_still_wait(gated: Any) -> None:
    core, vocabulary, desk = gated
    requests = []
    for name, text in enumerate(("shared", "shared", "alone", "shared")):
        params = SamplingParams(structured_outputs=StructuredOutputsParams(regex=text), max_tokens=2, n=2)
        request = new_request(str(name), [5, 6], params, grammar=desk.source(params))
        requests.append(dataclasses.replace(request, tenant="x"))
        core.add(requests[-1])
    jobs = {key: waiting.job for key, waiting in core._grammars._waiting.items()}
    for request in requests[1:3]:
        core.abort(request.key)
    vocabulary.gate.set()
    while core.has_work():
        core.step()
    assert [jobs[request.key].matcher.cancelled() for request in (requests[0], requests[1], requests[3])] == [
        False,
        True,
        False,
    ]
    assert all((jobs[request.key].num_samples, jobs[request.key].tenant) == (2, "x") for request in requests)


def test_engines_that_cannot(folder: Path, llm: LLM) -> None:
    with LLM(str(folder), skip_tokenizer_init=True) as blind:
        with pytest.raises(InvalidRequestError, match="skip_tokenizer_init"):
            blind.generate([[1, 2]], SamplingParams(structured_outputs=JSON, detokenize=False), use_tqdm=False)
    _, lacks = make_compiler(llm._client.tokenizer, 320, frozenset())
    with pytest.raises(InvalidRequestError, match="no EOS"):
        GrammarDesk(lacks).source(structured())


def test_a_stream_begins_or_is_refused(llm: LLM) -> None:
    import asyncio

    client: EngineClient = llm._client

    async def run() -> None:
        stream = client.submit([5, 6], structured(1))
        await stream.begun()
        await stream.begun()
        text = "".join([delta.outputs[0].text async for delta in stream])
        check(text)
        refused = client.submit([5], structured(structured_outputs=StructuredOutputsParams(regex="(")))
        with pytest.raises(InvalidRequestError, match="regular expression"):
            await refused.begun()

    asyncio.run(run())
