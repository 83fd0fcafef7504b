"""The one table of routes: what is dispatched, and what /openapi.json tells, come from it."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from paged_backend.handlers.openai import (
    anthropic,
    cancellation,
    chat,
    completions,
    models,
    probes,
    responses,
    tokenization,
)
from paged_backend.handlers.openai.generation import ServingContext
from paged_backend.handlers.openai.openapi import openapi_document
from paged_backend.handlers.openai.protocol import replies
from paged_backend.handlers.openai.protocol.anthropic import (
    AnthropicError,
    CountTokensRequest,
    Message,
    MessagesRequest,
    TokenCount,
)
from paged_backend.handlers.openai.protocol.base import RequestBody
from paged_backend.handlers.openai.protocol.cancellation import CancelReply, CancelRequest
from paged_backend.handlers.openai.protocol.chat import ChatRequest
from paged_backend.handlers.openai.protocol.completions import CompletionRequest
from paged_backend.handlers.openai.protocol.responses import Response, ResponsesRequest
from paged_backend.handlers.openai.protocol.tokenization import DetokenizeRequest, TokenizeRequest
from paged_backend.handlers.openai.wire import METRICS_TYPE, HttpResponse, json_response

_CHUNKS = {
    "type": "object",
    "description": "Each server-sent event of a stream, which stream: true asks for.",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "A chunk as JSON, an error, or at last [DONE]."}},
}
_EVENTS = {
    "type": "object",
    "description": "Each server-sent event of a stream, which stream: true asks for.",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string"},
        "data": {
            "type": "string",
            "description": "JSON, whose type is the event's name.",
            "contentMediaType": "application/json",
            "contentSchema": {
                "type": "object",
                "required": ["type"],
                "properties": {"type": {"type": "string"}},
            },
        },
    },
}


@dataclass(frozen=True, slots=True)
class Route:
    """One path with its method.

    Attributes:
        path: a name in braces, which only the end may be, stands for the rest of the path.
        answer: called with the context and the parsed body; or with what the path's name stands for; or with None.
            The first line of its docstring says what the route is for.
        reply: a type that describes the JSON of status 200; a media type where it is none.
        body: what a POST takes.
        stream: a JSON schema of each event of its stream; None where it has none.
        refusals: statuses that it may have beside 200, 401, 500 and 503.
        error: a type that describes the JSON of every other status.
        needs_key: False lets everybody in: probes and scrapers carry no key.
    """

    method: Literal["GET", "POST"]
    path: str
    answer: Callable[[ServingContext, Any], Awaitable[HttpResponse]]
    reply: Any
    body: type[RequestBody] | None = None
    stream: Mapping[str, Any] | None = None
    refusals: tuple[int, ...] = ()
    error: Any = replies.Error
    needs_key: bool = True

    @property
    def name(self) -> str:
        """The operation's name, unique in the table."""
        return self.answer.__name__


async def openapi(context: ServingContext, _: None) -> HttpResponse:
    """This document."""
    return json_response(_document(context.gate.asks_for_key))


@functools.cache
def _document(needs_key: bool) -> dict[str, Any]:
    return openapi_document(ROUTES, needs_key=needs_key)


_BODY = (400, 408, 413)
_MODEL = (*_BODY, 404)
_GENERATES = (*_MODEL, 429)

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/completions",
        completions.create_completion,
        replies.Completion,
        CompletionRequest,
        stream=_CHUNKS,
        refusals=_GENERATES,
    ),
    Route(
        "POST",
        "/v1/chat/completions",
        chat.create_chat_completion,
        replies.ChatCompletion,
        ChatRequest,
        stream=_CHUNKS,
        refusals=_GENERATES,
    ),
    Route(
        "POST",
        "/v1/responses",
        responses.create_response,
        Response,
        ResponsesRequest,
        stream=_EVENTS,
        refusals=_GENERATES,
    ),
    Route(
        "POST",
        "/v1/messages",
        anthropic.create_message,
        Message,
        MessagesRequest,
        stream=_EVENTS,
        refusals=_GENERATES,
        error=AnthropicError,
    ),
    Route(
        "POST",
        "/v1/messages/count_tokens",
        anthropic.count_message_tokens,
        TokenCount,
        CountTokensRequest,
        refusals=_MODEL,
        error=AnthropicError,
    ),
    Route("POST", "/v1/cancel", cancellation.cancel, CancelReply, CancelRequest, refusals=_MODEL),
    Route("POST", "/tokenize", tokenization.tokenize, replies.Tokenized, TokenizeRequest, refusals=_MODEL),
    Route("POST", "/detokenize", tokenization.detokenize, replies.Detokenized, DetokenizeRequest, refusals=_MODEL),
    Route("GET", "/v1/models", models.list_models, replies.ModelList),
    Route("GET", "/v1/models/{model}", models.show_model, replies.Model, refusals=(404,)),
    Route("GET", "/health", probes.health, replies.Health, needs_key=False),
    Route("GET", "/version", probes.version, replies.Version),
    Route("GET", "/metrics", probes.metrics, METRICS_TYPE, needs_key=False),
    Route("GET", "/openapi.json", openapi, replies.OpenAPIDocument),
)

_BY_PATH = {route.path: route for route in ROUTES if "{" not in route.path}
_BY_PREFIX = {route.path.partition("{")[0]: route for route in ROUTES if "{" in route.path}


def find_route(path: str) -> tuple[Route, str | None] | None:
    """The route of a path, and what stands in it for the name in braces; None where there is none."""
    path = path.rstrip("/") or "/"
    if path in _BY_PATH:
        return _BY_PATH[path], None
    for prefix, route in _BY_PREFIX.items():
        if path.startswith(prefix):
            return route, unquote(path[len(prefix) :])
    return None
