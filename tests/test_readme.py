"""README's commands and snippets, run as they stand: only ports and scratch folders are replaced."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml

from paged_backend.config import EngineConfig, engine_argument_names
from paged_backend.handlers import cli
from paged_backend.handlers.bento import launch
from paged_backend.handlers.deployment import Deployment
from paged_backend.handlers.openai.served_models import ServedModels
from paged_backend.handlers.openai.service import OpenAIService
from paged_backend.handlers.openai.wire import HttpRequest
from paged_backend.handlers.torchserve.java import find_java
from tests.serving.processes import free_ports, kill_tree, read_tail, wait_until

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
START_TIMEOUT_S = 180.0
TOOLS = {
    "paged-backend": [sys.executable, "-m", "paged_backend.handlers.cli"],
    "bentoml": [sys.executable, "-m", "bentoml"],
    "torchserve": [str(Path(sys.executable).with_name("torchserve"))],
    "torch-model-archiver": [str(Path(sys.executable).with_name("torch-model-archiver"))],
}


@dataclass(frozen=True)
class Block:
    """A fenced block of README.md."""

    language: str
    text: str


BLOCKS = [
    Block(match[1], match[2]) for match in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
]
COMMANDS = [
    shlex.split(line)
    for block in BLOCKS
    if block.language == "bash"
    for line in block.text.replace("\\\n", " ").splitlines()
]


def commands(*beginning: str) -> list[list[str]]:
    """README's command lines that begin so; there is at least one."""
    found = [command for command in COMMANDS if command[: len(beginning)] == list(beginning)]
    assert found, f"README has no command {' '.join(beginning)}"
    return found


def python_block(needle: str) -> str:
    """README's only Python block that holds a text."""
    (text,) = [block.text for block in BLOCKS if block.language == "python" and needle in block.text]
    return text


def run(command: list[str], *, text: str = "", environment: dict[str, str] | None = None) -> str:
    """Runs one of README's commands, or Python, from the repository's root; returns its standard output."""
    command = [*TOOLS.get(command[0], [command[0]]), *command[1:]]
    result = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, timeout=200, env=environment)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def curl(command: list[str], port: int) -> Any:
    """Sends what a curl line would send, to another port; returns the JSON, or the text, of a 200."""
    url = re.sub(r"(http://127\.0\.0\.1):\d+", rf"\1:{port}", command[1])
    headers, body = {}, ""
    options = iter(command[2:])
    for option in options:
        assert option in ("-H", "-d"), option
        if option == "-H":
            name, _, value = next(options).partition(": ")
            headers[name] = value
        else:
            body = next(options)
    headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
    response = httpx.post(url, content=body, headers=headers, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def server_environment(folder: Path) -> dict[str, str]:
    """The environment for a server of the tests: nothing of the caller's deployment, folders of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PAGED_BACKEND_")}
    home = folder / "bentoml"
    home.mkdir()
    return {**kept, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}


class Server:
    """One of README's server commands, running."""

    def __init__(self, command: list[str], environment: dict[str, str], log_file: Path) -> None:
        self.log_file = log_file
        with log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*TOOLS[command[0]], *command[1:]],
                env=environment,
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, url: str, needle: str) -> None:
        """Waits until a URL answers 200 with a text in it."""

        def answers() -> bool:
            assert self.process.poll() is None, f"the server has ended:\n{read_tail(self.log_file)}"
            try:
                response = httpx.get(url, timeout=5)
            except httpx.TransportError:
                return False
            return response.status_code == 200 and needle in response.text

        try:
            wait_until(answers, timeout_s=START_TIMEOUT_S, what=url)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{read_tail(self.log_file)}") from None

    def stop(self, grace_s: float) -> None:
        """Ends it and its children, by force what is left after grace_s."""
        kill_tree(self.process.pid, grace_s=grace_s)
        self.process.wait(timeout=10)


@pytest.fixture(scope="module")
def bentoml_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """README's `bentoml serve` line, on a free port."""
    folder = tmp_path_factory.mktemp("bentoml")
    (command,) = commands("bentoml", "serve")
    (port,) = free_ports(1)
    command = [str(port) if part == "3000" else part for part in command]
    server = Server(command, server_environment(folder), folder / "serve.log")
    try:
        server.wait_for(f"http://127.0.0.1:{port}/readyz", "")
        yield port
    finally:
        server.stop(20)


@pytest.fixture(scope="module")
def torchserve_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """README's three lines for TorchServe, on free ports and in a folder of their own."""
    folder = tmp_path_factory.mktemp("torchserve")

    def moved(command: list[str]) -> list[str]:
        return [re.sub(r"^model_store\b", str(folder / "store"), part) for part in command]

    port, management_port, metrics_port, *grpc_ports = free_ports(5)
    settings = {"server.port": port, "torchserve.management_port": management_port}
    settings["torchserve.metrics_port"] = metrics_port
    (pack,) = commands("paged-backend", "pack")
    run([*moved(pack), *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))])
    archive = folder / "store" / "paged-tiny.mar"
    packed = archive.read_bytes()
    archive.unlink()
    (archiver,) = commands("torch-model-archiver")
    run(moved(archiver))
    assert abs(archive.stat().st_size - len(packed)) < 1000, "the archiver by hand gives what pack gives"

    with (folder / "store" / "paged-tiny.torchserve" / "config.properties").open("a", encoding="utf-8") as properties:
        properties.write(f"grpc_inference_port={grpc_ports[0]}\ngrpc_management_port={grpc_ports[1]}\n")
    (start,) = commands("torchserve", "--start")
    (folder / "tmp").mkdir()
    environment = server_environment(folder)
    environment |= {
        "TMPDIR": str(folder / "tmp"),
        "TEMP": str(folder / "tmp"),
        "JAVA_HOME": str(find_java().home),
    }
    server = Server(moved(start), environment, folder / "serve.log")
    try:
        server.wait_for(f"http://127.0.0.1:{management_port}/models/paged-tiny", '"READY"')
        yield port
    finally:
        server.stop(2)  # its starter takes no care of Java


