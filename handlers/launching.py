"""What both hosts' launchers share: addresses, signals, the server's environment, the words when it is ready."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Mapping
from types import FrameType
from typing import Any

from paged_backend.child_process import die_with_parent
from paged_backend.errors import ConfigError
from paged_backend.handlers.access.api_key import words_of
from paged_backend.handlers.deployment import API_KEY_VARIABLE, Deployment

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def reachable(host: str) -> str:
    """The address to call a server at that is bound to this one."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def origin(host: str, port: int) -> str:
    """The URL, without a slash at its end, of a server that is bound to this address."""
    host = reachable(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_free(host: str, port: int, *, setting: str) -> None:
    """Looks whether a server can listen there: hosts say little about it, and what listens could be taken for ours.

    Args:
        setting: the deployment's key that gives the port.

    Raises:
        ConfigError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}, port {port}: {error.strerror}. Stop what does, or give another {setting}."
        ) from error


def server_environment(deployment: Deployment, changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of a host's processes: ours, with these changes, and with the deployment's API keys or none."""
    result = {**os.environ, **changes}
    result.pop(API_KEY_VARIABLE, None)
    if deployment.server.api_key:
        result[API_KEY_VARIABLE] = words_of(deployment.server.api_key)
    return result


def ready_text(deployment: Deployment, place: str, base_url: str) -> str:
    """What a person reads when requests can be served, with a command to paste.

    Args:
        place: where, in words: "TorchServe at http://...".
    """
    export = f" (first, export {API_KEY_VARIABLE} with a key of the server)" if deployment.server.asks_for_key else ""
    return f"Ready: {', '.join(deployment.model_names)} on {place}. Try{export}:\n\n{curl_line(deployment, base_url)}\n"


def curl_line(deployment: Deployment, base_url: str) -> str:
    """A command that answers when it is pasted into a shell; a key is taken from the environment."""
    body = {
        "model": deployment.model_names[0],
        "messages": [{"role": "user", "content": "Tell me a short story."}],
        "max_tokens": 64,
    }
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if deployment.server.asks_for_key else ""
    url = shlex.quote(f"{base_url}/v1/chat/completions")
    return f"curl {url} -H 'Content-Type: application/json'{key} -d {shlex.quote(json.dumps(body))}"


def die_with_launcher() -> None:
    """For Popen's preexec_fn: Linux sends the child SIGTERM when the launcher's main thread ends, SIGKILL included."""
    die_with_parent(signal.SIGTERM)


class StopSignals:
    """Counts SIGTERM, SIGINT and SIGHUP (the terminal was closed) while it is entered, from the main thread.

    Under nohup, which ignores SIGHUP, that one stays ignored.

    Attributes:
        count: signals so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in _STOP_SIGNALS:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def forward_to(self, child: subprocess.Popen[bytes]) -> None:
        """Passes what comes, and what came already, on to a child as SIGTERM."""
        self._child = child
        if self.count:
            child.terminate()

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self._child is not None:
            self._child.terminate()
