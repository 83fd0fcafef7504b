"""What completions and chat have in common: from a checked body to requests that the engine has accepted."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paged_backend.errors import InvalidRequestError, NotFoundError
from paged_backend.handlers.openai.engine_port import EnginePort, StreamPort
from paged_backend.handlers.openai.protocol.generation import GenerationRequest
from paged_backend.handlers.openai.streaming import abort_all
from paged_backend.handlers.openai.wire import encode_json
from paged_backend.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class ServingContext:
    """What a route needs beside the body.

    Attributes:
        model_names: names that requests may use; the first is used where a request names none.
        tenant: who asks; None where the server asks nobody who they are.
        on_accepted: called when the engine has taken all of a request's prompts; see `HttpRequest`.
        trace_headers: the trace that the request is part of; see `HttpRequest`.
    """

    engine: EnginePort
    model_names: tuple[str, ...]
    tenant: str | None = None
    on_accepted: Callable[[], None] | None = None
    trace_headers: Mapping[str, str] | None = None

    def model_name(self, asked: str | None) -> str:
        """The name that the response carries.

        Raises:
            NotFoundError: no such model is served here.
        """
        if asked is None:
            return self.model_names[0]
        if asked not in self.model_names:
            raise NotFoundError(f"The model `{asked}` does not exist.", param="model")
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
    fields = {"prompt": prompt_field, "max_tokens": max_tokens_field}
    several = len(prompts) > 1
    try:
        accepted = context.engine.submit_all(
            prompts,
            params,
            request_ids=[f"{response_id}-{index}" if several else response_id for index in range(len(prompts))],
            priority=request.priority,
            tenant=context.tenant,
            cache_salt=request.cache_salt,
            timeout_s=request.timeout_s,
            trace_headers=context.trace_headers,
        )
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), param=fields.get(error.param or "", error.param)) from error
    if context.on_accepted is not None:
        try:
            context.on_accepted()
        except BaseException:
            abort_all(accepted)
            raise
    return accepted
