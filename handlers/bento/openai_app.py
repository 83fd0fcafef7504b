"""The routes that BentoML does not know: /v1 and the rest of the OpenAI service, as an ASGI application."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from paged_backend.errors import EngineUnavailableError
from paged_backend.handlers.bento.responses import send_response
from paged_backend.handlers.bento.runtime import EngineRuntime
from paged_backend.handlers.openai.errors import error_response
from paged_backend.handlers.openai.routes import ROUTES
from paged_backend.handlers.openai.wire import HttpRequest

_ROOT_PATHS = tuple(route.path for route in ROUTES if not route.path.startswith("/v1/"))


def owns_path(path: str) -> bool:
    """Whether a path is one of these routes; an unknown /v1/x is, and gets a 404 in the common shape."""
    return path == "/v1" or path.startswith("/v1/") or path in _ROOT_PATHS


def openai_app(runtime: Callable[[], EngineRuntime]) -> Starlette:
    """The application to mount at the root.

    BentoML's own routes come before it: its /metrics carries the engine's metrics too, and the one here serves only
    where BentoML's is switched off.

    Args:
        runtime: gives this process's runtime, when the first request is there.
    """
    # A class-free object as endpoint: Starlette then passes every method, and the service answers 405 by itself.
    endpoint = _Endpoint(runtime)
    paths = ("/v1", "/v1/{path:path}", *_ROOT_PATHS)
    return Starlette(routes=[Route(path, endpoint, include_in_schema=False) for path in paths])


class _Endpoint:
    """Translates ASGI to the OpenAI service and back. The edge middleware has read the body and watches the client."""

    def __init__(self, runtime: Callable[[], EngineRuntime]) -> None:
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        runtime = self._runtime()
        path = scope["path"]
        try:
            service = runtime.openai
            if path == "/health":
                runtime.check_ready()
        except EngineUnavailableError as error:
            await send_response(send, error_response(error, path))
            return
        request = HttpRequest(
            path=path,
            method=scope["method"],
            headers={name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]},
            body=message.get("body", b""),
        )
        await send_response(send, await service.handle(request))
