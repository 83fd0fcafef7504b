"""The native API's work: from a GenerateRequest to the engine, and from its outputs to JSON and SSE frames."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from paged_backend.errors import InvalidRequestError, PagedBackendError
from paged_backend.handlers.bento.native_types import (
    GeneratedSample,
    GenerateRequest,
    GenerateResponse,
    TokenLogprob,
)
from paged_backend.handlers.openai.errors import stream_error_body
from paged_backend.outputs import RequestDelta, RequestOutput, TokenLogprobs

if TYPE_CHECKING:
    from paged_backend.engine.client import EngineClient
    from paged_backend.engine.stream import RequestStream

PING = ": ping\n\n"
"""A comment, sent at once: BentoML notices that the client of a stream left only after the first chunk."""

DONE = "data: [DONE]\n\n"


def submit(client: EngineClient, request: GenerateRequest) -> RequestStream:
    """Hands the request to the engine.

    Raises:
        InvalidRequestError, QueueFullError, EngineUnavailableError: it is not accepted.
    """
    request.check(client.config.scheduler.scheduling_policy)
    params = request.sampling_params(detokenize=client.tokenizer is not None)
    add_special_tokens = request.add_special_tokens
    prompt: str | list[int]
    if request.messages is not None:
        if client.tokenizer is None:
            raise InvalidRequestError(
                "This engine runs without a tokenizer (skip_tokenizer_init): send prompt_token_ids.",
                param="messages",
            )
        prompt = client.tokenizer.apply_chat_template([message.model_dump() for message in request.messages])
        add_special_tokens = False  # the template writes them
    elif request.prompt is not None:
        prompt = request.prompt
    else:
        prompt = request.prompt_token_ids or []
    return client.submit(
        prompt,
        params,
        request_id=request.request_id,
        priority=request.priority,
        cache_salt=request.cache_salt,
        add_special_tokens=add_special_tokens,
    )


async def collect(stream: RequestStream) -> GenerateResponse:
    """Waits for the whole output; whoever is cancelled meanwhile has aborted the request.

    Raises:
        RequestFailedError, EngineUnavailableError: it ended by a fault.
    """
    try:
        output = await stream.collect_async()
    except BaseException:
        stream.abort()
        raise
    return _response(output)


async def frames(stream: RequestStream) -> AsyncIterator[str]:
    """SSE frames, one per delta; a fault becomes a frame with `error`; `[DONE]` is always the last.

    Text is ASCII-only JSON, so that readers may cut the bytes anywhere: BentoML's own clients decode each chunk alone.
    """
    try:
        async for delta in stream:
            yield _frame(_delta(delta))
    except PagedBackendError as error:
        yield _frame(stream_error_body(error))
    finally:
        stream.abort()
    yield DONE


def _frame(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, separators=(',', ':'), allow_nan=False)}\n\n"


def _delta(delta: RequestDelta) -> dict[str, Any]:
    outputs = []
    for output in delta.outputs:
        sample: dict[str, Any] = {
            "index": output.index,
            "text": output.text,
            "token_ids": list(output.token_ids),
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        if output.logprobs is not None:
            sample["logprobs"] = [
                [entry.model_dump() for entry in _candidates(token_id, candidates)]
                for token_id, candidates in zip(output.token_ids, output.logprobs, strict=True)
            ]
        outputs.append(sample)
    return {
        "request_id": delta.request_id,
        "outputs": outputs,
        "finished": delta.finished,
        "num_prompt_tokens": delta.num_prompt_tokens,
        "num_cached_tokens": delta.num_cached_tokens,
    }


def _response(output: RequestOutput) -> GenerateResponse:
    samples = []
    for sample in output.outputs:
        logprobs = None
        if sample.logprobs is not None:
            logprobs = [
                _candidates(token_id, candidates)
                for token_id, candidates in zip(sample.token_ids, sample.logprobs, strict=True)
            ]
        samples.append(
            GeneratedSample(
                index=sample.index,
                text=sample.text,
                token_ids=sample.token_ids,
                finish_reason=sample.finish_reason,
                stop_reason=sample.stop_reason,
                cumulative_logprob=sample.cumulative_logprob,
                logprobs=logprobs,
            )
        )
    return GenerateResponse(
        request_id=output.request_id,
        outputs=samples,
        num_prompt_tokens=len(output.prompt_token_ids),
        num_cached_tokens=output.num_cached_tokens,
    )


def _candidates(sampled: int, candidates: TokenLogprobs) -> list[TokenLogprob]:
    order = sorted(candidates, key=lambda token_id: (token_id != sampled, candidates[token_id].rank))
    return [
        TokenLogprob(
            token_id=token_id,
            token=candidates[token_id].decoded_token,
            logprob=candidates[token_id].logprob,
            rank=candidates[token_id].rank,
        )
        for token_id in order
    ]
