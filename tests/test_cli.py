"""The command line: what a newcomer types, and the one line that a mistake gets."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from paged_backend.config import CacheConfig, EngineConfig, engine_argument_names
from paged_backend.errors import ConfigError, InvalidRequestError
from paged_backend.handlers import cli, cli_terminal
from paged_backend.handlers.attribute_help import attribute_help
from paged_backend.handlers.bento import launch
from paged_backend.handlers.cli_options import build_deployment
from paged_backend.handlers.deployment import Deployment
from paged_backend.outputs import CompletionDelta, RequestDelta
from paged_backend.sampling_params import SamplingParams

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "paged-tiny.yaml"


def run_cli(*args: str, text: str = "", timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """The command as its own process, from another folder than the repository's."""
    command = [sys.executable, "-m", "paged_backend.handlers.cli", *args]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout_s, cwd="/")


class TestHelp:
    def test_it_lists_the_commands_without_the_libraries_that_take_seconds(self) -> None:
        script = "import sys; from paged_backend.handlers.cli import main; sys.argv[1:] = ['--help']\n"
        script += "try: main()\nfinally: print(sorted({'torch', 'transformers', 'bentoml'} & set(sys.modules)))"
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd="/")
        assert result.returncode == 0
        for command in ("serve", "pack", "generate", "chat", "version"):
            assert f" {command} " in result.stdout
        assert result.stdout.endswith("[]\n")

    def test_serve_lists_every_engine_argument(self) -> None:
        text = run_cli("serve", "--help").stdout
        for name in engine_argument_names():
            assert f"--{name.replace('_', '-')}" in text

    def test_help_lines_come_from_the_docstrings(self) -> None:
        described = attribute_help(CacheConfig)
        assert described["block_size"] == "tokens in a block."
        assert described["gpu_memory_utilization"].endswith("max_model_len tokens need.")


class TestMistakes:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["serve", "--max-num-seqs=0"], "max_num_seqs must be at least 1, got 0."),
            (["serve", "--set", "engine.block_sise=8"], "Did you mean 'block_size'?"),
            (["serve", "--set", "name"], "--set takes key=value"),
            (["serve", "--config", "/does/not/exist.yaml"], "/does/not/exist.yaml: cannot be read"),
            (["pack", "--set", "torchserve.java_heap=lots"], "torchserve.java_heap must look like"),
            (
                ["generate", "--temperature=-1", "Hi"],
                "temperature must be in [0, 1000], got -1.0.",
            ),
            (["generate", "--model", "/does/not/exist", "Hi"], "/does/not/exist"),
        ],
    )
    def test_one_line_and_status_2(self, args: list[str], message: str) -> None:
        result = run_cli(*args)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("paged-backend: ")

    def test_an_unknown_option_is_status_2_too(self) -> None:
        result = run_cli("serve", "--max-seqs", "3")
        assert result.returncode == 2
        assert "--max-seqs" in result.stderr
        assert "Traceback" not in result.stderr


class TestDeployment:
    def test_without_a_file_all_is_default(self) -> None:
        deployment = build_deployment(None, {}, [], None)
        assert deployment.name == "paged-tiny"
        assert deployment.engine == EngineConfig()

    def test_without_a_file_the_name_comes_from_the_model(self) -> None:
        deployment = build_deployment(None, {"model": "Qwen/Qwen3-0.6B"}, [], None)
        assert deployment.name == "Qwen3-0.6B"
        assert deployment.model_names == ("Qwen3-0.6B",)
        assert deployment.engine.model.model == "Qwen/Qwen3-0.6B"

    def test_the_command_line_overrides_the_file(self) -> None:
        deployment = build_deployment(
            CONFIG,
            {"max_num_seqs": 4, "enable_prefix_caching": False},
            ["bento.timeout_s=5", "version='2.0'"],
            9000,
        )
        assert deployment.engine.scheduler.max_num_seqs == 4
        assert not deployment.engine.cache.enable_prefix_caching
        assert deployment.bento.timeout_s == 5
        assert deployment.version == "2.0"
        assert deployment.server.port == 9000

    @pytest.mark.parametrize(
        ("engine_args", "assignments", "name", "served"),
        [
            ({"model": "org/X b"}, [], "X-b", ("X-b",)),
            ({}, ["engine.model=org/X"], "X", ("X",)),
            ({"model": "paged-tiny"}, [], "paged-tiny", ("paged-tiny",)),
            ({}, ["name=foo"], "foo", ("foo",)),
            ({"model": "org/X"}, ["name=foo"], "foo", ("foo",)),
            ({"model": "org/X", "served_model_name": ["a"]}, [], "paged-tiny", ("a",)),
        ],
    )
    def test_names_follow_the_model(
        self, engine_args: dict[str, Any], assignments: list[str], name: str, served: tuple[str, ...]
    ) -> None:
        deployment = build_deployment(CONFIG, engine_args, assignments, None)
        assert (deployment.name, deployment.model_names) == (name, served)

    def test_a_files_relative_folder_stays_the_files(self, tmp_path: Path) -> None:
        file = tmp_path / "x.yaml"
        file.write_text("name: x\nengine: {model: ./weights}\nserver:\n")
        deployment = build_deployment(file, {}, [], 9000)
        assert deployment.engine.model.model == str(tmp_path / "weights")
        assert (deployment.name, deployment.server.port) == ("x", 9000)

    @pytest.mark.parametrize("assignment", ["=1", "a.b.c=1", "server", "name.x=1", "server.port={"])
    def test_a_malformed_assignment_is_refused(self, assignment: str) -> None:
        with pytest.raises(ConfigError, match="--set"):
            build_deployment(CONFIG, {}, [assignment], None)

    def test_options_reach_the_host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        served: list[Deployment] = []

        def serve(deployment: Deployment) -> int:
            served.append(deployment)
            return 0

        monkeypatch.setattr(launch, "serve", serve)
        argv = ["paged-backend", "serve", "-c", str(CONFIG), "--port", "4000", "--no-enable-prefix-caching"]
        argv += ["--served-model-name", "a", "--served-model-name", "b", "--kv-cache-memory-bytes", "1000000"]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        assert exit_info.value.code == 0
        assert served[0].server.port == 4000
        assert served[0].model_names == ("a", "b")
        assert served[0].engine.cache.kv_cache_memory_bytes == 1_000_000
        assert not served[0].engine.cache.enable_prefix_caching


