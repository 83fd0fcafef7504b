"""Tries grammars out, in a process of its own: one that never ends, or ends the process, has done no harm.

It is run as a script (`prover.py` starts it) and reads a JSON line for each grammar: {"form", "text", "limits",
"time_limit_s", "mask_time_limit_s"}. It answers with one: {"grammar": text} in llguidance's own form, or {"error": why
it is refused}. Where it gives no answer it is dead: of SIGALRM when the time was over, of anything else when the
grammar was too much for it.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

_STACK_BYTES = 16 << 20
"""To compile on; smaller than what a grammar that has passed is compiled on."""
_MASK_STACK_BYTES = 1 << 20
"""To make masks on; a small part of what the engine's thread has, which makes them afterwards."""
_MEMORY_BYTES = 2 << 30
_NUM_MASKS = 32


def main() -> None:
    """Answers until there is nothing more to read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides when it ends
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _run_on_stack(_answer_all, _STACK_BYTES)


def _run_on_stack(work: Callable[[], None], num_bytes: int) -> None:
    threading.stack_size(num_bytes)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def _answer_all() -> None:
    bytes_alone = LLTokenizer("byte")
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["time_limit_s"])
        answer = prove(request, bytes_alone)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        print(json.dumps(answer), flush=True)


def prove(request: dict[str, Any], tokenizer: LLTokenizer) -> dict[str, str]:
    """The answer to one grammar: it is compiled, and followed for a while, wherever that leads.

    Raises:
        RuntimeError: something was raised on the way; then nothing is known of it, nor of this process.
    """
    try:
        grammar = grammar_from(request["form"], request["text"])
    except (ValueError, RecursionError, IndexError, KeyError) as error:
        return {"error": str(error)}
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**request["limits"]))
    if matcher.is_error():
        return {"error": matcher.get_error()}
    followed: list[dict[str, str]] = []
    _run_on_stack(lambda: followed.append(_follow(matcher, request["mask_time_limit_s"])), _MASK_STACK_BYTES)
    if not followed:
        raise RuntimeError("it could not be followed")  # no answer is an answer, too: a grammar that was too much
    return {"grammar": grammar, **followed[0]}


def _follow(matcher: LLMatcher, mask_time_limit_s: float) -> dict[str, str]:
    """An error, if there is one, for having gone through a grammar for a while."""
    draw = random.Random(0)
    for _ in range(_NUM_MASKS):
        start_s = time.thread_time()
        allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]
        if time.thread_time() - start_s > mask_time_limit_s:
            return {"error": "it takes too long to tell which tokens may come next"}
        if matcher.is_stopped() or not allowed:
            break  # at its end, or at one of its limits, which stops a request and not the engine
        matcher.consume_token(draw.choice(allowed))
    return {}


if __name__ == "__main__":
    main()
