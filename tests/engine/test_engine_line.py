"""What goes through the line from an engine's process: gains, ends and observations arrive as they were."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from paged_backend.engine.detokenizer import Finish
from paged_backend.engine.metrics import EngineMetrics
from paged_backend.engine.pace import Pace
from paged_backend.engine.process.engine_process import EngineProcess, _LiveRequest
from paged_backend.engine.process.line import DeskLine, Line
from paged_backend.engine.process.observations import ObservationLog, replay
from paged_backend.engine.request import EngineRequest, PromptFacts
from paged_backend.engine.stats import EngineStats
from paged_backend.errors import InvalidRequestError, PagedBackendError
from paged_backend.outputs import RequestStateStats
from paged_backend.sampling_params import SamplingParams
from paged_backend.scheduler.plan import SampledToken

NUM_REQUESTS = 5

described = st.builds(SampledToken, st.integers(0, 9), st.floats(-9, 0), st.integers(1, 9))
finishes = st.builds(Finish, st.sampled_from(["stop", "length", "abort"]), st.sampled_from([None, 3, "text"]))
gains = st.tuples(
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(0, 2**20)),
    st.one_of(st.none(), st.text(max_size=3)),
    st.one_of(st.none(), described),
    st.one_of(st.none(), finishes),
)
plain_gains = st.tuples(st.integers(0, 3), st.integers(0, 2**20), st.none(), st.none(), st.none())
progress = st.tuples(
    st.integers(0, NUM_REQUESTS - 1),
    st.lists(st.one_of(plain_gains, plain_gains, gains), min_size=1, max_size=4),
    st.sampled_from(["goes on"] * 4 + ["over", "fails"]),
)
steps = st.lists(st.lists(progress, max_size=NUM_REQUESTS, unique_by=lambda one: one[0]), max_size=12)


class FakeState:
    """Stands in for a `RequestState`."""

    def __init__(self, number: int) -> None:
        self.request = EngineRequest(f"r{number}", [3, 4], SamplingParams())
        self.prompt = PromptFacts(number, [SampledToken(number)])
        self.gains: list[Any] = []
        self.over = False
        self.error: PagedBackendError | None = None
        self.stats: RequestStateStats | None = None
        self.num_generated = [number]


class Recorder:
    """Stands in for a `FrontDesk`, and for the socket."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.published: list[tuple[EngineStats, int, int]] = []
        self.told: list[dict[str, Any]] = []

    def send(self, message: object) -> None:
        self.sent.append(pickle.dumps(message))

    def publish(self, *snapshot: Any) -> None:
        self.published.append(snapshot)

    def deliver(self, states: Sequence[Any]) -> None:
        self.told.append({state.request.request_id: told(state) for state in states})
        for state in states:
            state.gains = []


def told(state: Any) -> Any:
    error = state.error and (type(state.error), str(state.error), state.error.param)
    end = (error, state.stats, list(state.num_generated)) if state.over else None
    gains = [(*gain[:5], gain[5].num_cached_tokens, gain[5].scored) for gain in state.gains]
    return gains, state.over, end


@settings(deadline=None, max_examples=60)
@given(steps)
def test_gains_arrive_as_they_were(steps: list[Any]) -> None:
    recorder, pace = Recorder(), Pace()
    line = DeskLine(cast(Line, recorder), pace, ObservationLog())
    live = {number: FakeState(number) for number in range(NUM_REQUESTS)}
    parent: Any = object.__new__(EngineProcess)
    parent._live, parent._pace = {}, Pace()
    parent.desk, parent.metrics = recorder, EngineMetrics("m", 64)
    for number, state in live.items():
        line.expect(state.request.key, number)
        parent._live[number] = _LiveRequest(number, state.request)
    expected = []
    for place, step in enumerate(steps):
        states = []
        for number, new, end in step:
            if number not in live:
                continue
            state = live[number]
            state.gains = [] if end == "fails" else [(*gain, state.prompt) for gain in new]
            state.over = end != "goes on"
            if state.over:
                del live[number]
                state.stats = RequestStateStats(num_steps=place)
                state.error = InvalidRequestError("no", param="stop") if end == "fails" else None
            states.append(state)
        pace.note_step(place + 1, 0.5, place)
        expected.append({state.request.request_id: told(state) for state in states})
        line.publish(EngineStats(num_steps=place), place, 2 * place)
        line.deliver(cast(Any, states))
        assert all(not state.gains for state in states)
    for data in recorder.sent:
        parent._take(pickle.loads(data))
    assert recorder.told == expected
    assert recorder.published == [(EngineStats(num_steps=place), place, 2 * place) for place in range(len(steps))]
    assert parent._pace.numbers() == pace.numbers()
    assert set(parent._live) == set(live) == set(line._numbers.values())


def test_observations_are_made_elsewhere() -> None:
    here, there, log = EngineMetrics("m", 64), EngineMetrics("m", 64), ObservationLog()
    for metrics in (here, log):
        observed: Any = metrics
        observed.iteration_tokens.observe(5)
        observed.inter_token_latency.observe(0.25, 3)
        observed.observe_prompt(7, 4, 1)
        observed.observe_request_end(RequestStateStats(num_generation_tokens=4), 4, "stop")
    replay(pickle.loads(pickle.dumps(log.take())), there)
    assert log.take() == []

    def lines(metrics: EngineMetrics) -> list[str]:
        return [line for line in metrics.text(EngineStats).splitlines() if "_created" not in line]

    assert lines(here) == lines(there)
    assert any("iteration_tokens_total_count" in line and line.endswith(" 1.0") for line in lines(there))
