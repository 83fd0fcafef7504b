"""Talking to an engine in this process from a terminal or a pipe: `paged-backend generate` and `chat`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from paged_backend.errors import InvalidRequestError
from paged_backend.sampling_params import SamplingParams

if TYPE_CHECKING:
    from paged_backend.config import EngineConfig
    from paged_backend.engine.client import EngineClient
    from paged_backend.engine.stream import RequestStream

CHAT_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."


@contextlib.contextmanager
def running_engine(config: EngineConfig) -> Iterator[EngineClient]:
    """An engine for the time of the `with`; on a terminal it says what it loads and how long that took.

    Raises:
        ConfigError, ModelLoadError: with what to change.
    """
    started_s = time.monotonic()
    _note(f"Loading {config.model.model} ...")
    # Here and not above: importing torch takes seconds, which `paged-backend --help` must not cost.
    from paged_backend.engine.client import EngineClient

    client = EngineClient.start(config)
    _note(f"Ready in {time.monotonic() - started_s:.1f} s.")
    try:
        yield client
    finally:
        client.shutdown()


def generate(client: EngineClient, prompt: str, params: SamplingParams) -> None:
    """Prints a prompt's continuation as it comes."""
    _print_stream(client.submit(prompt, params))


def chat(
    client: EngineClient, params: SamplingParams, *, system: str | None = None, lines: TextIO | None = None
) -> None:
    """A conversation: one line in, one answer out, until the lines end.

    Args:
        system: the conversation's first message, kept over /reset.
        lines: where the user's lines come from; None means standard input. With a terminal there is a prompt.

    Raises:
        InvalidRequestError: the model has no tokenizer or no chat template.
    """
    tokenizer = client.tokenizer
    if tokenizer is None:
        raise InvalidRequestError("chat needs a tokenizer: leave skip_tokenizer_init off.", param="messages")
    opening = [{"role": "system", "content": system}] if system else []
    tokenizer.apply_chat_template([*opening, {"role": "user", "content": "."}])  # no chat template: say so now
    messages = list(opening)
    _note(CHAT_HELP)
    for line in _user_lines(lines):
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            messages = list(opening)
            _note("The conversation starts anew.")
        elif line.startswith("/"):
            print(f"Unknown command {line.split()[0]}. {CHAT_HELP}", file=sys.stderr)
        elif line:
            messages.append({"role": "user", "content": line})
            prompt = tokenizer.apply_chat_template(messages)
            try:
                stream = client.submit(prompt, params, add_special_tokens=False)
            except InvalidRequestError as error:
                messages.pop()
                print(f"{error} (/reset makes room.)", file=sys.stderr)
                continue
            messages.append({"role": "assistant", "content": _print_stream(stream)})


def _print_stream(stream: RequestStream) -> str:
    """Prints text as it becomes final and returns it; Ctrl-C ends the request and keeps what came."""
    parts = []
    try:
        for delta in stream:
            text = "".join(output.text for output in delta.outputs)
            parts.append(text)
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        stream.abort()
    except BrokenPipeError:
        stream.abort()
        raise
    print(flush=True)
    return "".join(parts)


def _user_lines(lines: TextIO | None) -> Iterator[str]:
    source = lines or sys.stdin
    interactive = source.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives `input` its line editing and history)
    while True:
        try:
            # `input` would echo its prompt into a pipe: only a person needs one.
            line = input("> ") if interactive else source.readline()
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        if not interactive and not line:
            return
        yield line.strip()


def _note(text: str) -> None:
    """For a person only: a pipe gets the answers and nothing else."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
