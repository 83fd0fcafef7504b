"""The compiler: what it keeps, what it gives up, and what hostile grammars cannot do."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from paged_backend.errors import InvalidRequestError, RequestFailedError
from paged_backend.sampling_params import StructuredOutputsParams
from paged_backend.structured.compiler import GrammarCompiler, refusal
from paged_backend.structured.matcher import Matcher
from paged_backend.structured.prover import Prover
from paged_backend.structured.source import GrammarSource
from paged_backend.structured.vocabulary import Vocabulary


def source(text: str, **params: Any) -> GrammarSource:
    return GrammarSource.of(StructuredOutputsParams(regex=text, **params))


class CountingVocabulary:
    """Counts what it compiles, and waits for leave where it is told to."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.compiled: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def compile(self, source: GrammarSource, prover: Prover) -> Matcher:
        self.compiled.append(source.text)
        if source.text == "fault":
            raise ZeroDivisionError
        self.gate.wait(30)
        return self._vocabulary.compile(source, prover)


@pytest.fixture
def counting(vocabulary: Vocabulary) -> CountingVocabulary:
    return CountingVocabulary(vocabulary)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_the_latest_grammars_are_kept(counting: CountingVocabulary) -> None:
    compiler = GrammarCompiler(counting, max_entries=2)
    for text in ("a", "b", "a", "c", "a", "b"):  # c takes the place of b, and b that of c
        compiler.compile(source(text)).result(30)
    assert counting.compiled == ["a", "b", "c", "b"]
    compiler.close()


def test_a_grammar_is_compiled_once_for_all_who_wait(counting: CountingVocabulary) -> None:
    compiler = GrammarCompiler(counting)
    counting.gate.clear()
    entries = [compiler.compile(source("a")) for _ in range(5)]
    assert not any(entry.done() for entry in entries)
    counting.gate.set()
    assert len({id(entry.result(30)) for entry in entries}) == 1 and counting.compiled == ["a"]
    compiler.close()


def test_refusals_are_kept_too(counting: CountingVocabulary) -> None:
    compiler = GrammarCompiler(counting)
    for _ in range(2):
        entry = compiler.compile(source("("))
        assert isinstance(entry.exception(30), InvalidRequestError)
        first, second = refusal(entry, source("(")), refusal(entry, source("("))
        assert str(first) == str(second) and first is not second
        other = refusal(entry, dataclasses.replace(source("("), param="response_format"))
        assert isinstance(other, InvalidRequestError) and other.param == "response_format"
        assert str(other) == str(first).replace("structured_outputs", "response_format", 1) != str(first)
    assert counting.compiled == ["("]
    compiler.close()


def test_a_fault_of_ours_is_not_kept(counting: CountingVocabulary) -> None:
    compiler = GrammarCompiler(counting)
    for _ in range(2):
        entry = compiler.compile(source("fault"))
        assert isinstance(entry.exception(30), RequestFailedError)
        assert isinstance(refusal(entry, source("fault")), RequestFailedError)
        wait_until(lambda: source("fault") not in compiler._entries)
    assert counting.compiled == ["fault"] * 2
    assert compiler.compile(source("a")).result(30)
    compiler.close()


def test_a_grammar_that_cannot_go_on_is_given_up(counting: CountingVocabulary) -> None:
    compiler = GrammarCompiler(counting)
    matcher = compiler.compile(source("a")).result(30).fork()
    compiler.give_up(source("a"), matcher)
    compiler.compile(source("a")).result(30)
    assert counting.compiled == ["a", "a"]
    matcher.is_slow = True
    compiler.give_up(source("a"), matcher)
    error = refusal(compiler.compile(source("a")), source("a"))
    assert error is not None and "too long" in str(error) and counting.compiled == ["a", "a"]
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
    entry = compiler.compile(GrammarSource.of(StructuredOutputsParams(**given)))
    error = entry.exception(60)
    assert error is None or isinstance(error, InvalidRequestError), error
    assert compiler.compile(source("fine")).result(60)
    compiler.close()


