"""The BentoML service: `bentoml serve paged_backend.handlers.bento.service:PagedLLM`."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncGenerator
from typing import Any

import bentoml
from pydantic import ValidationError
from starlette.responses import Response

from paged_backend.errors import EngineUnavailableError, PagedBackendError
from paged_backend.handlers.access.gate import Gate
from paged_backend.handlers.bento import native, process
from paged_backend.handlers.bento.edge import CURRENT_EXCHANGE, EdgeMiddleware, Exchange
from paged_backend.handlers.bento.native_types import (
    AbortRequest,
    AbortResponse,
    GenerateRequest,
    GenerateResponse,
    as_invalid_request,
)
from paged_backend.handlers.bento.openai_app import openai_app, owns_path
from paged_backend.handlers.bento.runtime import EngineRuntime
from paged_backend.handlers.bento.settings import load_deployment
from paged_backend.handlers.loading import load_engines, make_access_log
from paged_backend.handlers.openai.engine_port import StreamPort

_METRIC_OF_OURS = re.compile(r"(# (HELP|TYPE) )?vllm:")

NATIVE_PATHS = frozenset({"/generate", "/generate_stream", "/abort"})

# Read once, when `bentoml serve` imports this module: a wrong file ends it at once, with the reason.
DEPLOYMENT = load_deployment()
GATE = DEPLOYMENT.server.make_gate()
ACCESS_LOG = make_access_log(DEPLOYMENT)


def _runtime() -> EngineRuntime:
    runtime: EngineRuntime = bentoml.get_current_service().runtime
    return runtime


def _native_gate() -> Gate:
    # Behind `depends` only the other services of the same server reach the socket.
    return GATE if process.is_entry_service() else Gate()


def _refused(error: PagedBackendError, exchange: Exchange | None) -> Response:
    """Has the middleware send the error: BentoML would log it as a crash, and hide its message.

    Raises:
        PagedBackendError: an in-process caller gets the error itself.
    """
    if exchange is None:
        raise error
    exchange.refuse(error)
    return Response(status_code=500)


def _owns(path: str) -> bool:
    return path in NATIVE_PATHS or owns_path(path)


@bentoml.service(
    name="paged_llm",
    resources={"gpu": DEPLOYMENT.num_gpus} if DEPLOYMENT.num_gpus else {},  # it sees no others
    workers=1,  # every worker would hold an engine of its own; one engine batches all requests
    traffic={"timeout": DEPLOYMENT.bento.timeout_s},
    # The client behind `depends` closes its session, open streams included, every 100 requests or 300 s.
    runner_connection={"max_requests": 1_000_000_000, "max_age": 1e9},
    tracing={} if DEPLOYMENT.bento.tracing else {"excluded_urls": "v1/,generate,abort,tokenize"},
    logging={
        "access": {
            "enabled": DEPLOYMENT.bento.access_log,
            "request_content_length": True,
            "request_content_type": True,
            "response_content_length": True,
            "response_content_type": True,
            "skip_paths": ["/metrics", "/healthz", "/livez", "/readyz"],
            "format": {"trace_id": "032x", "span_id": "016x"},
        }
    },
    labels={"openai_endpoint": "/v1"},
)
@bentoml.asgi_app(openai_app(_runtime), path="/")
class PagedLLM:
    """A language model over a paged KV cache with continuous batching.

    The OpenAI API is at /v1 (and is not listed here); below is the native one.
    """

    def __init__(self) -> None:
        self.runtime = EngineRuntime(
            DEPLOYMENT,
            load=functools.partial(load_engines, gate=GATE, access_log=ACCESS_LOG),
            on_load_failed=process.end_server,
            on_engine_lost=process.end_worker,
        )
        self._orphan_watch: asyncio.Task[None] | None = None

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start_engine(self) -> None:
        """Begins to load and returns: /livez answers at once, /readyz when the engine is ready."""
        self.runtime.start()
        process.watch_signals(self.runtime.begin_stop, drain_timeout_s=self.runtime.deployment.server.drain_timeout_s)
        self._orphan_watch = asyncio.ensure_future(process.watch_supervisor())

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop_engine(self) -> None:
        """Drains and stops the engine."""
        if self._orphan_watch is not None:
            self._orphan_watch.cancel()
        await self.runtime.stop()

    async def __is_ready__(self) -> bool:
        try:
            self.runtime.check_ready()
        except EngineUnavailableError:
            return False
        return True

    async def __is_alive__(self) -> bool:
        # A failed engine stays failed: whoever watches /livez does right to restart the process.
        return not self.runtime.failed

    async def __metrics__(self, text: str) -> str:
        # BentoML runs prometheus_client in its multi-process mode, which repeats the engine's metrics with a `pid`
        # label, and keeps those of workers that died: only the live engine tells its own.
        bento = "".join(line for line in text.splitlines(keepends=True) if not _METRIC_OF_OURS.match(line))
        try:
            return bento + self.runtime.openai.metrics_text()
        except EngineUnavailableError:
            return bento

    async def ensure_started(self) -> None:
        """Starts the engine where BentoML runs no startup hooks (`--development` with `depends`), and waits for it."""
        await self.runtime.ensure_started()

    @bentoml.api(input_spec=GenerateRequest, output_spec=GenerateResponse)  # type: ignore[untyped-decorator]
    async def generate(self, **fields: Any) -> GenerateResponse:
        """Generates, and answers when everything is there.

        An error is `{"error": {"message", "type", "param", "code"}}` with its HTTP status.
        """
        exchange = CURRENT_EXCHANGE.get()
        try:
            return await native.collect(await self._submit(fields, exchange))
        except PagedBackendError as error:
            return _refused(error, exchange)  # type: ignore[return-value]

    @bentoml.api(input_spec=GenerateRequest)  # type: ignore[untyped-decorator]
    async def generate_stream(self, **fields: Any) -> AsyncGenerator[str, None]:
        """Generates, and sends server-sent events as tokens come.

        Frames are `data: {"request_id", "outputs": [{"index", "text", "token_ids", "finish_reason", "stop_reason"}],
        "finished", "num_prompt_tokens", "num_cached_tokens"}` with what is new since the last one; the last is
        `data: [DONE]`. A fault on the way is a frame `data: {"error": ...}` before it.
        """
        exchange = CURRENT_EXCHANGE.get()
        try:
            stream = await self._submit(fields, exchange, streams=True)
        except PagedBackendError as error:
            _refused(error, exchange)
            yield ""  # in its place the middleware sends the error
            return
        if exchange is not None:
            exchange.on_client_left(stream.abort)
        try:
            yield native.PING
            async for frame in native.frames(stream, None if exchange is None else exchange.record):
                yield frame
        finally:
            stream.abort()

    @bentoml.api(input_spec=AbortRequest, output_spec=AbortResponse)  # type: ignore[untyped-decorator]
    async def abort(self, request_id: str, model: str | None = None) -> AbortResponse:
        """Ends a request of the same API key; its stream closes with finish_reason "abort".

        Where several models have one of that id, `model` says whose is meant.

        For callers through `bentoml.depends`, whose clients' leaving does not travel here by itself.
        """
        exchange = CURRENT_EXCHANGE.get()
        tenant = None if exchange is None else exchange.caller.tenant
        try:
            if exchange is not None:
                exchange.check()
            models = self.runtime.engines.models
            models.cancel(tenant, [request_id], model=None if model is None else models.named(model))
        except EngineUnavailableError:
            pass  # no engine, no request
        except PagedBackendError as error:
            return _refused(error, exchange)  # type: ignore[return-value]
        return AbortResponse(request_id=request_id)

    async def _submit(self, fields: dict[str, Any], exchange: Exchange | None, *, streams: bool = False) -> StreamPort:
        if exchange is None:
            # An in-process caller: nothing has checked its arguments, and maybe nothing has started the engine.
            await self.ensure_started()
            try:
                request = GenerateRequest(**fields)
            except ValidationError as error:
                raise as_invalid_request(error, GenerateRequest) from None
        else:
            exchange.check()
            request = GenerateRequest.model_construct(**fields)
        DEPLOYMENT.server.request_limits.check_depth(fields)
        DEPLOYMENT.server.request_limits.check(fields)
        model = self.runtime.engines.models.named(request.model)
        return await native.submit(model, request, exchange or Exchange(), streams=streams)


_service: Any = PagedLLM  # for type checkers, the decorator has left it a class
_service.add_asgi_middleware(
    EdgeMiddleware,
    owns=_owns,
    native=NATIVE_PATHS,
    max_body_bytes=DEPLOYMENT.server.max_body_bytes,
    body_timeout_s=DEPLOYMENT.bento.body_timeout_s,
    gate=_native_gate,
    access_log=ACCESS_LOG,
    json_only=process.is_entry_service,
)
