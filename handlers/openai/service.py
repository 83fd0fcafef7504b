"""The one HTTP service that both hosts mount: routes, authentication, limits. No web framework."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

from paged_backend.errors import InvalidRequestError, NotFoundError
from paged_backend.handlers.openai.bearer import check_bearer
from paged_backend.handlers.openai.engine_port import EnginePort
from paged_backend.handlers.openai.errors import ProtocolError, error_response
from paged_backend.handlers.openai.generation import ServingContext
from paged_backend.handlers.openai.protocol.base import parse_body
from paged_backend.handlers.openai.routes import ROUTES, find_route
from paged_backend.handlers.openai.wire import HttpRequest, HttpResponse

__all__ = ["HttpRequest", "HttpResponse", "OpenAIService"]


class OpenAIService:
    """Answers requests with one engine. Use it from one event loop."""

    def __init__(
        self,
        client: EnginePort,
        *,
        model_names: tuple[str, ...],
        api_keys: tuple[str, ...] = (),
        max_body_bytes: int = 20_000_000,
        stall_timeout_s: float | None = None,
    ) -> None:
        """Mounts an engine.

        Args:
            client: the engine; `engine.client.EngineClient`, or whatever looks like it.
            model_names: names that requests may use, the first being the default.
            api_keys: one of them must come as a bearer token, but to /health and /metrics; none lets everybody in.
                Each key is a tenant: what it has asked cannot be timed through the prefix cache by another key.
            max_body_bytes: larger bodies are refused.
            stall_timeout_s: /health fails when the engine has work but makes no step for so long; None never.
        """
        assert model_names, "a service needs a model name"
        self._api_keys = api_keys
        self._max_body_bytes = max_body_bytes
        self._context = ServingContext(
            client,
            model_names,
            created=int(time.time()),
            stall_timeout_s=stall_timeout_s,
            needs_key=bool(api_keys),
        )

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Answers one request; whatever goes wrong becomes a response.

        Cancelling the call aborts the engine's requests, and so does closing a response's stream.
        """
        try:
            return await self._dispatch(request)
        except Exception as error:
            return error_response(error, request.path)

    async def _dispatch(self, request: HttpRequest) -> HttpResponse:
        path = request.path.partition("?")[0]
        found = find_route(path)
        tenant = None
        # A browser's preflight carries no key, and learns no more than which method a route takes.
        if (found is None or found[0].needs_key) and request.method != "OPTIONS":
            tenant = check_bearer(_authorization(request.headers), self._api_keys)
        if found is None:
            raise NotFoundError(f"There is no route {path!r}. Known: {', '.join(route.path for route in ROUTES)}.")
        route, name = found
        _check_method(request, route.method)
        context = dataclasses.replace(self._context, tenant=tenant, on_accepted=request.on_accepted)
        if route.body is None:
            return await route.answer(context, name)
        return await route.answer(context, parse_body(route.body, self._json_object(request)))

    def _json_object(self, request: HttpRequest) -> Mapping[str, Any]:
        """The body as a JSON object, whether the host has parsed it already or not."""
        body = request.body
        if isinstance(body, (bytes, bytearray, memoryview, str)):
            declared = len(body)
        else:
            length = request.headers.get("content-length", "")
            declared = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
        if declared > self._max_body_bytes:
            raise ProtocolError(
                f"The body has {declared} bytes, more than the {self._max_body_bytes} that are allowed.",
                status=413,
            )
        if isinstance(body, (bytes, bytearray, memoryview, str)):
            body = _parse_json(body if isinstance(body, str) else bytes(body))
        if body is None:
            raise InvalidRequestError(
                "The body is missing or was sent as a form: send a JSON object with Content-Type: application/json.",
                param="body",
            )
        if not isinstance(body, Mapping):
            raise InvalidRequestError("The body must be a JSON object.", param="body")
        return body


def _authorization(headers: Mapping[str, str]) -> str:
    """The Authorization header, or what it would be for a key that comes as Anthropic's clients send it."""
    key = headers.get("x-api-key")
    return headers.get("authorization") or ("" if key is None else f"Bearer {key}")


def _check_method(request: HttpRequest, allowed: str) -> None:
    method = request.method
    if method is None or method == allowed or (method == "HEAD" and allowed == "GET"):
        return
    raise ProtocolError(f"{request.path} takes {allowed}, not {method}.", status=405, headers={"Allow": allowed})


def _parse_json(body: bytes | str) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.", param="body") from None
