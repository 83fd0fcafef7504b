"""The launcher's command line, environment, and what it tells the user. (tests/serving drives it for real.)"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from paged_backend.errors import ConfigError
from paged_backend.handlers.bento import launch, settings
from paged_backend.handlers.deployment import Deployment


def deployment(**server: Any) -> Deployment:
    return Deployment.from_dict({"name": "tiny", "server": server}, environ={})


def test_the_command_is_what_a_user_may_type() -> None:
    assert launch.command(deployment(port=3123, drain_timeout_s=2.5), ["--backlog", "100"]) == [
        *(sys.executable, "-m", "bentoml", "serve", "paged_backend.handlers.bento.service:PagedLLM"),
        *("--host", "127.0.0.1", "--port", "3123", "--timeout-graceful-shutdown", "8", "--backlog", "100"),
    ]


def test_the_default_port_and_localhost() -> None:
    assert launch.address(deployment(host="localhost")) == ("127.0.0.1", 3000)
    assert launch.address(deployment(host="::1", port=5)) == ("::1", 5)
    with pytest.raises(ConfigError, match=r"server\.host"):
        launch.address(deployment(host="example.org"))


def test_the_key_travels_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PAGED_BACKEND_API_KEY", "another")
    monkeypatch.delenv("BENTOML_HOME", raising=False)
    file = tmp_path / "deployment.yaml"
    environment = launch.environment(deployment(api_key="secret"), file, home=tmp_path / "home")
    assert environment["PAGED_BACKEND_API_KEY"] == "key1:secret"
    assert environment["PAGED_BACKEND_CONFIG"] == str(file)
    assert Path(environment["BENTOML_HOME"]).is_dir()
    assert "PAGED_BACKEND_API_KEY" not in launch.environment(deployment(), file, home=tmp_path / "home")


def test_a_home_of_the_users_own_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENTOML_HOME", "/theirs")
    assert launch.environment(deployment(), tmp_path / "x", home=tmp_path / "home")["BENTOML_HOME"] == "/theirs"
    assert not (tmp_path / "home").exists()


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="Cannot listen"):
            launch.serve(deployment(port=other.getsockname()[1]))


def test_which_deployment_a_process_serves(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\n")
    assert settings.load_deployment({"PAGED_BACKEND_CONFIG": str(file)}).name == "mine"
    assert settings.load_deployment({}).name == "paged-tiny"
    with pytest.raises(ConfigError, match="cannot be read"):
        settings.load_deployment({"PAGED_BACKEND_CONFIG": str(tmp_path / "none.yaml")})
