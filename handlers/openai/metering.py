"""What requests cost: taken from their key's quota before the engine gets them, and noted for the access log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from paged_backend.handlers.access.gate import Caller
from paged_backend.handlers.openai.access_log import RequestRecord
from paged_backend.handlers.openai.engine_port import StreamPort
from paged_backend.sampling_params import SamplingParams

_Stream = TypeVar("_Stream", bound=StreamPort)


def submit_metered(
    submit: Callable[[], Sequence[_Stream]],
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    max_model_len: int,
    caller: Caller,
    record: RequestRecord | None,
) -> Sequence[_Stream]:
    """Hands requests to an engine, if their caller's quota has room for all of them.

    Args:
        submit: hands over one request per prompt, all of them or none, and gives their streams.
        prompts: token ids.
        max_model_len: how far a request without max_tokens may go.

    Raises:
        AdmissionError: the quota has no room now.
        InvalidRequestError: the quota never has.
        Whatever `submit` raises; then they have cost nothing.
    """
    quota = caller.quota
    costs = [_cost(len(prompt), params, max_model_len) for prompt in prompts]
    if quota is not None:
        quota.admit(len(prompts), sum(costs))
    try:
        streams = submit()
    except BaseException:
        if quota is not None:
            quota.undo(len(prompts), sum(costs))
        raise
    if record is not None:
        record.engine_begins(len(prompts), sum(map(len, prompts)))
    for stream, prompt, cost in zip(streams, prompts, costs, strict=True):
        num_reserved = cost - len(prompt)

        def over(num_generated: int, num_reserved: int = num_reserved) -> None:
            if quota is not None:
                quota.end(num_reserved - num_generated)
            if record is not None:
                record.engine_ends(num_generated)

        stream.add_done_callback(over)
    return streams


def _cost(num_prompt_tokens: int, params: SamplingParams, max_model_len: int) -> int:
    """Tokens of a prompt, and the most that its samples may generate."""
    room = max(0, max_model_len - num_prompt_tokens)
    each = room if params.max_tokens is None else min(params.max_tokens, room)
    return num_prompt_tokens + params.num_sequences * each
