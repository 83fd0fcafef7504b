"""The TorchServe handler: one engine per worker, behind a pump. `pump` says how the two meet.

TorchServe demands exactly one class in a handler's module, so the helpers here are functions.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paged_backend.errors import ConfigError, PagedBackendError
from paged_backend.handlers.deployment import API_KEY_VARIABLE, Deployment
from paged_backend.handlers.loading import load_engines
from paged_backend.handlers.openai.wire import HttpRequest
from paged_backend.handlers.torchserve import message_reader
from paged_backend.handlers.torchserve.host_context import HostContext
from paged_backend.handlers.torchserve.launch import DRAIN_SIGNAL, STARTUP_ERROR_VARIABLE
from paged_backend.handlers.torchserve.pump import Pump, Reply, Service
from paged_backend.handlers.torchserve.requests import read_request
from paged_backend.handlers.torchserve.vitals import EngineVitals, Vitals

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 256 * 1024
"""Longest piece that is written at once, so that a long reply does not hold up the streams beside it."""

_HOP_HEADERS = frozenset({"content-length", "connection", "transfer-encoding"})


class PagedBackendHandler:
    """What TorchServe creates once per worker, then calls from its one thread.

    Attributes:
        deployment: read from `handler.deployment` of the archive's model-config.yaml.
    """

    deployment: Deployment

    def __init__(self) -> None:
        self._pump: Pump | None = None

    def initialize(self, context: HostContext) -> None:
        """Starts the engine; blocks until it can serve.

        Raises:
            ConfigError, ModelLoadError: with what to change.
        """
        _quieten_host()
        try:
            self.deployment = read_deployment(context.model_yaml_config)
            engine, service = self.start_engine(self.deployment)
        except Exception as error:
            _report_startup_error(error)
            raise
        batch_size = int(context.system_properties["batch_size"] or 1)
        # TorchServe kills a worker whose message is over its bound: all requests of a call share half of it.
        room = self.deployment.torchserve.max_response_bytes // 2 // batch_size
        drain = threading.Event()
        vitals = Vitals(
            engine,
            stall_timeout_s=self.deployment.server.stall_timeout_s,
            num_live=lambda: self._pump.num_live if self._pump else 0,
            is_draining=drain.is_set,
        )
        self._pump = Pump(service, max_reply_bytes=max(1, min(MAX_REPLY_BYTES, room)), on_tick=vitals.tick)
        _drain_on_signal(engine, drain, self.deployment.server.drain_timeout_s)
        logger.warning("%s is ready, at most %d requests at once.", self.deployment.name, batch_size)

    def start_engine(self, deployment: Deployment) -> tuple[EngineVitals, Service]:
        """The engines and the service over them; a test puts scripted ones here."""
        return load_engines(deployment)

    def handle(self, data: Sequence[Mapping[str, Any]], context: HostContext) -> list[bytes]:
        """One call of TorchServe: every live request is in it, and gets at most one reply."""
        assert self._pump is not None, "TorchServe calls initialize first"
        request_ids = context.request_ids
        positions = list(request_ids)

        def read(index: int) -> HttpRequest | None:
            position = positions[index]
            headers = context.get_all_request_header(position)
            if not data[position] and not headers:
                return None
            return read_request(data[position], headers, model_name=self.deployment.model_names[0])

        replies = self._pump.exchange([request_ids[position] for position in positions], read)
        bodies = [b""] * len(data)
        criteria: list[bool | None] = [None] * len(data)
        for position, reply in zip(positions, replies, strict=True):
            if reply is None:
                # TorchServe writes for the ids that are left here, and hands the others over again unchanged.
                del request_ids[position]
                continue
            bodies[position] = reply.body
            criteria[position] = None if reply.more is None else not reply.more
            _write_head(context, position, reply)
        context.stopping_criteria = [_constant(criterion) for criterion in criteria]
        return bodies


def read_deployment(model_config: Mapping[str, Any] | None) -> Deployment:
    """The deployment in an archive's model-config.yaml.

    Raises:
        ConfigError: it is missing or wrong, or its API key is neither there nor in the environment; or this is one of
            several workers that answer the same requests.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "TorchServe has started this worker through torchrun, once for each GPU, and each would load the whole "
            "model: leave parallelType, parallelLevel and torchrun out of model-config.yaml, and give "
            "tensor_parallel_size in the deployment."
        )
    section = (model_config or {}).get("handler")
    if not isinstance(section, Mapping) or not isinstance(section.get("deployment"), Mapping):
        raise ConfigError(
            "model-config.yaml has no `handler.deployment` section: make the file with `paged-backend pack`, and "
            "give it to torch-model-archiver as --config-file."
        )
    if section.get("needs_api_key") and API_KEY_VARIABLE not in os.environ:
        # Keys are not written into archives. Serving without one would open the server to everybody.
        raise ConfigError(f"This archive was packed with an API key: set {API_KEY_VARIABLE} where TorchServe starts.")
    return Deployment.from_dict(section["deployment"])


def _constant(value: bool | None) -> Any:
    return lambda _: value


def _write_head(context: HostContext, position: int, reply: Reply) -> None:
    if reply.status is None:
        return
    context.set_response_status(reply.status, "", position)
    for name, value in reply.headers.items():
        if name.lower() not in _HOP_HEADERS:
            # TorchServe looks its content type up under the lower-cased name.
            context.set_response_header(position, name.lower(), value)


def _quieten_host() -> None:
    """Keeps what TorchServe would do for every call of the handler out of the way.

    It logs a line or more per call, which Java parses; it decodes bodies, which is the service's work; and it reads
    field by field.
    """
    message_reader.install()
    logging.getLogger().setLevel(logging.WARNING)
    os.environ["TS_DECODE_INPUT_REQUEST"] = "false"


def _report_startup_error(error: Exception) -> None:
    """One line for people, before the traceback that TorchServe prints on each of its retries."""
    reason = str(error) if isinstance(error, PagedBackendError) else f"{type(error).__name__}: {error}"
    logger.error("paged-backend cannot start: %s", reason)
    path = os.environ.get(STARTUP_ERROR_VARIABLE)
    if path:
        Path(path).write_text(reason, encoding="utf-8")


def _drain_on_signal(engine: Any, drain: threading.Event, timeout_s: float) -> None:
    def stop_engine() -> None:
        if not engine.drain(timeout_s):
            logger.warning("Requests still ran after %g s of draining: they end with an error.", timeout_s)
        # What is left ends with an error that reaches its client; it would be cut off when TorchServe stops.
        engine.shutdown()

    def start_draining(*_: object) -> None:
        if not drain.is_set():
            drain.set()
            threading.Thread(target=stop_engine, name="drain", daemon=True).start()

    if threading.current_thread() is threading.main_thread():
        signal.signal(DRAIN_SIGNAL, start_draining)
