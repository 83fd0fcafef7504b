"""The search alone: small cases whose outcome one can see."""

from __future__ import annotations

import pytest

from paged_backend.kv.manager import KVCacheManager
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.beam_search import Beam, BeamSearch, Candidate

END = 0


def new_search(width: int, max_tokens: int = 9, **params: object) -> BeamSearch:
    return BeamSearch(SamplingParams(n=width, use_beam_search=True, **params), max_tokens, num_ends=1)  # type: ignore[arg-type]


def advance(search: BeamSearch, *rows: dict[int, float]) -> list[list[int]]:
    """A step whose candidates are {token: log-probability}, beam by beam; the beams that go on."""
    beams = search.beams
    candidates = [
        Candidate(beams[parent].score + logprob, parent, token, 0)
        for parent, row in enumerate(rows)
        for token, logprob in row.items()
    ]

    def extend(candidate: Candidate) -> Beam:
        beam = Beam([*beams[candidate.parent].token_ids, candidate.token_id], candidate.score, parent=candidate.parent)
        beam.finish_reason = "stop" if candidate.token_id == END else None
        return beam

    search.advance(candidates, extend)
    return [beam.token_ids for beam in search.beams]


def ended(search: BeamSearch) -> list[list[int]]:
    return [beam.token_ids for beam in search.ended]


def test_beams_compete_with_each_other() -> None:
    search = new_search(2)
    assert advance(search, {5: -1.0, 6: -1.5, 7: -3.0, 8: -4.0}) == [[5], [6]]
    assert advance(search, {5: -2.0, 6: -2.1, 7: -9.0}, {5: -0.1, 6: -0.2, 7: -9.0}) == [[6, 5], [6, 6]]
    assert [beam.parent for beam in search.beams] == [1, 1] and not search.over


def test_equals_go_to_the_better_beam_and_the_first_token() -> None:
    search = new_search(2)
    advance(search, {5: -1.0, 6: -1.0, 7: -1.0})
    assert advance(search, {3: -1.0, 4: -1.0}, {1: -1.0, 2: -1.0}) == [[5, 3], [5, 4]]


def test_only_the_best_may_end() -> None:
    """A third-best end makes room for nothing, and is forgotten."""
    search = new_search(2)
    assert advance(search, {5: -1.0, 6: -1.1, END: -1.2, 7: -9.0}) == [[5], [6]]
    assert ended(search) == []
    assert advance(search, {END: -0.1, 5: -0.3}, {5: -0.1, 6: -8.0}) == [[6, 5], [5, 5]]
    assert ended(search) == [[5, END]] and not search.over


@pytest.mark.parametrize(("early", "over"), [(True, True), (False, True), ("never", False)])
def test_when_it_is_over(early: bool | str, over: bool) -> None:
    search = new_search(1, early_stopping=early)
    assert advance(search, {END: -0.5, 5: -0.9}) == [[5]]
    assert search.over == over  # nine tokens might still have a mean above -0.5


def test_the_length_penalty_ranks() -> None:
    for penalty, first in ((0.0, [END]), (2.0, [5, END])):
        search = new_search(2, length_penalty=penalty)
        advance(search, {END: -1.0, 5: -1.1, 6: -1.2})
        advance(search, {END: -0.2, 5: -5.0}, {5: -5.0})
        assert ended(search)[0] == first


def test_slots_for_each() -> None:
    assert KVCacheManager(10, 8).shape.slots_for_each(20, 1) == 80
    assert KVCacheManager(10, 8).shape.slots_for_each(20, 4) == (2 + 2) * 8
    assert KVCacheManager(5, 8).shape.slots_for_each(16, 4) == 16
