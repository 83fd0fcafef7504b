"""The one HTTP service that both hosts mount: routes, authentication, limits. No web framework."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

from paged_backend import __version__
from paged_backend.errors import InvalidRequestError, NotFoundError
from paged_backend.handlers.access.gate import ANYBODY, Gate
from paged_backend.handlers.access.limits import RequestLimits
from paged_backend.handlers.openai.access_log import STATUS_CLIENT_LEFT, AccessLog, RequestRecord
from paged_backend.handlers.openai.bearer import check_bearer
from paged_backend.handlers.openai.chat import create_chat_completion
from paged_backend.handlers.openai.completions import create_completion
from paged_backend.handlers.openai.errors import ProtocolError, error_response
from paged_backend.handlers.openai.generation import ServingContext, unknown_model
from paged_backend.handlers.openai.served_models import ServedModel, ServedModels
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
        self._models = models
        self._gate = gate or Gate()
        self._request_limits = request_limits or RequestLimits()
        self._access_log = access_log
        self._max_body_bytes = max_body_bytes
        self._stall_timeout_s = stall_timeout_s
        self._created = int(time.time())
        self._get_routes: Mapping[str, Callable[[], HttpResponse]] = {
            "/health": self._health,
            "/version": self._version,
            "/metrics": self._metrics,
            _MODELS: self._list_models,
        }

    async def handle(self, request: HttpRequest) -> HttpResponse:
        """Answers one request; whatever goes wrong becomes a response.

        Cancelling the call aborts the engine's requests, and so does closing a response's stream.
        """
        path = request.path.partition("?")[0]
        path = path.rstrip("/") or "/"
        record = None
        if self._access_log is not None and path not in _OPEN_PATHS:
            record = self._access_log.begin(request.method, path)
        try:
            response = await self._dispatch(request, path, record)
        except asyncio.CancelledError:
            if record is not None:
                record.response_ends(STATUS_CLIENT_LEFT)
            raise
        except Exception as error:
            response = error_response(error)
        return response if record is None else record.follow(response)

    async def _dispatch(self, request: HttpRequest, path: str, record: RequestRecord | None) -> HttpResponse:
        caller = ANYBODY
        # A browser's preflight carries no key either, and learns no more than which method a route takes.
        if path not in _OPEN_PATHS and request.method != "OPTIONS":
            caller = check_bearer(request.headers.get("authorization", ""), self._gate)
        if record is not None:
            record.caller = caller.name
        if path in _POST_ROUTES:
            self._check_method(request, "POST")
            body = self._json_object(request)
            if record is not None:
                record.keep_prompt(body)
            # A name that is none of ours is the route's to refuse: a body that is wrong otherwise is told of that.
            model = self._models.find(body.get("model")) or self._models.all[0]
            context = ServingContext(model.engine, model.names, caller, record, request.on_accepted)
            return await _POST_ROUTES[path](context, body)
        if path in self._get_routes:
            self._check_method(request, "GET")
            return self._get_routes[path]()
        if path.startswith(f"{_MODELS}/"):
            self._check_method(request, "GET")
            name = unquote(path[len(_MODELS) + 1 :])
            found = self._models.find(name)
            if found is None:
                raise unknown_model(name)
            return json_response(self._model(found, name))
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
        self._request_limits.check_depth(body)
        self._request_limits.check(body)
        return body

    def _health(self) -> HttpResponse:
        self._models.check_health(self._stall_timeout_s)
        return json_response({})

    def _version(self) -> HttpResponse:
        return json_response({"version": __version__})

    def _metrics(self) -> HttpResponse:
        return HttpResponse(200, {"Content-Type": METRICS_TYPE}, self._models.metrics_text().encode())

    def _list_models(self) -> HttpResponse:
        models = [self._model(model, name) for model in self._models.all for name in model.names]
        return json_response({"object": "list", "data": models})

    def _model(self, model: ServedModel, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "paged-backend",
            "root": model.names[0],
            "parent": None,
            "max_model_len": model.engine.max_model_len,
        }


def _parse_json(body: bytes | str) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.", param="body") from None
