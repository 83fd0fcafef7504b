"""The native API's work: from a GenerateRequest to the engine, and from its outputs to JSON and SSE frames."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from paged_backend.errors import InvalidRequestError, PagedBackendError
from paged_backend.handlers.bento.edge import Exchange
from paged_backend.handlers.bento.native_types import (
    GeneratedSample,
    GenerateRequest,
    GenerateResponse,
    TokenLogprob,
)
from paged_backend.handlers.openai.engine_port import EnginePort, StreamPort
from paged_backend.handlers.openai.errors import stream_error_body
from paged_backend.handlers.openai.messages import parse_messages
from paged_backend.handlers.openai.metering import submit_metered
from paged_backend.handlers.openai.prompts import check_length, encode_prompts
from paged_backend.handlers.openai.protocol.generation import bounded_max_tokens, check_streamable
from paged_backend.handlers.openai.rendering import Rendering, render_messages
from paged_backend.outputs import RequestDelta, RequestOutput, TokenLogprobs

PING = ": ping\n\n"
"""A comment, sent at once: BentoML notices that the client of a stream left only after the first chunk."""

DONE = "data: [DONE]\n\n"


async def submit(
    client: EnginePort, request: GenerateRequest, exchange: Exchange, *, streams: bool = False
) -> StreamPort:
    """Hands a request to its model's engine; a long prompt is encoded beside the event loop.

    Args:
        exchange: says who asks.
        streams: whether the answer is to come piece by piece.

    Raises:
        InvalidRequestError, AdmissionError, EngineUnavailableError: it is not accepted.
    """
    request.check(client.config.scheduler.scheduling_policy)
    params = request.sampling_params(detokenize=client.tokenizer is not None)
    if streams:
        check_streamable(params)
    field, token_ids = await _encode(client, request)
    room = max(1, client.max_model_len - len(token_ids))
    most = room if params.max_tokens is None else params.max_tokens
    if (bound := bounded_max_tokens(client, most)) < most:
        params = dataclasses.replace(params, max_tokens=bound)
    request_id = request.request_id or uuid.uuid4().hex
    if exchange.record is not None:
        exchange.record.request_id = request_id
    try:
        (stream,) = submit_metered(
            lambda: client.submit_all(
                [token_ids],
                params,
                request_ids=[request_id],
                priority=request.priority,
                tenant=exchange.caller.tenant,
                cache_salt=request.cache_salt,
                timeout_s=request.timeout_s,
            ),
            [token_ids],
            params,
            max_model_len=client.max_model_len,
            caller=exchange.caller,
            record=exchange.record,
        )
        return stream
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), param=field if error.param == "prompt" else error.param) from error


async def _encode(client: EnginePort, request: GenerateRequest) -> tuple[str, list[int]]:
    """The field that holds the prompt, and the prompt's token ids."""
    if request.messages is not None:
        messages = [message.model_dump() for message in request.messages[: client.max_model_len + 1]]
        rendered = await render_messages(
            client, parse_messages(messages, max_messages=client.max_model_len), Rendering(), must_fit=True
        )
        return "messages", rendered.token_ids
    if request.prompt is not None:
        (token_ids,) = await encode_prompts(client, [request.prompt], request.add_special_tokens, must_fit=True)
        return "prompt", token_ids
    token_ids = request.prompt_token_ids or []
    check_length(token_ids, client.max_model_len, "prompt_token_ids")
    return "prompt_token_ids", token_ids


async def collect(stream: StreamPort) -> GenerateResponse:
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


async def frames(stream: StreamPort) -> AsyncIterator[str]:
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
