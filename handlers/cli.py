"""The command line: serve a model on either host, pack it for TorchServe, or talk to it right here.

Only what parses a command line is imported up here, so that `--help` answers at once; torch and the hosts are
imported by the commands that need them.
"""

from __future__ import annotations

import enum
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from paged_backend.errors import (
    ConfigError,
    InvalidRequestError,
    KernelError,
    ModelLoadError,
    NotFoundError,
    PagedBackendError,
)
from paged_backend.handlers.cli_options import (
    build_deployment,
    build_engine_config,
    engine_options,
    sampling_options,
)
from paged_backend.sampling_params import SamplingParams

_USERS_MISTAKES = (ConfigError, InvalidRequestError, KernelError, ModelLoadError, NotFoundError)

# torch's OpenMP threads wait for each other by spinning for milliseconds. Where something else wants the cores too
# (a server's own threads are enough), whole time slices are lost to that: see docs/lab-log.md. It is read when torch
# is loaded, here or in the hosts' processes, which inherit it.
_SHORT_SPIN = ("GOMP_SPINCOUNT", "1000")

app = typer.Typer(
    name="paged-backend",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A language model server with a paged KV cache and continuous batching,"
    " on TorchServe or BentoML.\n\n"
    "Try: paged-backend chat (talk to the bundled model here), then "
    "paged-backend serve (an OpenAI-compatible server at http://127.0.0.1:3000/v1).",
    rich_markup_mode=None,
)


class Host(enum.Enum):
    """The model servers that the engine runs in."""

    BENTOML = "bentoml"
    TORCHSERVE = "torchserve"


class ArchiveFormat(enum.Enum):
    """What TorchServe loads: one NAME.mar file, or a folder NAME."""

    MAR = "mar"
    NO_ARCHIVE = "no-archive"


Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The deployment's YAML file (see configs/). Without it: all defaults."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override any key of the YAML file: --set server.host=0.0.0.0, --set name=my-model. Repeatable.",
    ),
]


@app.command()
@engine_options()
def serve(
    host: Annotated[Host, typer.Option(help="Which model server to run in.")] = Host.BENTOML,
    config: Config = None,
    port: Annotated[int | None, typer.Option(help="TCP port. (default: 3000 on BentoML, 8080 on TorchServe)")] = None,
    model_store: Annotated[
        Path | None,
        typer.Option(help="TorchServe only: keep the archive in this folder. (default: a temporary one)"),
    ] = None,
    assignments: Assignments = None,
    *,
    engine_args: dict[str, Any],
) -> None:
    """Serve a model behind an OpenAI-compatible API, until Ctrl-C.

    Without options it serves the small model that comes with this package.

    When it is ready it prints the address and a curl line to try.

    From --model on, the options are the engine's arguments, under vLLM's names.
    """
    deployment = build_deployment(config, engine_args, assignments or [], port)
    if host is Host.TORCHSERVE:
        from paged_backend.handlers import cli_torchserve

        raise typer.Exit(cli_torchserve.serve(deployment, model_store))
    if model_store is not None:
        raise ConfigError("--model-store is for TorchServe: leave it out, or give --host torchserve.")
    from paged_backend.handlers.bento.launch import serve as serve_on_bentoml

    raise typer.Exit(serve_on_bentoml(deployment))


@app.command()
@engine_options()
def pack(
    config: Config = None,
    export_path: Annotated[Path, typer.Option(help="Where the archive goes: TorchServe's --model-store.")] = Path(
        "model_store"
    ),
    archive_format: Annotated[
        ArchiveFormat, typer.Option(help="One NAME.mar file, or a folder NAME.")
    ] = ArchiveFormat.MAR,
    assignments: Assignments = None,
    *,
    engine_args: dict[str, Any],
) -> None:
    """Write a TorchServe archive of a deployment.

    It goes to --export-path, for torchserve --start --model-store PATH --models NAME.mar. The folder
    NAME.torchserve beside it holds what else TorchServe's own tools need, such as config.properties.
    """
    deployment = build_deployment(config, engine_args, assignments or [], None)
    from paged_backend.handlers.torchserve.archive import pack as pack_for_torchserve

    print(pack_for_torchserve(deployment, export_path, archive_format.value))


@app.command()
@engine_options(listed=False)
@sampling_options
def generate(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="The text to continue. Without it: all of standard input.")
    ] = None,
    config: Config = None,
    assignments: Assignments = None,
    *,
    engine_args: dict[str, Any],
    sampling_args: dict[str, Any],
) -> None:
    """Continue a text here, in this process, without a server.

    The text is printed as it is generated.

    The engine arguments of paged-backend serve --help work here too.
    """
    text = " ".join(prompt) if prompt else _read_standard_input()
    params = SamplingParams(**sampling_args)
    engine_config = build_engine_config(config, engine_args, assignments or [])
    from paged_backend.handlers import cli_terminal

    with cli_terminal.running_engine(engine_config) as client:
        cli_terminal.generate(client, text, params)


@app.command()
@engine_options(listed=False)
@sampling_options
def chat(
    system: Annotated[str | None, typer.Option(help="A system message that opens the conversation.")] = None,
    config: Config = None,
    assignments: Assignments = None,
    *,
    engine_args: dict[str, Any],
    sampling_args: dict[str, Any],
) -> None:
    """Talk to a model here, in this process, without a server.

    One line in, one answer out: at a terminal or with piped lines. /reset starts anew, /exit leaves.

    The engine arguments of paged-backend serve --help work here too.
    """
    params = SamplingParams(**sampling_args)
    engine_config = build_engine_config(config, engine_args, assignments or [])
    from paged_backend.handlers import cli_terminal

    with cli_terminal.running_engine(engine_config) as client:
        cli_terminal.chat(client, params, system=system)


@app.command()
def version() -> None:
    """Show versions, this machine's kernels, hosts."""
    from paged_backend.handlers.cli_version import describe_installation

    print(describe_installation())


def main() -> None:
    """Run `paged-backend`. A user's mistake ends with one line and status 2, other failures with status 1."""
    os.environ.setdefault(*_SHORT_SPIN)
    try:
        app()
    except PagedBackendError as error:
        print(f"paged-backend: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, _USERS_MISTAKES) else 1)
    except BrokenPipeError:
        # The reader (`| head`) has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _read_standard_input() -> str:
    if sys.stdin.isatty():
        raise InvalidRequestError('Give a prompt: paged-backend generate "Once upon a time".', param="prompt")
    return sys.stdin.read().rstrip("\n")


if __name__ == "__main__":
    main()
