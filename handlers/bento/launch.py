"""`paged-backend serve` on BentoML: runs `bentoml serve` as a child, tells when it is ready, passes signals on."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import yaml

from paged_backend.errors import ConfigError
from paged_backend.handlers.bento.settings import CONFIG_VARIABLE
from paged_backend.handlers.deployment import API_KEY_VARIABLE, Deployment

SERVICE = "paged_backend.handlers.bento.service:PagedLLM"
DEFAULT_PORT = 3000

_POLL_S = 0.1
_GRACE_S = 5
"""What uvicorn gets beyond the engine's draining before it cancels what is left."""


def serve(deployment: Deployment, *, extra_arguments: Sequence[str] = ()) -> int:
    """Serves a deployment until a signal or a fault ends it.

    Args:
        deployment: its server.host must be an IP address or "localhost"; server.port None means 3000.
        extra_arguments: passed on to `bentoml serve`, such as ("--ssl-certfile", "cert.pem").

    Returns:
        The process's exit status: 0 after SIGTERM or Ctrl-C, else what went wrong.

    Raises:
        ConfigError: the address cannot be used.
    """
    host, port = address(deployment)
    _check_free(host, port)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paged-backend-")))
        config_file = folder / "deployment.yaml"
        config_file.write_text(yaml.safe_dump(deployment.to_dict(with_api_key=False)), encoding="utf-8")
        child = subprocess.Popen(
            command(deployment, extra_arguments),
            env=environment(deployment, config_file, home=folder / "bentoml"),
            # Ctrl-C reaches us alone, and is passed on once.
            start_new_session=True,
        )
        with _forwarded_signals(child) as stopped:
            return _attend(child, deployment, stopped)


def address(deployment: Deployment) -> tuple[str, int]:
    """Host (as an IP address, which is what BentoML takes) and port.

    Raises:
        ConfigError: the host is neither an IP address nor "localhost".
    """
    host = "127.0.0.1" if deployment.server.host == "localhost" else deployment.server.host
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return host, deployment.server.port or DEFAULT_PORT
    raise ConfigError(f"server.host must be an IP address or localhost on BentoML, got {deployment.server.host!r}.")


def command(deployment: Deployment, extra_arguments: Sequence[str] = ()) -> list[str]:
    """The `bentoml serve` command line."""
    host, port = address(deployment)
    return [
        *(sys.executable, "-m", "bentoml", "serve", SERVICE),
        *("--host", host, "--port", str(port)),
        *("--timeout-graceful-shutdown", str(math.ceil(deployment.server.drain_timeout_s) + _GRACE_S)),
        *extra_arguments,
    ]


def environment(deployment: Deployment, config_file: Path, *, home: Path) -> dict[str, str]:
    """The child's environment.

    Args:
        config_file: the deployment without its API key, which goes by the environment.
        home: BENTOML_HOME where the caller's environment names none: two servers that share one wipe each other's
            metrics.
    """
    result = {**os.environ, CONFIG_VARIABLE: str(config_file), "BENTOML_DO_NOT_TRACK": "True"}
    if "BENTOML_HOME" not in result:
        home.mkdir(parents=True, exist_ok=True)
        result["BENTOML_HOME"] = str(home)
    result.pop(API_KEY_VARIABLE, None)
    if deployment.server.api_key is not None:
        result[API_KEY_VARIABLE] = deployment.server.api_key
    return result


def curl_line(deployment: Deployment) -> str:
    """A command that answers when it is pasted into a shell; a key is taken from the environment."""
    body = {
        "model": deployment.model_names[0],
        "messages": [{"role": "user", "content": "Tell me a short story."}],
        "max_tokens": 64,
    }
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if deployment.server.api_key is not None else ""
    return (
        f"curl {_url(deployment)}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"
    )


def _attend(child: subprocess.Popen[bytes], deployment: Deployment, stopped: list[int]) -> int:
    """Waits until the child is ready, says so, and waits for its end."""
    announced = False
    while (status := child.poll()) is None:
        if not announced and not stopped and _is_ready(*address(deployment)):
            announced = True
            print(
                f"Ready: {', '.join(deployment.model_names)} on BentoML at {_url(deployment)} "
                f"(Swagger: {_url(deployment)}/). Try:\n\n{curl_line(deployment)}\n",
                flush=True,
            )
        time.sleep(_POLL_S)
    if stopped:
        return 0
    if not announced:
        print("The server ended before it was ready: its messages above say why.", file=sys.stderr, flush=True)
    return 128 - status if status < 0 else status or 1


@contextlib.contextmanager
def _forwarded_signals(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Passes SIGTERM and SIGINT on to the child, as SIGTERM; yields the list of those received."""
    received: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)

    before: Mapping[int, object] = {
        number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned


def _is_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(_reachable(host), port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _check_free(host: str, port: int) -> None:
    """Raises ConfigError where something else listens: its readiness would be taken for ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"Cannot listen on {host}:{port}: {error.strerror}. Stop what does, or give another server.port."
            ) from error


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _url(deployment: Deployment) -> str:
    host, port = address(deployment)
    host = _reachable(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
