"""The native API's work: from a GenerateRequest to the engine, and from its outputs to JSON and SSE frames."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.bento.edge import Exchange
from paged_backend.handlers.bento.native_types import (
    GeneratedSample,
    GenerateRequest,
    GenerateResponse,
    TokenLogprob,
)
from paged_backend.handlers.openai.access_log import RequestRecord
from paged_backend.handlers.openai.engine_port import EnginePort, StreamPort
from paged_backend.handlers.openai.errors import REQUEST_ID, error_status, stream_error_body
from paged_backend.handlers.openai.messages import parse_messages
from paged_backend.handlers.openai.metering import submit_metered
from paged_backend.handlers.openai.prompts import check_length, encode_prompts, room_for, truncate
from paged_backend.handlers.openai.protocol.generation import bounded_max_tokens, sampling_params
from paged_backend.handlers.openai.rendering import Rendering, render_messages
from paged_backend.handlers.openai.served_models import ServedModel
from paged_backend.outputs import PromptLogprobs, RequestDelta, RequestOutput, TokenLogprobs

PING = ": ping\n\n"
"""A comment, sent at once: BentoML notices that the client of a stream left only after the first chunk."""

DONE = "data: [DONE]\n\n"


async def submit(
    model: ServedModel, request: GenerateRequest, exchange: Exchange, *, streams: bool = False
) -> StreamPort:
    """Hands a request to its model's engine; a long prompt is encoded beside the event loop.

    Args:
        exchange: says who asks.
        streams: whether the answer is to come piece by piece.

    Raises:
        InvalidRequestError, AdmissionError, EngineUnavailableError: it is not accepted; of a stream, also what refuses
            it before there is anything to stream.
    """
    engine, limit = model.engine, model.engine.max_model_len
    if exchange.record is not None:
        exchange.record.keep_prompt(
            {
                "prompt": request.prompt,
                "prompt_token_ids": request.prompt_token_ids,
                "messages": request.messages and [vars(message) for message in request.messages],
            }
        )
    request.check(engine.config.scheduler.scheduling_policy)
    # Checked before the prompt is encoded: a wrong value must not cost a long tokenisation.
    params = sampling_params(
        request,
        engine,
        max_tokens=limit if request.max_tokens is None else request.max_tokens,
        logprobs=request.logprobs,
        streams=streams,
        detokenize=request.detokenize is not False,
    )
    field, token_ids = await _encode(engine, request)
    token_ids = truncate(token_ids, request, max_model_len=limit, max_tokens=request.max_tokens)
    room = room_for(
        token_ids, request.max_tokens, max_model_len=limit, prompt_field=field, max_tokens_field="max_tokens"
    )
    params = dataclasses.replace(params, max_tokens=bounded_max_tokens(engine, room))
    request_id, tenant = request.request_id or uuid.uuid4().hex, exchange.caller.tenant
    REQUEST_ID.set(request_id)
    if exchange.record is not None:
        exchange.record.request_id = request_id
    model.live.check_free(tenant, request_id)
    try:
        accepted = submit_metered(
            lambda: engine.submit_all(
                [token_ids],
                params,
                request_ids=[request_id],
                priority=request.priority,
                tenant=tenant,
                cache_salt=request.cache_salt,
                timeout_s=request.timeout_s,
                trace_headers=exchange.trace_headers,
            ),
            [token_ids],
            params,
            max_model_len=limit,
            caller=exchange.caller,
            record=exchange.record,
        )
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), param=field if error.param == "prompt" else error.param) from error
    model.live.add(tenant, request_id, accepted)
    (stream,) = accepted
    if streams:
        try:
            await stream.begun()
        except BaseException:
            stream.abort()
            raise
    return stream


async def _encode(engine: EnginePort, request: GenerateRequest) -> tuple[str, list[int]]:
    """The field that holds the prompt, and the prompt's token ids."""
    limit, must_fit = engine.max_model_len, request.truncate_prompt_tokens is None
    if request.messages is not None:
        messages = [message.model_dump() for message in request.messages[: limit + 1]]
        rendered = await render_messages(
            engine, parse_messages(messages, max_messages=limit), Rendering(), must_fit=must_fit
        )
        return "messages", rendered.token_ids
    if request.prompt is not None:
        add_special_tokens = request.add_special_tokens is not False
        (token_ids,) = await encode_prompts(engine, [request.prompt], add_special_tokens, must_fit=must_fit)
        return "prompt", token_ids
    token_ids = request.prompt_token_ids or []
    check_length(token_ids, limit if must_fit else None, "prompt_token_ids")
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


async def frames(stream: StreamPort, record: RequestRecord | None = None) -> AsyncIterator[str]:
    """SSE frames, one per delta; a fault becomes a frame with `error`, and is told to the access log's record; `[DONE]`
    is always the last.

    Text is ASCII-only JSON, so that readers may cut the bytes anywhere: BentoML's own clients decode each chunk alone.
    """
    try:
        async for delta in stream:
            yield _frame(_delta(delta))
    except Exception as error:
        if record is not None:
            record.stream_fails(error_status(error))
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
        prompt_logprobs=output.prompt_logprobs and _prompt_logprobs(output.prompt_token_ids, output.prompt_logprobs),
    )


def _prompt_logprobs(token_ids: Sequence[int], logprobs: PromptLogprobs) -> list[list[TokenLogprob] | None]:
    pairs = zip(token_ids, logprobs, strict=True)
    return [None if candidates is None else _candidates(token_id, candidates) for token_id, candidates in pairs]


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
