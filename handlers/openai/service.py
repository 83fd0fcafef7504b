"""The one HTTP service that both hosts mount: routes, authentication, limits. No web framework."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

from paged_backend import __version__
from paged_backend.errors import InvalidRequestError, NotFoundError
from paged_backend.handlers.openai.bearer import check_bearer
from paged_backend.handlers.openai.chat import create_chat_completion
from paged_backend.handlers.openai.completions import create_completion
from paged_backend.handlers.openai.engine_port import EnginePort
from paged_backend.handlers.openai.errors import ProtocolError, error_response
from paged_backend.handlers.openai.generation import ServingContext
from paged_backend.handlers.openai.tokenization import detokenize, tokenize
from paged_backend.handlers.openai.wire import METRICS_TYPE, HttpRequest, HttpResponse, json_response

__all__ = ["HttpRequest", "HttpResponse", "OpenAIService"]

_BodyRoute = Callable[[ServingContext, Mapping[str, Any]], Awaitable[HttpResponse]]
_POST_ROUTES: Mapping[str, _BodyRoute] = {
    "/v1/completions": create_completion,
    "/v1/chat/completions": create_chat_completion,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}
_MODELS = "/v1/models"
_OPEN_PATHS = ("/health", "/metrics")
"""Probes and scrapers carry no key."""


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
        self._client = client
        self._api_keys = api_keys
        self._context = ServingContext(client, model_names)
        self._max_body_bytes = max_body_bytes
        self._stall_timeout_s = stall_timeout_s
        self._created = int(time.time())
        self._get_routes: Mapping[str, Callable[[], HttpResponse]] = {
            "/health": self._health,
            "/version": self._version,
            "/metrics": self._metrics,
            _MODELS: self._models,
        }

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Answers one request; whatever goes wrong becomes a response.

        Cancelling the call aborts the engine's requests, and so does closing a response's stream.
        """
        try:
            return await self._dispatch(request)
        except Exception as error:
            return error_response(error)

    async def _dispatch(self, request: HttpRequest) -> HttpResponse:
        path = request.path.partition("?")[0]
        path = path.rstrip("/") or "/"
        # A browser's preflight carries no key either, and learns no more than which method a route takes.
        tenant = None
        if path not in _OPEN_PATHS and request.method != "OPTIONS":
            tenant = check_bearer(request.headers.get("authorization", ""), self._api_keys)
        if path in _POST_ROUTES:
            self._check_method(request, "POST")
            context = dataclasses.replace(
                self._context,
                tenant=tenant,
                on_accepted=request.on_accepted,
                trace_headers=request.trace_headers,
            )
            return await _POST_ROUTES[path](context, self._json_object(request))
        if path in self._get_routes:
            self._check_method(request, "GET")
            return self._get_routes[path]()
        if path.startswith(f"{_MODELS}/"):
            self._check_method(request, "GET")
            name = self._context.model_name(unquote(path[len(_MODELS) + 1 :]))
            return json_response(self._model(name))
        raise NotFoundError(f"There is no route {path!r}. Known: {', '.join([*_POST_ROUTES, *self._get_routes])}.")

    def _check_method(self, request: HttpRequest, allowed: str) -> None:
        method = request.method
        if method is None or method == allowed or (method == "HEAD" and allowed == "GET"):
            return
        raise ProtocolError(f"{request.path} takes {allowed}, not {method}.", status=405, headers={"Allow": allowed})

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

    def _health(self) -> HttpResponse:
        self._client.check_health(self._stall_timeout_s)
        return json_response({})

    def _version(self) -> HttpResponse:
        return json_response({"version": __version__})

    def _metrics(self) -> HttpResponse:
        return HttpResponse(200, {"Content-Type": METRICS_TYPE}, self._client.metrics_text().encode())

    def _models(self) -> HttpResponse:
        return json_response({"object": "list", "data": [self._model(name) for name in self._context.model_names]})

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "paged-backend",
            "root": self._context.model_names[0],
            "parent": None,
            "max_model_len": self._client.max_model_len,
        }


def _parse_json(body: bytes | str) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.", param="body") from None
