"""The compiler: what it keeps, what it gives up, and what hostile grammars cannot do."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from llguidance import LLMatcher

from paged_backend.errors import InvalidRequestError, RequestFailedError
from paged_backend.sampling_params import StructuredOutputsParams
from paged_backend.structured.compiler import GrammarCompiler
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.prover import Prover
from paged_backend.structured.source import GrammarSource
from paged_backend.structured.vocabulary import Vocabulary


def source(text: str, **params: Any) -> GrammarSource:
    return GrammarSource.of(StructuredOutputsParams(regex=text, **params))


class CountingVocabulary:
    """Counts what it tries out and makes, and waits for leave where it is told to."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.proved: list[str] = []
        self.made: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def prove(self, source: GrammarSource, prover: Prover) -> str:
        self.proved.append(source.text)
        self.gate.wait(30)
        if source.text == "fault":
            raise ZeroDivisionError
        return self._vocabulary.prove(source, prover)

    def matcher(self, grammar: str, num_samples: int) -> Matcher:
        self.made.append(num_samples)
        return self._vocabulary.matcher(grammar, num_samples)


class Hasty:
    """Has no time at all for samples beside the first."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.prove = vocabulary.prove
        self.matcher = functools.partial(vocabulary.matcher, time_limit_s=-1.0)


@pytest.fixture
def counting(vocabulary: Vocabulary) -> CountingVocabulary:
    return CountingVocabulary(vocabulary)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_the_latest_grammars_are_known(counting: CountingVocabulary) -> None:
    compiler = GrammarCompiler(counting, max_known_bytes=3000)  # two small ones
    for text in ("a", "b", "a", "c", "a", "b"):  # c takes the place of b, and b that of c
        compiler.compile(source(text)).matcher.result(30)
    assert counting.proved == ["a", "b", "c", "b"] and counting.made == [1] * 6
    compiler.close()


def test_each_request_has_its_own_matchers(counting: CountingVocabulary) -> None:
    compiler = GrammarCompiler(counting)
    matchers = [compiler.compile(source("a"), num_samples).matcher.result(30) for num_samples in (1, 3)]
    matchers += [matchers[1].fork(), matchers[1].fork()]
    assert len({id(matcher._automaton) for matcher in matchers}) == 4 and counting.made == [1, 3]
    compiler.close()


@pytest.mark.parametrize("max_known_bytes", [0, 1 << 20])
def test_a_grammar_is_tried_out_once_for_all_who_wait(max_known_bytes: int, counting: CountingVocabulary) -> None:
    """Even if there is no room to remember it: who waits is told."""
    compiler = GrammarCompiler(counting, max_known_bytes=max_known_bytes)
    counting.gate.clear()
    jobs = [compiler.compile(source("a"), tenant=tenant) for tenant in "ababcb"]
    wait_until(lambda: sum(map(len, compiler._proving.values())) == len(jobs) - 1)  # who waits holds no thread
    others = [compiler.compile(source(text), tenant="d") for text in "bc"]
    wait_until(lambda: sorted(counting.proved) == list("abc"))
    counting.gate.set()
    assert all(job.matcher.result(30) for job in (*jobs, *others)) and sorted(counting.proved) == list("abc")
    assert len(counting.made) == len(jobs) + len(others)
    compiler.close()


def test_samples_that_take_too_long(counting: CountingVocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    """That many of them are refused, and not the grammar."""
    monkeypatch.setattr(counting, "_vocabulary", Hasty(counting._vocabulary))
    compiler = GrammarCompiler(counting)
    error = compiler.compile(source("a"), 3).matcher.exception(30)
    assert isinstance(error, InvalidRequestError) and error.param == "structured_outputs"
    assert "3 samples" in str(error) and "fewer" in str(error)
    assert compiler.compile(source("a")).matcher.result(30) and counting.proved == ["a"]
    compiler.close()


def test_refusals_are_known_too(counting: CountingVocabulary) -> None:
    compiler = GrammarCompiler(counting)
    first, second = (compiler.compile(source("(")).matcher.exception(30) for _ in range(2))
    assert isinstance(first, InvalidRequestError) and str(first) == str(second) and first is not second
    other = compiler.compile(dataclasses.replace(source("("), param="response_format")).matcher.exception(30)
    assert isinstance(other, InvalidRequestError) and other.param == "response_format"
    assert str(other) == str(first).replace("structured_outputs", "response_format", 1) != str(first)
    assert counting.proved == ["("]
    compiler.close()


def test_a_fault_of_ours_is_not_remembered(counting: CountingVocabulary) -> None:
    """Those who waited for the outcome try again, each for itself."""
    compiler = GrammarCompiler(counting)
    counting.gate.clear()
    jobs = [compiler.compile(source("fault")) for _ in range(3)]
    wait_until(lambda: len(compiler._proving.get(source("fault"), ())) == 2)
    counting.gate.set()
    assert all(isinstance(job.matcher.exception(30), RequestFailedError) for job in jobs)
    assert counting.proved == ["fault"] * 3 and not compiler._proving
    assert compiler.compile(source("a")).matcher.result(30)
    compiler.close()


def test_a_grammar_can_be_refused_from_now_on(counting: CountingVocabulary) -> None:
    compiler = GrammarCompiler(counting)
    compiler.compile(source("a")).matcher.result(30)
    compiler.refuse(source("a"), "is too slow.")
    error = compiler.compile(source("a")).matcher.exception(30)
    assert str(error) == "structured_outputs: the regular expression is too slow." and counting.proved == ["a"]
    compiler.close()


def test_one_tenants_slow_grammars_do_not_delay_others(counting: CountingVocabulary) -> None:
    """One has many that never come to an end. Others are served at once, in turn."""
    compiler = GrammarCompiler(counting)
    counting.gate.clear()
    slow = [compiler.compile(source(f"slow{number}"), tenant="slow") for number in range(5)]
    wait_until(lambda: len(counting.proved) == 2)
    known = [source(text) for text in "xy"]
    for one in known:
        compiler._known.put(one, LLMatcher.grammar_from_regex(one.text))
    for tenant in "abcabc":
        for one in known:
            compiler.compile(one, tenant=tenant).matcher.result(30)
    assert sorted(counting.proved) == ["slow0", "slow1"]
    counting.gate.set()
    assert all(job.matcher.result(30) for job in slow)
    compiler.close()


HOSTILE: dict[str, dict[str, Any]] = {
    "takes minutes": {
        "json": {"type": "string", "allOf": [{"pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(10, 30)]}
    },
    "has slow masks": {"regex": "a{1000}" * 300},
    "overflows a stack": {
        "json": {
            "$defs": {f"d{i}": {"prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(2000)}
            | {"d2000": {"type": "null"}},
            "$ref": "#/$defs/d0",
        }
    },
    "branches and branches": {
        "json": {
            "allOf": [
                {"anyOf": [{"properties": {f"a{i}": {"type": kind}}} for kind in ("string", "null", "integer")]}
                for i in range(16)
            ]
        }
    },
    "is long": {"grammar": "root ::= " + " | ".join(f'"{i}" root' for i in range(9000))},
}


@pytest.mark.parametrize("given", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_grammars(given: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Each is refused, or harmless, and the next request is served: whatever process died of it."""
    compiler = GrammarCompiler(vocabulary, time_limit_s=1.0)
    error = compiler.compile(GrammarSource.of(StructuredOutputsParams(**given))).matcher.exception(60)
    assert error is None or isinstance(error, InvalidRequestError), error
    assert compiler.compile(source("fine")).matcher.result(60)
    compiler.close()


