"""/health, /version and /metrics: for whoever watches the server."""

from __future__ import annotations

from paged_backend import __version__
from paged_backend.handlers.openai.generation import ServingContext
from paged_backend.handlers.openai.wire import METRICS_TYPE, HttpResponse, json_response


async def health(context: ServingContext, _: None) -> HttpResponse:
    """An empty object while the engine serves.

    Raises:
        EngineUnavailableError: it starts, drains, is dead or stuck.
    """
    context.engine.check_health(context.stall_timeout_s)
    return json_response({})


async def version(_: ServingContext, __: None) -> HttpResponse:
    """This package's version."""
    return json_response({"version": __version__})


async def metrics(context: ServingContext, _: None) -> HttpResponse:
    """Prometheus' text, under vLLM's names."""
    return HttpResponse(200, {"Content-Type": METRICS_TYPE}, context.engine.metrics_text().encode())
