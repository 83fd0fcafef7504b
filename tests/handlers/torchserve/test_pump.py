"""The pump against a scripted service: every rule of the host, without the host."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from paged_backend.handlers.openai.wire import HttpRequest
from paged_backend.handlers.torchserve.pump import Pump, Reply
from tests.handlers.torchserve.scripted import ScriptedService
from tests.serving.processes import wait_until

PATH = "/v1/completions"


class Host:
    """Polls a pump as TorchServe does: live ids each time, and what was withheld once more."""

    def __init__(self, pump: Pump) -> None:
        self.pump = pump
        self.live: dict[str, HttpRequest] = {}
        self.replies: dict[str, list[Reply]] = {}

    def send(self, request_id: str, *, path: str = PATH, **body: Any) -> None:
        self.live[request_id] = HttpRequest(path, body=body)
        self.replies[request_id] = []

    def call(self) -> list[Reply | None]:
        ids = list(self.live)
        answers = self.pump.exchange(ids, lambda index: self.live[ids[index]])
        for request_id, reply in zip(ids, answers, strict=True):
            if reply is not None:
                self.replies[request_id].append(reply)
                if reply.more is not True:
                    del self.live[request_id]
        return answers

    def call_until(self, done: Callable[[], bool], timeout_s: float = 10.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < end_s, f"still live: {list(self.live)}"
            self.call()

    def run(self) -> None:
        """Polls until nothing lives."""
        self.call_until(lambda: not self.live)

    def body(self, request_id: str) -> bytes:
        return b"".join(reply.body for reply in self.replies[request_id])


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def make_host(service: ScriptedService) -> Iterator[Callable[..., Host]]:
    pumps: list[Pump] = []

    def make(**options: Any) -> Host:
        pumps.append(Pump(service, **{"max_reply_bytes": 1 << 20, **options}))
        return Host(pumps[-1])

    yield make
    for pump in pumps:
        pump.close()


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    return make_host()


def test_plain_reply_is_one_whole_reply(host: Host) -> None:
    host.send("a", bytes=5)
    host.run()
    assert host.replies["a"] == [Reply(b"xxxxx", None, 200, {"Content-Type": "application/json"})]


def test_stream_ended_by_its_first_reply_is_never_called_a_last_chunk(host: Host) -> None:
    # TorchServe writes no headers for a last chunk that comes first, and the client hangs.
    host.send("a", frames=2)
    host.call()
    time.sleep(0.1)
    host.run()
    assert host.replies["a"][0].status == 200
    assert host.replies["a"][0].more in (None, True)
    assert host.body("a") == b"data: 0\n\ndata: 1\n\n"


def test_stream_gives_its_frames_as_they_come(host: Host, service: ScriptedService) -> None:
    host.send("a", frames=4, step=True)
    for count in range(1, 5):
        host.call_until(lambda count=count: service.num_waiting >= count)
        host.pump._loop.call_soon_threadsafe(service.release)
        host.call_until(lambda count=count: host.body("a").count(b"data") == count)
    host.run()
    replies = host.replies["a"]
    assert host.body("a") == b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert len([reply for reply in replies if reply.body]) == 4
    assert [reply.more for reply in replies[:-1]] == [True] * (len(replies) - 1)
    assert replies[-1].more is False
    assert [reply.status for reply in replies] == [200] + [None] * (len(replies) - 1)


def test_error_keeps_its_status_however_many_calls_it_takes(host: Host) -> None:
    host.send("a", delay=0.12, status=429)
    host.run()
    assert [(reply.status, reply.more) for reply in host.replies["a"]] == [(429, None)]


@pytest.mark.parametrize("stream", [False, True])
def test_refusal_keeps_its_status_however_late_it_comes(make_host: Callable[..., Host], stream: bool) -> None:
    host = make_host(commit_after_s=0.0)
    host.send("a", delay=0.4, status=400, stream=stream)
    host.run()
    assert host.replies["a"] == [Reply(b'{"error":{"code":400}}', None, 400, {"Content-Type": "application/json"})]


def test_error_after_a_stream_was_committed_comes_as_its_last_frame(make_host: Callable[..., Host]) -> None:
    host = make_host(commit_after_s=0.0)
    host.send("stream", accept=True, delay=0.2, status=503, stream=True)
    host.send("plain", accept=True, delay=0.2, status=503)
    host.run()
    assert host.replies["stream"][0].headers["Content-Type"].startswith("text/event-stream")
    assert host.body("stream") == b'data: {"error":{"code":503}}\n\ndata: [DONE]\n\n'
    assert host.body("plain") == b'{"error":{"code":503}}'


def _anthropic_error(body: bytes) -> dict[str, Any]:
    """What Anthropic's clients read of a stream that is nothing but an error."""
    kind, data = body.decode().removesuffix("\n\n").split("\n")
    assert kind == "event: error"
    told = json.loads(data.removeprefix("data: "))
    assert told["type"] == "error"
    return told["error"]


