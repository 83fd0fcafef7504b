"""Derives every file that TorchServe reads from one deployment; the numbers in them were measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import yaml

from paged_backend.errors import ConfigError
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.launching import origin

DEFAULT_PORT = 8080

UNBOUNDED_QUEUE = 1024
"""Requests that may wait in the worker where the engine's queue has no bound: TorchServe wants a number."""

SPARE_REQUESTS = 8
"""Room for /health and /metrics beside a full engine."""

MODEL_CONFIG_FILE = "model-config.yaml"


@dataclass(frozen=True, slots=True)
class HostFiles:
    """Where the files of one server lie."""

    config_properties: Path
    log_config: Path
    metrics_config: Path


def inference_port(deployment: Deployment) -> int:
    """The port of the deployment's routes."""
    return deployment.server.port or DEFAULT_PORT


def inference_host(deployment: Deployment) -> str:
    """The address that the routes are bound to.

    Raises:
        ConfigError: an IPv6 address.
    """
    host = deployment.server.host
    if ":" in host:
        # Its parser of addresses takes the first colon for the one before the port.
        raise ConfigError(
            f"server.host must be an IPv4 address or a host name on TorchServe, which cannot listen on {host!r}: "
            "give 127.0.0.1 or 0.0.0.0, or serve on BentoML."
        )
    return host


def base_url(deployment: Deployment) -> str:
    """Where the routes are mounted: append `/v1/...`, `/health`, `/metrics`."""
    return (
        f"{origin(inference_host(deployment), inference_port(deployment))}"
        f"/predictions/{deployment.name}/{deployment.version}"
    )


def management_url(deployment: Deployment) -> str:
    """TorchServe's management API, always on loopback."""
    return f"http://127.0.0.1:{deployment.torchserve.management_port}"


def batch_size(deployment: Deployment) -> int:
    """Most requests that live in the worker at once.

    All that the engines run and queue, so that their own queues (with priorities, and 429 where it is full) do
    the queueing; TorchServe's job queue is only what spills over.
    """
    if deployment.torchserve.batch_size is not None:
        return deployment.torchserve.batch_size
    total = SPARE_REQUESTS
    for engine in deployment.engines:
        queued = engine.scheduler.max_num_queued_reqs
        total += engine.scheduler.max_num_seqs + (UNBOUNDED_QUEUE if queued is None else queued)
    return total


def model_config(deployment: Deployment) -> dict[str, Any]:
    """The content of model-config.yaml. It holds no API key: archives are copied around."""
    return {
        "minWorkers": 1,
        "maxWorkers": 1,  # continuous batching stalls with two: replicas are models of other names
        "batchSize": batch_size(deployment),
        "maxBatchDelay": 1,
        "responseTimeout": deployment.torchserve.response_timeout_s,
        "startupTimeout": deployment.torchserve.startup_timeout_s,
        "jobQueueSize": deployment.torchserve.job_queue_size,
        "deviceType": _DEVICE_TYPE,
        "continuousBatching": True,
        "handler": {
            "deployment": deployment.to_dict(with_api_key=False),
            "needs_api_key": bool(deployment.server.api_key),
        },
    }


_DEVICE_TYPE = "cpu"
"""TorchServe does nothing about GPUs, so that the worker sees all that TorchServe itself does, and takes the first, or
as many as tensor_parallel_size says: it starts the other ranks itself.

`parallelLevel: N`, which would show it N of them, has the front end connect to N workers. Where parallelType is
"custom" it starts one, and fails for ever without a word of why (0.12.0, seen with continuousBatching); with the other
types torchrun starts N, and each would load the whole model and answer requests.
"""


def config_properties(
    deployment: Deployment,
    *,
    model_store: Path,
    metrics_config: Path,
    grpc_ports: tuple[int, int] | None = None,
    java_version: int | None = None,
) -> str:
    """The content of config.properties.

    Args:
        grpc_ports: inference and management; None leaves TorchServe's own (7070, 7071).
        java_version: silences what later Javas complain about; None for a file that any Java takes.

    Raises:
        ConfigError: two of the ports are the same, or the host is an IPv6 address.
    """
    torchserve = deployment.torchserve
    ports = [inference_port(deployment), torchserve.management_port, torchserve.metrics_port]
    if len(set(ports)) != len(ports):
        raise ConfigError(
            f"server.port, torchserve.management_port and torchserve.metrics_port must differ, got {ports}."
        )
    lines = [
        f"inference_address=http://{inference_host(deployment)}:{ports[0]}",
        f"management_address=http://127.0.0.1:{ports[1]}",
        f"metrics_address=http://127.0.0.1:{ports[2]}",
        "metrics_mode=prometheus",
        f"metrics_config={metrics_config.resolve()}",
        "disable_system_metrics=true",
        "enable_envvars_config=false",
        f"allowed_urls=file://{model_store.resolve()}/.*",
        "decode_input_request=false",
        # TorchServe's 413 has no body. Half as much again, and the service's own says what the bound is.
        f"max_request_size={deployment.server.max_body_bytes + deployment.server.max_body_bytes // 2}",
        f"max_response_size={torchserve.max_response_bytes}",
        f"vmargs={' '.join([f'-Xmx{torchserve.java_heap}', *_LIGHT_JAVA, *_java_options(java_version)])}",
    ]
    if grpc_ports is not None:
        lines += [f"grpc_inference_port={grpc_ports[0]}", f"grpc_management_port={grpc_ports[1]}"]
    return "\n".join(lines) + "\n"


