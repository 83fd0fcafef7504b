"""The one HTTP service that both hosts mount: routes, authentication, limits. No web framework."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from paged_backend.errors import InvalidRequestError, NotFoundError
from paged_backend.handlers.access.gate import ANYBODY, Gate
from paged_backend.handlers.access.limits import RequestLimits
from paged_backend.handlers.openai.access_log import STATUS_CLIENT_LEFT, AccessLog, RequestRecord
from paged_backend.handlers.openai.bearer import check_key
from paged_backend.handlers.openai.errors import ProtocolError, error_response, too_large_message
from paged_backend.handlers.openai.generation import ServingContext
from paged_backend.handlers.openai.protocol.base import parse_body
from paged_backend.handlers.openai.routes import ROUTES, Route, find_route
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.wire import HttpRequest, HttpResponse, decode_body

__all__ = ["HttpRequest", "HttpResponse", "OpenAIService"]


class OpenAIService:
    """Answers requests with the engines of one server. Use it from one event loop."""

    def __init__(
        self,
        models: ServedModels,
        *,
        gate: Gate | None = None,
        request_limits: RequestLimits | None = None,
        max_body_bytes: int = 20_000_000,
        stall_timeout_s: float | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        """Mounts engines.

        Args:
            models: the engines by the names of their models.
            gate: asks for a key as a bearer token, but on /health and /metrics; None lets everybody in. Each key is a
                tenant: what it has asked cannot be timed through the prefix cache by another key.
            request_limits: how large one request may be; None means the defaults.
            max_body_bytes: larger bodies are refused.
            stall_timeout_s: /health fails when an engine has work but makes no step for so long; None never.
            access_log: gets a line for each request, but of /health and /metrics; None for none.
        """
        self._gate = gate or Gate()
        self._request_limits = request_limits or RequestLimits()
        self._access_log = access_log
        self._max_body_bytes = max_body_bytes
        self._context = ServingContext(
            models.all[0].engine,
            models.all[0].names,
            models,
            models.all[0].live,
            self._gate,
            created=int(time.time()),
            stall_timeout_s=stall_timeout_s,
        )

    def metrics_text(self) -> str:
        """Prometheus' text: of all engines, and of the keys' limits."""
        return self._context.metrics_text()

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Answers one request; whatever goes wrong becomes a response.

        Cancelling the call aborts the engine's requests, and so does closing a response's stream.
        """
        path = request.path.partition("?")[0]
        found = find_route(path)
        record = None
        if self._access_log is not None and (found is None or found[0].needs_key):
            record = self._access_log.begin(request.method or (found and found[0].method), path)
        try:
            response = await self._dispatch(request, found, record)
        except asyncio.CancelledError:
            if record is not None:
                record.response_ends(STATUS_CLIENT_LEFT)
            raise
        except Exception as error:
            response = error_response(error, request.path)
        return response if record is None else record.follow(response)

    async def _dispatch(
        self, request: HttpRequest, found: tuple[Route, str | None] | None, record: RequestRecord | None
    ) -> HttpResponse:
        caller = ANYBODY
        # A browser's preflight carries no key, and learns no more than which method a route takes.
        if (found is None or found[0].needs_key) and request.method != "OPTIONS":
            caller = check_key(request.headers, self._gate)
        if record is not None:
            record.caller = caller.name
        if found is None:
            path = request.path.partition("?")[0]
            raise NotFoundError(f"There is no route {path!r}. Known: {', '.join(route.path for route in ROUTES)}.")
        route, name = found
        _check_method(request, route.method)
        context = dataclasses.replace(
            self._context,
            caller=caller,
            record=record,
            on_accepted=request.on_accepted,
            trace_headers=request.trace_headers,
        )
        if route.body is None:
            return await route.answer(context, name)
        body = self._json_object(request)
        if record is not None:
            record.keep_prompt(body)
        # A name that is none of ours is the route's to refuse: a body that is wrong otherwise is told of that first.
        model = context.models.find(body.get("model"))
        if model is not None:
            context = dataclasses.replace(context, engine=model.engine, model_names=model.names, live=model.live)
        return await route.answer(context, parse_body(route.body, body))

    def _json_object(self, request: HttpRequest) -> Mapping[str, Any]:
        """The body as a JSON object, whether the host has parsed it already or not."""
        body = request.body
        if isinstance(body, (bytes, bytearray, memoryview, str)):
            declared = len(body)
        else:
            length = request.headers.get("content-length", "")
            declared = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0
        if declared > self._max_body_bytes:
            raise ProtocolError(too_large_message(self._max_body_bytes), status=413)
        if isinstance(body, (bytes, bytearray, memoryview, str)):
            body = decode_body(body if isinstance(body, str) else bytes(body))
        if body is None:
            raise InvalidRequestError(
                "The body is missing or was sent as a form: send a JSON object with Content-Type: application/json.",
                param="body",
            )
        if not isinstance(body, Mapping):
            raise InvalidRequestError("The body must be a JSON object.", param="body")
        self._request_limits.check_depth(body)
        self._request_limits.check(body)
        return body


def _check_method(request: HttpRequest, allowed: str) -> None:
    method = request.method
    if method is None or method == allowed or (method == "HEAD" and allowed == "GET"):
        return
    raise ProtocolError(f"{request.path} takes {allowed}, not {method}.", status=405, headers={"Allow": allowed})
