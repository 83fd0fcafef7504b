"""/health, /version and /metrics: for whoever watches the server."""

from __future__ import annotations

from paged_backend import __version__
from paged_backend.handlers.openai.generation import ServingContext
from paged_backend.handlers.openai.wire import METRICS_TYPE, HttpResponse, json_response


async def health(context: ServingContext, _: None) -> HttpResponse:
    """An empty object while all engines serve.

    Raises:
        EngineUnavailableError: one starts, drains, is dead or stuck; of several, it says whose model's.
    """
    context.models.check_health(context.stall_timeout_s)
    return json_response({})


async def version(_: ServingContext, __: None) -> HttpResponse:
    """This package's version."""
    return json_response({"version": __version__})


async def metrics(context: ServingContext, _: None) -> HttpResponse:
    """Prometheus' text, under vLLM's names."""
    return HttpResponse(200, {"Content-Type": METRICS_TYPE}, context.metrics_text().encode())
