"""Drives an engine core by hand, step by step, so that what happens when is decided by the test and not by time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paged_backend.config import EngineConfig
from paged_backend.engine.assembler import DeltaAssembler
from paged_backend.engine.core import EngineCore
from paged_backend.engine.metrics import EngineMetrics
from paged_backend.engine.request import EngineRequest, RequestState
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.executor.executor import Executor
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import SamplingParams

MAX_STEPS = 20_000


def new_core(model: Path | str, tokenizer: Tokenizer | None = None, **engine_args: Any) -> EngineCore:
    """An engine core without thread; without text unless a tokenizer is given, without grammars unless a compiler."""
    compiler = engine_args.pop("compiler", None)
    config = EngineConfig.from_args({"num_threads": 1, **engine_args}, model=str(model))
    executor = Executor(config)
    return EngineCore(config, executor, tokenizer, EngineMetrics("test", executor.max_model_len), compiler=compiler)


def new_request(request_id: str, prompt: Sequence[int], params: SamplingParams, **kwargs: Any) -> EngineRequest:
    """A request as the client would make it."""
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=list(prompt),
        params=params,
        priority=kwargs.get("priority", 0),
        cache_salt=kwargs.get("cache_salt"),
        grammar=kwargs.get("grammar"),
        arrival_s=time.monotonic(),
    )


class Collector:
    """Gathers items into whole outputs."""

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer = tokenizer
        self._assemblers: dict[str, DeltaAssembler] = {}
        self.outputs: dict[str, RequestOutput] = {}
        self.errors: dict[str, Exception] = {}
        self.finished: list[str] = []

    def expect(self, request: EngineRequest) -> None:
        self.outputs[request.request_id] = RequestOutput.empty(
            request.request_id, None, list(request.prompt_token_ids), request.params.n
        )
        self._assemblers[request.request_id] = DeltaAssembler(request, self._tokenizer)

    def take(self, states: Sequence[RequestState]) -> None:
        for state in states:
            request_id = state.request.request_id
            assert request_id not in self.finished, "a request got something after its last item"
            if state.error is not None:
                self.errors[request_id] = state.error
            else:
                delta = self._assemblers[request_id].assemble(state.gains)
                self.outputs[request_id].extend(delta)
                assert delta.finished == state.over
                state.gains.clear()
            if state.over:
                self.finished.append(request_id)


def run_core(
    core: EngineCore,
    requests: Sequence[tuple[Sequence[int], SamplingParams]],
    *,
    steps_between: int = 0,
) -> list[RequestOutput]:
    """Runs requests to their end, adding one every `steps_between` steps (0: all at once)."""
    collector = Collector()
    waiting = [new_request(f"r{i}", prompt, params) for i, (prompt, params) in enumerate(requests)]
    ids = [request.request_id for request in waiting]
    for step in range(MAX_STEPS):
        while waiting and (steps_between == 0 or step % steps_between == 0):
            request = waiting.pop(0)
            collector.expect(request)
            core.add(request)
            if steps_between:
                break
        if not waiting and not core.has_work():
            return [collector.outputs[request_id] for request_id in ids]
        collector.take(core.step())
    raise AssertionError(f"not finished after {MAX_STEPS} steps")
