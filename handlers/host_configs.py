"""What the servers are told: what both hosts have in common, and what only one of them needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paged_backend.config.checks import check_bool, check_choice, check_range, check_seconds, check_text
from paged_backend.errors import ConfigError
from paged_backend.handlers.access.api_key import ApiKey, keys_from_config
from paged_backend.handlers.access.gate import Gate
from paged_backend.handlers.access.key_ring import KeyRing
from paged_backend.handlers.access.limits import KeyLimits, RequestLimits, key_limits, request_limits

_JAVA_SIZE = re.compile(r"[1-9][0-9]*[kmgKMG]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What both hosts' servers have in common.

    Attributes:
        host: address to bind. Loopback by default: put a reverse proxy with TLS in front for anything else.
        port: TCP port; None means the host's own default (TorchServe 8080, BentoML 3000).
        api_key: clients must send it, or one of them, as `Authorization: Bearer KEY`; none lets everybody in. Each key
            is a tenant of its own: no other key's requests share its prefixes, or its part of the engine under
            engine.scheduling_policy: fair. In a file it may be a single string, a list, a mapping of names to keys, or
            null.
        api_key_file: a file of keys instead, one a line, KEY or NAME:KEY; it is read again when it changes.
        key_limits: what one key's requests may take together, by the key's name; "default" is for all other keys,
            and for all clients together where there are no keys.
        request_limits: how large one request may be.
        max_body_bytes: larger request bodies are refused with 413.
        access_log: log a line for each request, without its prompt.
        log_prompts: put the prompt into it, too.
        log_format: "text", in the host's own form, or "json", a line of JSON for each record.
        log_level: "debug", "info", "warning" or "error": less urgent records are left out; access lines never are.
        drain_timeout_s: seconds that running requests get to end after the server is told to stop.
        stall_timeout_s: seconds without an engine step, while there is work, after which it counts as stuck.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    api_key: tuple[ApiKey, ...] = field(default=(), repr=False)
    api_key_file: str | None = None
    key_limits: Mapping[str, KeyLimits] = field(default_factory=dict, hash=False)
    request_limits: RequestLimits = field(default_factory=RequestLimits)
    max_body_bytes: int = 20_000_000
    access_log: bool = True
    log_prompts: bool = False
    log_format: str = "text"
    log_level: str = "info"
    drain_timeout_s: float = 10.0
    stall_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        check_text("server.host", self.host)
        check_range("server.port", self.port, low=1, high=65535, optional=True)
        # Built, it is () where there is none; what a file says is never so, as that would open the server unseen.
        object.__setattr__(self, "api_key", () if self.api_key == () else keys_from_config(self.api_key))
        if self.api_key_file is not None:
            check_text("server.api_key_file", self.api_key_file)
            if self.api_key:
                raise ConfigError("Give server.api_key or server.api_key_file, not both.")
        object.__setattr__(self, "key_limits", key_limits(self.key_limits))
        object.__setattr__(self, "request_limits", request_limits(self.request_limits))
        check_range("server.max_body_bytes", self.max_body_bytes, low=1)
        check_bool("server.access_log", self.access_log)
        check_bool("server.log_prompts", self.log_prompts)
        if self.log_prompts and not self.access_log:
            raise ConfigError("server.log_prompts puts prompts into the access log: it needs server.access_log: true.")
        check_choice("server.log_format", self.log_format, ("text", "json"))
        check_choice("server.log_level", self.log_level, ("debug", "info", "warning", "error"))
        check_seconds("server.drain_timeout_s", self.drain_timeout_s, above_zero=False)
        check_seconds("server.stall_timeout_s", self.stall_timeout_s)

    @property
    def asks_for_key(self) -> bool:
        """Whether clients need a key."""
        return bool(self.api_key) or self.api_key_file is not None

    def make_gate(self) -> Gate:
        """The gate of a server that is about to start; it reads the file of keys.

        Raises:
            ConfigError: that cannot be used, or there are limits for a key that is not there.
        """
        if not self.asks_for_key:
            return Gate(None, self.key_limits)
        file = None if self.api_key_file is None else Path(self.api_key_file)
        return Gate(KeyRing(self.api_key, file=file), self.key_limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchServeConfig:
    """What only TorchServe needs.

    Attributes:
        management_port, metrics_port: TorchServe's other two ports.
        batch_size: most requests that live at once in the worker; None means what engine.max_num_seqs and
            engine.max_num_queued_reqs let in, so that the engine's own queue answers 429. Those beyond it wait in
            TorchServe's job queue.
        job_queue_size: requests that may wait there; one more is refused with 503.
        startup_timeout_s: seconds that the worker may take to load the model.
        response_timeout_s: seconds that one call of the handler may take (a call, not a stream).
        max_response_bytes: largest reply; TorchServe kills the worker past it.
        java_heap: the JVM's heap bound, such as "512m".
    """

    management_port: int = 8081
    metrics_port: int = 8082
    batch_size: int | None = None
    job_queue_size: int = 100
    startup_timeout_s: int = 600
    response_timeout_s: int = 20
    max_response_bytes: int = 100_000_000
    java_heap: str = "512m"

    def __post_init__(self) -> None:
        check_range("torchserve.management_port", self.management_port, low=1, high=65535)
        check_range("torchserve.metrics_port", self.metrics_port, low=1, high=65535)
        check_range("torchserve.batch_size", self.batch_size, low=1, optional=True)
        check_range("torchserve.job_queue_size", self.job_queue_size, low=1)
        check_range("torchserve.startup_timeout_s", self.startup_timeout_s, low=1)
        check_range("torchserve.response_timeout_s", self.response_timeout_s, low=1)
        check_range("torchserve.max_response_bytes", self.max_response_bytes, low=1)
        if not isinstance(self.java_heap, str) or not _JAVA_SIZE.fullmatch(self.java_heap):
            raise ConfigError(f'torchserve.java_heap must look like "512m" or "2g", got {self.java_heap!r}.')


@dataclass(frozen=True, slots=True, kw_only=True)
class BentoConfig:
    """What only BentoML needs.

    Attributes:
        timeout_s: bound on the time to a response's first byte; BentoML answers 504 past it.
        body_timeout_s: seconds that a client may stay silent before its request's body is whole; then it gets 408, and
            its connection is closed.
        access_log: log a line per request.
        tracing: keep OpenTelemetry on for the API routes; it costs more than the rest of the host's overhead.
    """

    timeout_s: int = 3600
    body_timeout_s: float = 60.0
    access_log: bool = False
    tracing: bool = False

    def __post_init__(self) -> None:
        check_range("bento.timeout_s", self.timeout_s, low=1)
        check_seconds("bento.body_timeout_s", self.body_timeout_s)
        check_bool("bento.access_log", self.access_log)
        check_bool("bento.tracing", self.tracing)
