"""`paged-backend serve` on BentoML: runs `bentoml serve` as a child, tells when it is ready, passes signals on."""

from __future__ import annotations

import contextlib
import http.client
import math
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from paged_backend.errors import ConfigError
from paged_backend.handlers.bento.settings import CONFIG_VARIABLE
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.launching import (
    StopSignals,
    check_free,
    die_with_launcher,
    origin,
    reachable,
    ready_text,
    server_environment,
)

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
        The process's exit status: 0 after SIGTERM, SIGHUP or Ctrl-C, else what went wrong.

    Raises:
        ConfigError: the address cannot be used.
    """
    host, port = address(deployment)
    check_free(host, port, setting="server.port")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paged-backend-")))
        config_file = folder / "deployment.yaml"
        config_file.write_text(yaml.safe_dump(deployment.to_dict(with_api_key=False)), encoding="utf-8")
        signals = stack.enter_context(StopSignals())
        child = subprocess.Popen(
            command(deployment, extra_arguments),
            env=environment(deployment, config_file, home=folder / "bentoml"),
            # Ctrl-C and a closed terminal reach us alone, and are passed on.
            start_new_session=True,
            preexec_fn=die_with_launcher,
        )
        try:
            signals.forward_to(child)
            return _attend(child, deployment, signals)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()


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
    changes = {CONFIG_VARIABLE: str(config_file), "BENTOML_DO_NOT_TRACK": "True"}
    result = server_environment(deployment, changes)
    if "BENTOML_HOME" not in result:
        home.mkdir(parents=True, exist_ok=True)
        result["BENTOML_HOME"] = str(home)
    return result


def _attend(child: subprocess.Popen[bytes], deployment: Deployment, signals: StopSignals) -> int:
    """Waits until the child is ready, says so, and waits for its end."""
    announced = False
    while (status := child.poll()) is None:
        if not announced and not signals.count and _is_ready(*address(deployment)):
            announced = True
            url = origin(*address(deployment))
            print(ready_text(deployment, f"BentoML at {url} (Swagger: {url}/)", url), flush=True)
        time.sleep(_POLL_S)
    if signals.count:
        return 0
    if not announced:
        print("The server ended before it was ready: its messages above say why.", file=sys.stderr, flush=True)
    return 128 - status if status < 0 else status or 1


def _is_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(reachable(host), port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