class EchoTokenizer:
    """Stands for a tokenizer: a conversation is its contents in brackets."""

    def apply_chat_template(self, messages: Sequence[dict[str, str]]) -> str:
        return "".join(f"[{message['content']}]" for message in messages)


class EchoStream:
    """Stands for a request's stream: says the prompt back letter by letter, or is interrupted on the way."""

    def __init__(self, prompt: str, interrupted: bool) -> None:
        self.prompt = prompt
        self.interrupted = interrupted
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    def __iter__(self) -> Iterator[RequestDelta]:
        for index, letter in enumerate(self.prompt):
            if self.interrupted and index == 3:
                raise KeyboardInterrupt
            delta = CompletionDelta(0, letter, (index,))
            yield RequestDelta("r", (delta,), finished=False, num_prompt_tokens=1, num_cached_tokens=0)


class EchoClient:
    """Stands for an engine in the tests of the terminal alone."""

    def __init__(self, *, max_len: int = 100, interrupted: bool = False) -> None:
        self.tokenizer = EchoTokenizer()
        self.max_len = max_len
        self.interrupted = interrupted
        self.streams: list[EchoStream] = []

    def submit(self, prompt: str, params: SamplingParams, *, add_special_tokens: bool = True) -> EchoStream:
        if len(prompt) > self.max_len:
            raise InvalidRequestError("too long.", param="prompt")
        self.streams.append(EchoStream(prompt, self.interrupted))
        return self.streams[-1]


def chat_with(client: Any, text: str, **kwargs: Any) -> None:
    cli_terminal.chat(client, SamplingParams(), lines=io.StringIO(text), **kwargs)


class TestChat:
    def test_the_conversation_grows(self, capsys: pytest.CaptureFixture[str]) -> None:
        chat_with(EchoClient(), "a\n\nb\n", system="s")
        assert capsys.readouterr().out.splitlines() == ["[s][a]", "[s][a][[s][a]][b]"]

    def test_reset_keeps_the_system_message_alone(self, capsys: pytest.CaptureFixture[str]) -> None:
        chat_with(EchoClient(), "a\n/reset\nb\n", system="s")
        assert capsys.readouterr().out.splitlines() == ["[s][a]", "[s][b]"]

    def test_exit_leaves_at_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        chat_with(EchoClient(), "/exit\na\n")
        assert capsys.readouterr().out == ""

    def test_an_unknown_command_is_not_sent(self, capsys: pytest.CaptureFixture[str]) -> None:
        client = EchoClient()
        chat_with(client, "/rest now\n")
        assert not client.streams
        assert "Unknown command /rest." in capsys.readouterr().err

    def test_a_refused_line_leaves_the_conversation_as_it_was(self, capsys: pytest.CaptureFixture[str]) -> None:
        chat_with(EchoClient(max_len=10), "abcdefghijkl\nb\n")
        captured = capsys.readouterr()
        assert captured.out.splitlines() == ["[b]"]
        assert "too long. (/reset makes room.)" in captured.err

    def test_ctrl_c_ends_the_answer_not_the_program(self, capsys: pytest.CaptureFixture[str]) -> None:
        client = EchoClient(interrupted=True)
        chat_with(client, "abcd\n")
        assert client.streams[0].aborted
        assert capsys.readouterr().out == "[ab\n"

    def test_without_a_tokenizer_it_says_so(self) -> None:
        client = EchoClient()
        client.tokenizer = None  # type: ignore[assignment]
        with pytest.raises(InvalidRequestError, match="needs a tokenizer"):
            chat_with(client, "a\n")


class TestForReal:
    """The bundled model behind the real command."""

    def test_version_names_kernels_and_hosts(self) -> None:
        text = run_cli("version").stdout
        assert "kernel paged_attention" in text
        assert "torch " in text
        assert "bentoml " in text

    def test_generate_repeats_with_a_seed_and_reads_a_pipe(self) -> None:
        options = ["generate", "--max-tokens", "20", "--seed", "7"]
        first = run_cli(*options, "Once", "upon a time")
        second = run_cli(*options, text="Once upon a time\n")
        assert first.returncode == 0, first.stderr
        assert first.stdout.strip()
        assert first.stdout == second.stdout
        assert first.stderr == ""

    def test_chat_answers_piped_lines(self) -> None:
        result = run_cli("chat", "--temperature", "0", "--max-tokens", "12", text="Hello!\n/reset\nHello!\n/exit\n")
        assert result.returncode == 0, result.stderr
        answers = result.stdout.splitlines()
        assert len(answers) % 2 == 0
        assert answers[: len(answers) // 2] == answers[len(answers) // 2 :]