@pytest.mark.parametrize("path", ["/v1/messages", PATH])
def test_an_error_after_the_commitment_has_its_routes_own_form(make_host: Callable[..., Host], path: str) -> None:
    host = make_host(commit_after_s=0.0)
    host.send("refused", path=path, accept=True, delay=0.2, status=503, stream=True)
    host.send("fault", path=path, accept=True, delay=0.2, stream=True, **{"raise": True})
    host.run()
    assert all(host.replies[name][0].status == 200 for name in ("refused", "fault"))
    if path == PATH:
        assert b'"type":"InternalServerError"' in host.body("fault")
        assert all(host.body(name).endswith(b"}\n\ndata: [DONE]\n\n") for name in ("refused", "fault"))
        return
    assert host.body("refused") == b'event: error\ndata: {"error":{"code":503}}\n\n', "the service's own body"
    error = _anthropic_error(host.body("fault"))
    assert error["type"] == "api_error" and "script" not in error["message"]


def test_an_error_before_the_commitment_has_its_routes_own_form(host: Host) -> None:
    host.send("fault", path="/v1/messages", **{"raise": True})
    host.run()
    assert host.replies["fault"][0].status == 500
    assert json.loads(host.body("fault"))["error"]["type"] == "api_error"


def test_what_an_orphan_is_told_has_its_routes_own_form(
    make_host: Callable[..., Host], service: ScriptedService
) -> None:
    host = make_host(quiet_s=0.2, commit_after_s=0.0)
    host.send("a", path="/v1/messages", accept=True, delay=30.0, stream=True)
    host.call_until(lambda: bool(host.replies["a"]))
    wait_until(lambda: service.num_running == 0, timeout_s=3, what="the watchdog")
    host.run()
    assert _anthropic_error(host.body("a"))["type"] == "overloaded_error"


def test_unanswered_request_is_committed_in_time_to_see_its_client_go(make_host: Callable[..., Host]) -> None:
    host = make_host(commit_after_s=0.05)
    host.send("a", accept=True, delay=0.3, bytes=3)
    host.run()
    first, *rest = host.replies["a"]
    assert (first.status, first.body, first.more) == (200, b"", True)
    assert rest[-1].more is False
    assert host.body("a") == b"xxx"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [({"stream": True, "frames": 1}, "text/event-stream"), ({"bytes": 1}, "application/json")],
)
def test_early_commit_guesses_the_content_type(
    make_host: Callable[..., Host], body: dict[str, Any], content_type: str
) -> None:
    host = make_host(commit_after_s=0.0)
    host.send("a", accept=True, delay=0.1, **body)
    host.run()
    assert host.replies["a"][0].headers["Content-Type"].startswith(content_type)


def test_call_waits_a_moment_at_most(host: Host) -> None:
    host.send("a", delay=5.0)
    start_s = time.monotonic()
    host.call()
    assert 0.02 < time.monotonic() - start_s < 0.5


def test_many_requests_share_calls(host: Host) -> None:
    for number in range(40):
        host.send(f"s{number}", frames=5, gap=0.02)
        host.send(f"p{number}", delay=0.05, bytes=number)
    start_s = time.monotonic()
    host.run()
    assert time.monotonic() - start_s < 5
    assert all(host.body(f"s{number}").endswith(b"data: 4\n\n") for number in range(40))
    assert all(len(host.body(f"p{number}")) == number for number in range(40))
    assert host.pump.num_live == 0


def test_frames_of_one_step_travel_together(host: Host, service: ScriptedService) -> None:
    for number in range(20):
        host.send(f"s{number}", frames=1, step=True)
    while service.num_waiting < 20:
        host.call()
    before = {request_id: len(replies) for request_id, replies in host.replies.items()}
    host.pump._loop.call_soon_threadsafe(service.release)
    end_s = time.monotonic() + 5
    while not any(host.body(request_id) for request_id in host.replies):
        assert time.monotonic() < end_s
        before = {request_id: len(replies) for request_id, replies in host.replies.items()}
        host.call()
    assert all(host.body(request_id) == b"data: 0\n\n" for request_id in host.replies)
    assert all(len(host.replies[request_id]) == count + 1 for request_id, count in before.items())