def test_time_and_death(vocabulary: Vocabulary) -> None:
    """What the process says when the time is over, or nothing at all."""
    compiler = GrammarCompiler(vocabulary, time_limit_s=0.5)
    job = compiler.compile(GrammarSource.of(StructuredOutputsParams(**HOSTILE["takes minutes"])))
    assert "takes more than 0.5 s to compile" in str(job.matcher.exception(60))
    compiler.close()


def test_a_process_that_others_end_is_no_fault_of_a_grammar(vocabulary: Vocabulary) -> None:
    """Ended while idle, it is replaced; ended at work, the request fails, and may be tried again."""
    before = {process.pid for process in psutil.Process().children()}
    compiler = GrammarCompiler(vocabulary, time_limit_s=30.0)
    compiler.compile(source("a")).matcher.result(30)
    wait_until(lambda: compiler._jobs.num_idle == 1)
    (process,) = [process for process in psutil.Process().children() if process.pid not in before]
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is over, and left for who started it
    compiler.compile(source("b")).matcher.result(30)
    wait_until(lambda: compiler._jobs.num_idle == 1)
    (process,) = [process for process in psutil.Process().children() if process.pid not in before]
    slow = GrammarSource.of(StructuredOutputsParams(**HOSTILE["takes minutes"]))
    idle_s = process.cpu_times().user
    job = compiler.compile(slow)
    wait_until(lambda: process.cpu_times().user > idle_s + 0.1)  # at work
    process.kill()
    assert isinstance(job.matcher.exception(30), RequestFailedError)
    assert compiler._known.get(slow) is None
    compiler.close()