def test_curl_against_bentoml(bentoml_port: int) -> None:
    for command in [command for command in commands("curl") if ":3000/" in command[1]]:
        assert curl(command, bentoml_port)["choices"][0]["message"]["content"]


def test_openai_client_against_bentoml(bentoml_port: int) -> None:
    code = python_block("from openai import OpenAI").replace("127.0.0.1:3000", f"127.0.0.1:{bentoml_port}")
    assert len(run([sys.executable, "-c", code]).split()) > 3


def test_swagger_is_where_readme_says(bentoml_port: int) -> None:
    assert "http://127.0.0.1:3000/`" in README
    response = httpx.get(f"http://127.0.0.1:{bentoml_port}/docs.json", timeout=30)
    assert {"/generate", "/generate_stream"} <= set(response.json()["paths"])


def test_curl_against_torchserve(torchserve_port: int) -> None:
    lines = [command for command in commands("curl") if ":8080/" in command[1]]
    assert len(lines) == 2
    for command in lines:
        assert curl(command, torchserve_port)["choices"][0]["text"]


def test_python_api() -> None:
    lines = run([sys.executable, "-c", python_block("from paged_backend import LLM")]).splitlines()
    assert lines[0].startswith("Once upon a time [")
    assert lines[1].startswith("The little robot [")
    assert lines[2]


def test_shell_commands() -> None:
    (generate,) = commands("paged-backend", "generate")
    assert run(generate).strip()
    (piped,) = [command for command in COMMANDS if command[0] == "echo"]
    bar = piped.index("|")
    assert run(piped[bar + 1 :], text=" ".join(piped[1:bar]) + "\n").strip()
    (version,) = commands("paged-backend", "version")
    assert "paged_attention" in run(version)


def test_make_commands_name_real_verbs_and_variables() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) *[?:]?=", makefile, re.MULTILINE))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    inline = [shlex.split(text) for text in re.findall(r"`(make [^`]*)`", README + contributing)]
    for _, *arguments in [*commands("make"), *inline]:
        for argument in arguments:
            assert argument in verbs or argument.partition("=")[0] in variables, argument
    listed = set(re.findall(r"`make ([a-z-]+)`", contributing))
    assert listed == verbs - {"help"}, "CONTRIBUTING.md lists every verb"


def test_deployment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block, several = [block for block in BLOCKS if block.language == "yaml"]
    deployment = Deployment.from_dict(yaml.safe_load(block.text), environ={})
    assert deployment.engine.scheduler.max_num_seqs == 32
    assert Deployment.from_dict(yaml.safe_load(several.text), environ={}).model_names == ("large", "default", "small")

    served: list[Deployment] = []

    def serve(deployment: Deployment) -> int:
        served.append(deployment)
        return 0

    (tmp_path / "my-model.yaml").write_text(block.text, encoding="utf-8")
    (command,) = commands("paged-backend", "serve")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "serve", serve)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert served[0].engine.scheduler.max_num_seqs == 16
    assert served[0].server.port == 9001


def test_argument_table_is_complete() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", README, re.MULTILINE))
    assert tuple(rows) == engine_argument_names()
    for name, value in EngineConfig.from_args(model="paged-tiny", served_model_name=["x"]).to_args().items():
        if name in ("served_model_name",):
            continue
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        assert rows[name] == ("" if value is None else f"`{shown}`"), name


def test_routes_are_those_of_the_service() -> None:
    async def statuses() -> dict[str, int]:
        service = OpenAIService(ServedModels.one(cast(Any, object()), ("m",)))
        paths = set(re.findall(r"`(/[a-z0-9/]+)`", README)) - {"/v1"}
        requests = {path: HttpRequest(path=path, method=None, headers={}, body=b"{}") for path in paths}
        return {path: (await service.handle(request)).status for path, request in requests.items()}

    found = asyncio.run(statuses())
    assert "/v1/models" in found
    assert 404 not in found.values(), found


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]), ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_architecture_names_real_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for match in re.finditer(r"\b((?:paged_backend|handlers|kernels|tests)/[\w/{},.]*)", text):
        for path in _expanded(match[1].rstrip(".,/")):
            assert (ROOT / path).exists(), path


def _expanded(path: str) -> list[str]:
    """`a/{b,c}.py` as a shell would have it."""
    match = re.fullmatch(r"(.*)\{(.*)\}(.*)", path)
    return [path] if match is None else [f"{match[1]}{part}{match[3]}" for part in match[2].split(",")]
