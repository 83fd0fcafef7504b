"""Says where an output is not what it was alone."""

from __future__ import annotations

from paged_backend.outputs import RequestOutput
from tests.soak.requests import SoakRequest


def difference(request: SoakRequest, alone: RequestOutput, here: RequestOutput) -> str | None:
    """The first one of a request's two outputs, or None.

    They are compared as they are written out in full: 0.0 and -0.0 are equal numbers, but other bits.
    """
    if repr(alone.outputs) == repr(here.outputs):
        return None
    return (
        f"request {request.number} (prompt of {len(request.prompt)} tokens, seed {request.params.seed}): "
        f"{_place(alone, here)}\n    {request.params}"
    )


def _place(alone: RequestOutput, here: RequestOutput) -> str:
    for index, (one, other) in enumerate(zip(alone.outputs, here.outputs, strict=True)):
        sample = f"sample {index}"
        for place, (token, token_here) in enumerate(zip(one.token_ids, other.token_ids, strict=False)):
            if token != token_here:
                return f"{sample}, token {place} is {token_here}; alone it was {token}"
            if one.logprobs is not None and repr(one.logprobs[place]) != repr((other.logprobs or [None] * 999)[place]):
                return (
                    f"{sample}, logprobs of token {place} are {(other.logprobs or [None] * 999)[place]}; "
                    f"alone they were {one.logprobs[place]}"
                )
        if len(one.token_ids) != len(other.token_ids):
            return f"{sample} has {len(other.token_ids)} tokens; alone it had {len(one.token_ids)}"
        for name in ("cumulative_logprob", "text", "finish_reason", "stop_reason", "logprobs", "index"):
            value, value_here = getattr(one, name), getattr(other, name)
            if repr(value) != repr(value_here):
                return f"{sample}, {name} is {value_here!r}; alone it was {value!r}"
    raise AssertionError("what is written out differs, so something in it does")