def test_what_nobody_waits_for_is_not_compiled(counting: CountingVocabulary) -> None:
    compiler = GrammarCompiler(counting)
    counting.gate.clear()
    begun = [compiler.compile(source(text)) for text in "ab"]
    wait_until(lambda: sorted(counting.proved) == ["a", "b"])
    abandoned, wanted, left = (compiler.compile(source(text)) for text in "cda")
    compiler.abandon(begun[0])  # too late: it goes on, and is remembered
    compiler.abandon(abandoned)
    compiler.abandon(left)
    assert abandoned.matcher.cancelled() and left.matcher.cancelled()
    counting.gate.set()
    for job in (wanted, begun[0], compiler.compile(source("a"))):
        assert job.matcher.result(30)
    assert sorted(counting.proved) == list("abd")
    compiler.close()


def test_an_end_does_not_wait_for_what_has_not_begun(counting: CountingVocabulary) -> None:
    threads = set(threading.enumerate())
    compiler = GrammarCompiler(counting)
    counting.gate.clear()
    begun = [compiler.compile(source("a")), compiler.compile(source("b"), tenant="other")]
    wait_until(lambda: sorted(counting.proved) == ["a", "b"])
    shared = compiler.compile(source("a"), tenant="other")
    wait_until(lambda: any(compiler._proving.values()))
    later = [compiler.compile(source(text), tenant="other") for text in "cdef"]
    wait_until(lambda: len(counting.proved) == 3)
    compiler.close()
    counting.gate.set()
    wait_until(lambda: not set(threading.enumerate()) - threads)
    assert all(job.matcher.cancelled() for job in (shared, *later[1:]))
    assert sorted(counting.proved) == ["a", "b", "c"] and all(job.matcher.result() for job in begun)


def test_a_thread_that_cannot_start_leaves_nobody_waiting(
    counting: CountingVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    compiler = GrammarCompiler(counting)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            compiler.compile(source("a"))
    assert compiler.compile(source("a")).matcher.result(30)
    compiler.close()


def test_threads_and_processes_end(vocabulary: Vocabulary) -> None:
    before = {process.pid for process in psutil.Process().children()}
    threads = set(threading.enumerate())
    compiler = GrammarCompiler(vocabulary)
    compiler.compile(source("a")).matcher.result(30)
    assert {process.pid for process in psutil.Process().children()} - before
    compiler.close()
    wait_until(lambda: not {process.pid for process in psutil.Process().children()} - before)
    wait_until(lambda: not set(threading.enumerate()) - threads)


def test_vocabularies_that_do_not_go(tokenizer: Any) -> None:
    text = tokenizer.backend_tokenizer.to_str()
    for given, message in ((("{}", 330, [1]), "."), ((text, 330, []), "no EOS"), ((text, 100, [1]), "vocab")):
        with pytest.raises(ValueError, match=message):
            Vocabulary(*given)
