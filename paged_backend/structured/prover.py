"""Lets grammars be tried out before they come near the engine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from paged_backend.structured.source import GrammarSource, one_line

_SCRIPT = Path(__file__).with_name("proving.py")


class Prover:
    """A process (`proving.py`) that compiles grammars and may die of it; another is started then. One thread only.

    Args:
        limits: of llguidance, by name.
        time_limit_s: seconds that a grammar may take.
        mask_time_limit_s: seconds of CPU that a mask may take.
    """

    def __init__(self, limits: Mapping[str, int | bool], time_limit_s: float, mask_time_limit_s: float) -> None:
        self._limits = dict(limits)
        self._time_limit_s = time_limit_s
        self._mask_time_limit_s = mask_time_limit_s
        self._process: subprocess.Popen[str] | None = None

    def prove(self, source: GrammarSource, form: str, text: str) -> str:
        """The grammar in llguidance's own form: it compiles, within the limits.

        Args:
            source: whose grammar it is, for the error.
            form: what `llguidance.grammar_from` calls the text's form.

        Raises:
            InvalidRequestError: it does not.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what it says would be of the client's text
                text=True,
            )
        request = {
            "form": form,
            "text": text,
            "limits": self._limits,
            "time_limit_s": self._time_limit_s,
            "mask_time_limit_s": self._mask_time_limit_s,
        }
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            if process.returncode == -signal.SIGALRM:
                raise source.refused(f"takes more than {self._time_limit_s:g} s to compile: simplify it.")
            raise source.refused("is too large or nested too deeply: simplify it.")
        answer = json.loads(line)
        if "error" in answer:
            raise source.refused(f"cannot be used: {one_line(answer['error'])}.")
        grammar: str = answer["grammar"]
        return grammar

    def close(self) -> None:
        """Ends the process, if there is one; `prove` starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdout.close()
        process.wait()
