"""Outputs put together from deltas."""

from __future__ import annotations

import pytest

from paged_backend.outputs import CompletionDelta, CompletionOutput, Logprob

LOGPROBS = [-2.73, -0.97, -0.22, -0.84, -2.58, -1.35]
ONE_BY_ONE = 0.0
for logprob in LOGPROBS:
    ONE_BY_ONE += logprob


@pytest.mark.parametrize("sizes", [[6], [1] * 6, [1, 2, 3], [3, 3], [5, 1]], ids=str)
def test_cumulative_logprob_is_the_same_bits_in_any_deltas(sizes: list[int]) -> None:
    """One delta a step or one of all steps is a matter of when the reader comes."""
    output, left = CompletionOutput(0), [{7: Logprob(logprob, 1)} for logprob in LOGPROBS]
    for size in sizes:
        output.extend(CompletionDelta(0, "", (7,) * size, tuple(left[:size])))
        del left[:size]
    assert output.cumulative_logprob == ONE_BY_ONE
    assert output.logprobs is not None and len(output.logprobs) == len(LOGPROBS)