def write_model_config(deployment: Deployment, folder: Path) -> Path:
    """Writes model-config.yaml, for torch-model-archiver's --config-file."""
    path = folder / MODEL_CONFIG_FILE
    path.write_text(
        "# Derived from the deployment's YAML file by paged-backend: change that one.\n"
        + yaml.safe_dump(model_config(deployment), sort_keys=False),
        encoding="utf-8",
    )
    return path


def write_host_files(
    deployment: Deployment,
    folder: Path,
    *,
    model_store: Path,
    grpc_ports: tuple[int, int] | None = None,
    java_version: int | None = None,
) -> HostFiles:
    """Writes config.properties, log4j2.xml and metrics.yaml into a folder that exists."""
    files = HostFiles(
        config_properties=(folder / "config.properties").resolve(),
        log_config=(folder / "log4j2.xml").resolve(),
        metrics_config=(folder / "metrics.yaml").resolve(),
    )
    files.config_properties.write_text(
        config_properties(
            deployment,
            model_store=model_store,
            metrics_config=files.metrics_config,
            grpc_ports=grpc_ports,
            java_version=java_version,
        ),
        encoding="utf-8",
    )
    as_json = deployment.server.log_format == "json"
    files.log_config.write_text(log_config(as_json=as_json), encoding="utf-8")
    files.metrics_config.write_text(yaml.safe_dump(METRICS, sort_keys=False), encoding="utf-8")
    return files


_LIGHT_JAVA = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Java passes bytes on beside an engine that wants every core: its optimising compiler and its collector's threads take
more than they ever give back (355 us of processor time a streamed token with them, 155 us without)."""


def _java_options(version: int | None) -> list[str]:
    """TorchServe's Netty uses what Java 24 and later warn about on every start."""
    if version is None or version < 24:
        return []
    return ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]


_JSON_LINE = (
    """{"level": "%p", "logger": "%c", "message": "%enc{%m%notEmpty{: %ex{short.message}}}{JSON}", """
    """"timestamp": "%d{yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX}"}"""
)
_TEXT_LINE = "%d{ISO8601} [%-5p] %m"


def log_config(*, as_json: bool) -> str:
    """log4j2.xml: warnings of the server, and what the worker prints; no line per request of its own, and no files.

    Args:
        as_json: the server's lines are JSON, and the worker's, which are so already, stay as they are.
    """
    server, worker = (_JSON_LINE, "%m") if as_json else (f"{_TEXT_LINE}%notEmpty{{: %ex{{short.message}}}}", _TEXT_LINE)
    return _LOG_CONFIG.format(server=quoteattr(f"{server}%n"), worker=quoteattr(f"{worker}%n"))


_LOG_CONFIG = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
  <Appenders>
    <Console name="SERVER" target="SYSTEM_OUT">
      <PatternLayout alwaysWriteExceptions="false" pattern={server}/>
    </Console>
    <Console name="WORKER" target="SYSTEM_OUT">
      <PatternLayout pattern={worker}/>
    </Console>
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="MODEL_LOG" level="info" additivity="false">
      <AppenderRef ref="WORKER"/>
    </Logger>
    <Logger name="org.pytorch.serve" level="warn"/>
    <Logger name="org.apache" level="off"/>
    <Logger name="io.netty" level="error"/>
    <Root level="warn">
      <AppenderRef ref="SERVER"/>
    </Root>
  </Loggers>
</Configuration>
"""


def _counter(name: str, unit: str, *dimensions: str) -> dict[str, Any]:
    return {"name": name, "unit": unit, "dimensions": list(dimensions)}


_BY_MODEL = ("model_name", "model_version", "hostname")

METRICS: dict[str, Any] = {
    "ts_metrics": {
        "counter": [
            _counter("Requests2XX", "Count", "Level", "Hostname"),
            _counter("Requests4XX", "Count", "Level", "Hostname"),
            _counter("Requests5XX", "Count", "Level", "Hostname"),
            _counter("ts_inference_requests_total", "Count", *_BY_MODEL),
            _counter("ts_inference_latency_microseconds", "Microseconds", *_BY_MODEL),
            _counter("ts_queue_latency_microseconds", "Microseconds", *_BY_MODEL),
        ],
        "gauge": [
            _counter("QueueTime", "Milliseconds", "Level", "Hostname"),
            _counter("WorkerThreadTime", "Milliseconds", "Level", "Hostname"),
            _counter("WorkerLoadTime", "Milliseconds", "WorkerName", "Level", "Hostname"),
        ],
    },
    "model_metrics": {"gauge": [_counter("PredictionTime", "ms", "ModelName", "Level")]},
}
"""The front end's own metrics. The engine's are on the service's /metrics, under their real names."""
