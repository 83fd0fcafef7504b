"""Tries grammars out, in a process of its own: one that never ends, or ends the process, has done no harm.

It is run as a script (`prover.py` starts it) and reads a JSON line for each grammar: {"format", "text", "limits",
"time_limit_s"}. It answers with one: {"grammar": text} in llguidance's own form, or {"error": why it is refused}. Where it
gives no answer it is dead: of SIGALRM when the time was over, of anything else when the grammar was too much for it.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from typing import Any

from llguidance import LLMatcher, LLParserLimits, grammar_from

_STACK_BYTES = 16 << 20
_MEMORY_BYTES = 2 << 30


def main() -> None:
    """Answers until there is nothing more to read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides when it ends
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A thread for its stack: smaller than what a grammar that has passed is compiled on.
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_answer_all)
    thread.start()
    thread.join()


def _answer_all() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["time_limit_s"])
        answer = prove(request["format"], request["text"], LLParserLimits(**request["limits"]))
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        print(json.dumps(answer), flush=True)


def prove(form: Any, text: str, limits: LLParserLimits) -> dict[str, str]:
    """The answer to one grammar."""
    try:
        grammar = grammar_from(form, text)
    except (ValueError, RecursionError, IndexError, KeyError) as error:
        return {"error": str(error)}
    error = LLMatcher.validate_grammar(grammar, None, limits=limits)
    return {"error": error} if error and not error.startswith("WARNING") else {"grammar": grammar}


if __name__ == "__main__":
    main()