def test_vanished_request_is_aborted_while_others_run(host: Host, service: ScriptedService) -> None:
    host.send("gone", frames=1000, gap=0.02)
    host.send("stays", frames=10, gap=0.03)
    host.send("waits", delay=30.0)
    for _ in range(3):
        host.call()
    assert service.num_running == 3
    del host.live["gone"], host.live["waits"]
    host.call()
    wait_until(lambda: service.num_running == 1, timeout_s=1, what="the abort")
    host.run()
    assert host.body("stays").endswith(b"data: 9\n\n")


def test_orphans_are_aborted_when_the_host_falls_silent(
    make_host: Callable[..., Host], service: ScriptedService
) -> None:
    host = make_host(quiet_s=0.3)
    host.send("stream", frames=1000, gap=0.01)
    host.send("plain", delay=30.0)
    host.call()
    wait_until(lambda: service.num_running == 0, timeout_s=3, what="the watchdog")


def test_host_that_was_only_slow_gets_an_error_for_what_was_aborted(
    make_host: Callable[..., Host], service: ScriptedService
) -> None:
    host = make_host(quiet_s=0.2)
    host.send("stream", frames=1000, gap=0.01)
    host.send("plain", delay=30.0)
    host.call()
    time.sleep(0.1)
    host.call()
    assert host.replies["stream"] and not host.replies["plain"]
    wait_until(lambda: service.num_running == 0, timeout_s=3, what="the watchdog")
    host.run()
    assert host.replies["plain"][0].status == 503
    assert host.replies["stream"][-1].more is False
    assert host.body("stream").endswith(b"data: [DONE]\n\n")
    assert b'"code":503' in host.body("stream")
    host.send("next", bytes=2)
    host.run()
    assert host.body("next") == b"xx"


def test_busy_host_is_never_taken_for_silent(make_host: Callable[..., Host]) -> None:
    host = make_host(quiet_s=0.2)
    host.send("a", delay=1.0, bytes=2)
    host.run()
    assert host.body("a") == b"xx"


def test_request_that_the_pump_does_not_know_is_ended(host: Host) -> None:
    replies = host.pump.exchange(["old"], lambda index: None)
    assert replies == [Reply(b"", False)]


def test_long_replies_come_in_pieces(make_host: Callable[..., Host]) -> None:
    host = make_host(max_reply_bytes=100)
    host.send("plain", bytes=1050)
    host.send("stream", frames=3, bytes=150)
    host.run()
    assert host.body("plain") == b"x" * 1050
    assert host.body("stream").count(b"data: ") == 3
    pieces = [reply.body for replies in host.replies.values() for reply in replies]
    assert max(map(len, pieces)) <= 100


def test_service_that_breaks_its_promise_costs_one_request(host: Host) -> None:
    host.send("bad", **{"raise": True})
    host.send("good", frames=3, gap=0.02)
    host.run()
    assert host.replies["bad"][0].status == 500
    assert b"as the script says" not in host.body("bad")
    assert host.body("good").endswith(b"data: 2\n\n")


def test_request_that_cannot_be_read_costs_one_request(host: Host) -> None:
    def read(index: int) -> HttpRequest:
        if index == 0:
            raise UnicodeError("as the test says")
        return HttpRequest(PATH, body={"bytes": 1})

    bad, _ = host.pump.exchange(["bad", "good"], read)
    assert bad is not None and (bad.status, bad.more) == (500, None)


def test_close_aborts_and_stops(service: ScriptedService) -> None:
    pump = Pump(service, max_reply_bytes=100)
    host = Host(pump)
    host.send("a", frames=1000, gap=0.01)
    host.call()
    pump.close()
    assert service.num_running == 0


def test_streams_without_output_are_only_probed(make_host: Callable[..., Host]) -> None:
    host = make_host(wait_s=0.005)
    host.send("slow", frames=2, gap=0.5)
    host.run()
    empty = [reply for reply in host.replies["slow"] if not reply.body]
    assert host.body("slow").count(b"data: ") == 2
    # About a second at one exchange in 5 ms: without the withholding these would be two hundred.
    assert 2 <= len(empty) <= 40


def test_waits_grow_with_the_steps_and_shrink_with_them(make_host: Callable[..., Host]) -> None:
    host = make_host(wait_s=0.001)
    host.send("stream", frames=6, gap=0.05)
    num_calls = 0
    while host.live:
        host.call()
        num_calls += 1
    # Six steps of 50 ms, and waits of 37 ms but before the first: at 1 ms each these would be three hundred.
    assert num_calls < 120
    assert 0.03 < host.pump._pace_s < 0.5
    host.send("next", bytes=1)
    host.run()
    assert host.pump._pace_s == 0.0