def test_time_and_death(vocabulary: Vocabulary) -> None:
    """What the process says when the time is over, or nothing at all."""
    compiler = GrammarCompiler(vocabulary, time_limit_s=0.5)
    entry = compiler.compile(GrammarSource.of(StructuredOutputsParams(**HOSTILE["takes minutes"])))
    assert "takes more than 0.5 s to compile" in str(entry.exception(60))
    compiler.close()


def test_a_process_that_others_end_is_no_fault_of_a_grammar(vocabulary: Vocabulary) -> None:
    """Ended while idle, it is replaced; ended at work, the request fails, and may be tried again."""
    before = {process.pid for process in psutil.Process().children()}
    compiler = GrammarCompiler(vocabulary, time_limit_s=30.0)
    compiler.compile(source("a")).result(30)
    (process,) = [process for process in psutil.Process().children() if process.pid not in before]
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is over, and left for who started it
    compiler.compile(source("b")).result(30)
    (process,) = [process for process in psutil.Process().children() if process.pid not in before]
    slow = GrammarSource.of(StructuredOutputsParams(**HOSTILE["takes minutes"]))
    idle_s = process.cpu_times().user
    entry = compiler.compile(slow)
    wait_until(lambda: process.cpu_times().user > idle_s + 0.1)  # at work
    process.kill()
    assert isinstance(entry.exception(30), RequestFailedError)
    wait_until(lambda: slow not in compiler._entries)
    compiler.close()


def test_what_nobody_waits_for_is_not_compiled(counting: CountingVocabulary) -> None:
    compiler = GrammarCompiler(counting)
    counting.gate.clear()
    begun = [compiler.compile(source(text)) for text in "ab"]
    wait_until(lambda: all(entry.running() for entry in begun))
    abandoned, wanted, left = (compiler.compile(source(text)) for text in "cde")
    compiler.abandon(source("a"), begun[0])  # too late: it goes on, and is kept
    compiler.abandon(source("c"), abandoned)
    assert abandoned.cancelled() and compiler.compile(source("a")) is begun[0]
    assert compiler.compile(source("c")) is not abandoned  # who asks anew gets it
    counting.gate.set()
    assert wanted.result(30) and left.result(30) and compiler.compile(source("c")).result(30)
    assert sorted(counting.compiled) == list("abcde")
    compiler.close()


def test_an_end_does_not_wait_for_what_has_not_begun(counting: CountingVocabulary) -> None:
    threads = set(threading.enumerate())
    compiler = GrammarCompiler(counting)
    counting.gate.clear()
    begun = [compiler.compile(source(text)) for text in "ab"]
    wait_until(lambda: all(entry.running() for entry in begun))
    later = [compiler.compile(source(text)) for text in "cde"]
    compiler.close()
    counting.gate.set()
    wait_until(lambda: not set(threading.enumerate()) - threads)
    assert all(entry.cancelled() for entry in later) and sorted(counting.compiled) == ["a", "b"]


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
    assert compiler.compile(source("a")).result(30)
    compiler.close()


def test_threads_and_processes_end(vocabulary: Vocabulary) -> None:
    before = {process.pid for process in psutil.Process().children()}
    threads = set(threading.enumerate())
    compiler = GrammarCompiler(vocabulary)
    compiler.compile(source("a")).result(30)
    assert {process.pid for process in psutil.Process().children()} - before
    compiler.close()
    wait_until(lambda: not {process.pid for process in psutil.Process().children()} - before)
    wait_until(lambda: not set(threading.enumerate()) - threads)


def test_vocabularies_that_do_not_go(tokenizer: Any) -> None:
    text = tokenizer.backend_tokenizer.to_str()
    for given, message in ((("{}", 330, [1]), "."), ((text, 330, []), "no EOS"), ((text, 100, [1]), "vocab")):
        with pytest.raises(ValueError, match=message):
            Vocabulary(*given)
