"""Requests that come at random times into one engine, with others beside them that leave early."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from paged_backend.engine.core import EngineCore
from paged_backend.engine.request import EngineRequest, RequestState
from paged_backend.engine.stream import RequestStream
from paged_backend.engine.tokenizer import Tokenizer
from paged_backend.outputs import RequestOutput
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SamplingTask
from paged_backend.structured.source import GrammarSource
from tests.engine_driver import MAX_STEPS
from tests.soak.provoked import Provoked
from tests.soak.requests import SoakRequest


def _needs_host(params: SamplingParams) -> bool:
    """Whether others have to wait with a request, in some step at least."""
    parts_or_scores = params.num_sequences > 1 or params.prompt_logprobs is not None
    return parts_or_scores or SamplingTask(params, (0,), (), ()).needs_host


class Crowd:
    """Drives one engine by hand, so that what happens when is decided by a seed and not by time.

    Where a tier on disk is read beside the steps, or a grammar compiled, a request's wait for it still is a matter of
    time.
    """

    def __init__(self, core: EngineCore, tokenizer: Tokenizer, rng: Random, provoked: Provoked) -> None:
        self._core = core
        self._tokenizer = tokenizer
        self._rng = rng
        self._provoked = provoked
        self._streams: dict[str, RequestStream] = {}
        self._leaving: dict[str, int] = {}  # the engine's names of requests: in which step
        provoked.watch(core)

    def run(
        self, watched: Sequence[SoakRequest], others: Sequence[SoakRequest] = (), *, host_last: bool = False
    ) -> list[RequestOutput]:
        """All of them, to their end; the outputs of those that are watched, in their order.

        Args:
            host_last: requests that need the host come behind the others, who would have to wait with them.
        """
        rng, core = self._rng, self._core
        coming = [*watched, *others]
        rng.shuffle(coming)
        if host_last:
            coming.sort(key=lambda request: not _needs_host(request.params))
        leave_early = {request.number for request in others}
        assert len(leave_early) == len(others), "a number is a request's name"
        for step in range(MAX_STEPS):
            if not coming and not core.has_work():
                break
            if rng.random() < 0.25:
                for _ in range(min(len(coming), rng.randint(1, 8))):
                    key = self._add(request := coming.pop())
                    if request.number in leave_early:
                        self._leaving[key] = step + int(2 ** rng.uniform(0, 7))
            for key in [key for key, when in self._leaving.items() if when == step]:
                ended = core.abort(key)
                self._provoked.aborts += len(ended)
                self._deliver(ended)
            self._deliver(core.step())
            if step % 64 == 0:
                core._scheduler.check_invariants()
        self._check_empty()
        outputs = [self._read(self._streams[str(request.number)]) for request in watched]
        self._streams.clear()
        self._leaving.clear()
        return outputs

    def _add(self, request: SoakRequest) -> str:
        rng, request_id = self._rng, str(request.number)
        structure = request.params.structured_outputs
        accepted = EngineRequest(
            request_id,
            list(request.prompt),
            request.params,
            priority=rng.randrange(3),
            tenant=rng.choice("abc"),
            cache_salt=rng.choice((None, None, None, "salt")),
            grammar=None if structure is None else GrammarSource.of(structure),
        )
        self._core._scheduler.check_fits(len(accepted.prompt_token_ids), accepted.params)
        self._streams[request_id] = RequestStream(accepted, None, self._tokenizer, lambda stream: None)
        self._core.add(accepted)
        return accepted.key

    def _deliver(self, states: Iterable[RequestState]) -> None:
        """As the engine's thread does."""
        for state in states:
            assert state.error is None, state.error
            self._streams[state.request.request_id].put(state.gains, state.over)
            state.gains = []

    def _read(self, stream: RequestStream) -> RequestOutput:
        """A closed stream, step by step or at once."""
        if self._rng.random() < 0.5:
            return stream.collect()
        output = RequestOutput.empty(stream.request_id, None, stream.prompt_token_ids, stream.n)
        for delta in stream:
            output.extend(delta)
        return output

    def _check_empty(self) -> None:
        core = self._core
        assert not core.has_work(), f"not finished after {MAX_STEPS} steps"
        core._scheduler.check_invariants()
        stats = core.stats()
        assert stats.num_used_blocks == stats.num_swapped == stats.num_running == stats.num_waiting == 0
