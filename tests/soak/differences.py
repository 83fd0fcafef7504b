"""Says where an output is not what it was alone."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from paged_backend.outputs import CompletionOutput, RequestOutput
from tests.soak.requests import SoakRequest


def difference(request: SoakRequest, alone: RequestOutput, here: RequestOutput) -> str | None:
    """The first one between a request's two outputs, or None.

    They are compared as they are written out in full: 0.0 and -0.0 are equal numbers, but other bits.
    """
    if repr((alone.outputs, alone.prompt_logprobs)) == repr((here.outputs, here.prompt_logprobs)):
        return None
    return (
        f"request {request.number} (seed {request.params.seed}, prompt of {len(request.prompt)} tokens), "
        f"{_first(alone, here)}\n    {request.params}"
    )


def _first(alone: RequestOutput, here: RequestOutput) -> str:
    for position, (told, told_here) in enumerate(zip_longest(alone.prompt_logprobs or (), here.prompt_logprobs or ())):
        if repr(told) != repr(told_here):
            return f"prompt position {position}: {told_here}; alone: {told}"
    for index, (one, other) in enumerate(zip(alone.outputs, here.outputs, strict=True)):
        for position, (token, token_here) in enumerate(zip_longest(_tokens(one), _tokens(other))):
            if repr(token) != repr(token_here):
                return f"sample {index}, position {position}: {token_here}; alone: {token}"
        for name in CompletionOutput.__slots__:
            value, value_here = getattr(one, name), getattr(other, name)
            if repr(value) != repr(value_here):
                return f"sample {index}, {name}: {value_here!r}; alone: {value!r}"
    raise AssertionError("outputs that are written out differently have a difference")


def _tokens(sample: CompletionOutput) -> list[tuple[Any, ...]]:
    """Each token with its candidates' logprobs, where it has any."""
    return list(zip_longest(sample.token_ids, sample.logprobs or ()))
