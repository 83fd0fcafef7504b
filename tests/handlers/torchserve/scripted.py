"""Stand-ins for both sides of the pump: a service that answers by script, and TorchServe's context of one call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from paged_backend.handlers.openai.wire import STREAM_TYPE, HttpRequest, HttpResponse, json_response


class ScriptedService:
    """Does what a request's body says.

    With `accept` the request is accepted at once. `delay` seconds pass first. Then `status` gives a JSON error;
    `frames` gives a stream of so many numbered frames, `gap` seconds apart, or with `step` one at each `release`;
    `bytes` gives a body of that size; `raise` breaks the service's promise.
    """

    def __init__(self) -> None:
        self.requests: list[HttpRequest] = []
        self.num_running = 0
        self.num_waiting = 0
        self._step = asyncio.Event()

    def release(self) -> None:
        """Lets every stream that waits send a frame."""
        self._step.set()
        self._step.clear()

    async def handle(self, request: HttpRequest) -> HttpResponse:
        self.requests.append(request)
        body = request.body
        assert isinstance(body, Mapping)
        if body.get("accept"):
            assert request.on_accepted is not None
            request.on_accepted()
        self.num_running += 1
        try:
            await asyncio.sleep(body.get("delay", 0))
        finally:
            self.num_running -= 1
        if "raise" in body:
            raise RuntimeError("as the script says")
        if "status" in body:
            return json_response({"error": {"code": body["status"]}}, status=body["status"])
        if "frames" in body:
            gap_s = None if body.get("step") else body.get("gap", 0.0)
            stream = self._frames(body["frames"], gap_s, body.get("bytes", 0))
            return HttpResponse(200, {"Content-Type": STREAM_TYPE}, stream=stream)
        return HttpResponse(200, {"Content-Type": "application/json"}, b"x" * body.get("bytes", 1))

    async def _frames(self, count: int, gap_s: float | None, size: int) -> AsyncIterator[bytes]:
        self.num_running += 1
        try:
            for number in range(count):
                if gap_s is None:
                    self.num_waiting += 1
                    await self._step.wait()
                else:
                    await asyncio.sleep(gap_s)
                yield f"data: {number}{'x' * size}\n\n".encode()
        finally:
            self.num_running -= 1


class ScriptedEngine:
    """Healthy until told otherwise."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.drained_s: list[float] = []
        self.given_up: list[str] = []
        self.num_shutdowns = 0

    def check_health(self, stall_timeout_s: float | None = None) -> None:
        if self.fault is not None:
            raise self.fault

    def give_up(self, reason: str) -> None:
        self.given_up.append(reason)

    def drain(self, timeout_s: float) -> bool:
        self.drained_s.append(timeout_s)
        return True

    def shutdown(self) -> None:
        self.num_shutdowns += 1


class ScriptedContext:
    """TorchServe's context, and what TorchServe does with a call's results."""

    def __init__(self, model_yaml_config: Mapping[str, Any], *, batch_size: int = 8) -> None:
        self.model_name = "scripted"
        self.model_yaml_config = model_yaml_config
        self.system_properties = {"batch_size": batch_size}
        self.request_ids: dict[int, str] = {}
        self.stopping_criteria: list[Callable[[Any], bool | None]] | None = None
        self._headers: list[Mapping[str, Any]] = []
        self.statuses: dict[int, int] = {}
        self.response_headers: dict[int, dict[str, str]] = {}

    def start_call(self, requests: Mapping[str, Mapping[str, Any]]) -> None:
        """A call with these requests: headers by id, none for what the backend knows already."""
        self.request_ids = dict(enumerate(requests))
        self._headers = list(requests.values())
        self.statuses = {}
        self.response_headers = {}

    def get_all_request_header(self, idx: int) -> Mapping[str, Any]:
        return self._headers[idx]

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        self.statuses[idx] = code

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.response_headers.setdefault(idx, {})[key] = value

    def replies(self, bodies: list[bytes]) -> dict[str, tuple[bytes, bool | None]]:
        """What TorchServe would write, by request id: the bytes, and what the stopping criterion says."""
        assert self.stopping_criteria is not None
        return {
            request_id: (bodies[index], self.stopping_criteria[index](bodies[index]))
            for index, request_id in self.request_ids.items()
        }
