"""What completions and chat have in common: from a checked body to requests that the engine has accepted."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paged_backend.errors import InvalidRequestError
from paged_backend.handlers.access.gate import ANYBODY, Caller, Gate
from paged_backend.handlers.openai.access_log import RequestRecord
from paged_backend.handlers.openai.engine_port import EnginePort, StreamPort
from paged_backend.handlers.openai.errors import REQUEST_ID
from paged_backend.handlers.openai.live import LiveResponses
from paged_backend.handlers.openai.metering import submit_metered
from paged_backend.handlers.openai.protocol.generation import GenerationRequest
from paged_backend.handlers.openai.served_models import ServedModels, merge_expositions, unknown_model
from paged_backend.handlers.openai.streaming import abort_all
from paged_backend.handlers.openai.wire import encode_json
from paged_backend.sampling_params import SamplingParams

RESPONSE_PREFIXES = ("cmpl-", "chatcmpl-", "resp_", "msg_")
"""What the ids of responses begin with, each route's with its own; the request_id follows."""


@dataclass(frozen=True, slots=True)
class ServingContext:
    """What a route needs beside the body.

    Attributes:
        engine: of the model that the request names.
        model_names: that model's names; the first is used where a request names none.
        models: all that the server has.
        live: the responses that the request's model is making.
        gate: the server's; it has let the caller in.
        created: seconds since 1970 at which the service began.
        stall_timeout_s: how long an engine may have work and make no step before it counts as stuck; None: for ever.
        caller: who asks.
        record: what the access log will say of the request; None where nothing is logged.
        on_accepted: called when the engine has taken all of a request's prompts; see `HttpRequest`.
        trace_headers: the trace that the request is part of; see `HttpRequest`.
    """

    engine: EnginePort
    model_names: tuple[str, ...]
    models: ServedModels
    live: LiveResponses
    gate: Gate
    created: int = 0
    stall_timeout_s: float | None = None
    caller: Caller = ANYBODY
    record: RequestRecord | None = None
    on_accepted: Callable[[], None] | None = None
    trace_headers: Mapping[str, str] | None = None

    @property
    def tenant(self) -> str | None:
        """The caller's name for the engine; None where the server asks nobody who they are."""
        return self.caller.tenant

    def metrics_text(self) -> str:
        """Prometheus' text: of all engines, and of the keys' limits."""
        return merge_expositions([self.models.metrics_text(), self.gate.metrics_text()])

    def model_name(self, asked: str | None) -> str:
        """The name that the response carries.

        Raises:
            NotFoundError: no such model is served here.
        """
        if asked is None:
            return self.model_names[0]
        if asked not in self.model_names:
            raise unknown_model(asked)
        return asked


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What every body of one response begins with, whole or in chunks.

    Attributes:
        id: the same in every chunk.
        created: seconds since 1970.
    """

    id: str
    created: int
    model: str

    @classmethod
    def begin(cls, prefix: str, request: GenerationRequest, context: ServingContext) -> ResponseHead:
        """The head of a new response, under the caller's request_id if there is one."""
        name = request.request_id or uuid.uuid4().hex
        return cls(f"{prefix}-{name}", int(time.time()), context.model_name(request.model))

    def body(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """A whole response."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
            "usage": usage,
        }

    def chunk_head(self, kind: str, extra: Mapping[str, Any] | None = None) -> bytes:
        """The JSON of a chunk up to and with the bracket that opens its choices."""
        fields = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            **(extra or {}),
        }
        return encode_json(fields)[:-1] + b',"choices":['


def submit_all(
    context: ServingContext,
    request: GenerationRequest,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    *,
    response_id: str,
    prompt_field: str,
    max_tokens_field: str,
) -> Sequence[StreamPort]:
    """Submits one engine request per prompt: all of them, or none.

    Raises:
        InvalidRequestError: `param` is the body's field.
        AdmissionError, EngineUnavailableError: as from the engine.
    """
    context.live.check_free(context.tenant, response_id)
    fields = {"prompt": prompt_field, "max_tokens": max_tokens_field}
    several = len(prompts) > 1
    REQUEST_ID.set(response_id)
    if context.record is not None:
        context.record.request_id = response_id
    try:
        streams = submit_metered(
            lambda: context.engine.submit_all(
                prompts,
                params,
                request_ids=[f"{response_id}-{index}" if several else response_id for index in range(len(prompts))],
                priority=request.priority,
                tenant=context.tenant,
                cache_salt=request.cache_salt,
                timeout_s=request.timeout_s,
                trace_headers=context.trace_headers,
            ),
            prompts,
            params,
            max_model_len=context.engine.max_model_len,
            caller=context.caller,
            record=context.record,
        )
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), param=fields.get(error.param or "", error.param)) from error
    context.live.add(context.tenant, response_id, streams)
    if context.on_accepted is not None:
        try:
            context.on_accepted()
        except BaseException:
            abort_all(streams)
            raise
    return streams
