"""What is remembered of grammars: the latest, and never more than so many bytes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from paged_backend.errors import InvalidRequestError
from paged_backend.sampling_params import StructuredOutputsParams
from paged_backend.structured.known_grammars import KnownGrammars
from paged_backend.structured.source import GrammarSource

NAMES = "abcdef"


def source(name: str, length: int = 1) -> GrammarSource:
    return GrammarSource.of(StructuredOutputsParams(regex=name * length))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.none() | st.integers(0, 4000))))
def test_the_latest_fit(steps: list[tuple[str, int | None]]) -> None:
    """Against a list, the latest last, with sizes that are counted anew."""
    known = KnownGrammars(12_000)
    model: list[tuple[str, str]] = []
    for name, length in steps:
        if length is None:
            found = known.get(source(name))
            assert found == dict(model).get(name)
            model.sort(key=lambda entry: entry[0] == name)
            continue
        known.put(source(name), "é" * length)
        model = [entry for entry in model if entry[0] != name] + [(name, "é" * length)]
        while sum(len(text) for _, text in model) + 1100 * len(model) > 11_000 and len(known) < len(model):
            model.pop(0)
        assert known.num_bytes <= 12_000 and len(known) == len(model)
    assert [known.get(source(name)) for name, _ in model] == [text for _, text in model]


def test_refusals_count_with_their_words() -> None:
    known = KnownGrammars(5000)
    known.put(source("a"), InvalidRequestError("x" * 3000, param="x"))
    known.put(source("b"), InvalidRequestError("x" * 3000, param="x"))
    assert known.get(source("a")) is None and known.get(source("b")) is not None
    known.put(source("c"), "x" * 6000)  # never fits
    assert len(known) == 0 == known.num_bytes


def test_long_sources_count() -> None:
    known = KnownGrammars(100_000)
    for name in NAMES:
        known.put(source(name, 40_000), "short")
    assert len(known) == 2
