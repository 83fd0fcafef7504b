"""The middleware: bodies are bounded, clients that leave are noticed, errors have one shape."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.types import Receive, Scope, Send

from paged_backend.errors import InvalidRequestError, QueueFullError
from paged_backend.handlers.access.gate import Gate
from paged_backend.handlers.bento.edge import CURRENT_EXCHANGE, STATUS_CLIENT_LEFT, EdgeMiddleware
from tests.handlers.bento.connection import Connection
from tests.handlers.openai.conftest import gate_of

NATIVE = frozenset({"/generate"})
LIMIT = 100


class App:
    """An application that does one thing.

    Attributes:
        cancelled: how many of its runs were cancelled.
        aborted: how often its abort was called.
        body: what the last run read.
    """

    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour
        self.cancelled = 0
        self.aborted = 0
        self.body = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body = (await receive())["body"]
        exchange = CURRENT_EXCHANGE.get()
        if exchange is not None:
            exchange.on_client_left(self._abort)
        try:
            await getattr(self, f"_{self.behaviour}")(send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def _abort(self) -> None:
        self.aborted += 1

    async def _answer(self, send: Send, status: int = 200, body: bytes = b"done") -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body[:2], "more_body": True})
        await send({"type": "http.response.body", "body": body[2:], "more_body": False})

    async def _wait(self, send: Send) -> None:
        await asyncio.sleep(60)

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.01)

    async def _answer_then_work(self, send: Send) -> None:
        await self._answer(send)
        await asyncio.sleep(0.05)  # as BentoML's background tasks do

    async def _refuse(self, send: Send) -> None:
        exchange = CURRENT_EXCHANGE.get()
        assert exchange is not None
        exchange.refuse(InvalidRequestError("temperature is wrong.", param="temperature"))
        await self._answer(send, 200, b"must not be seen")

    async def _refuse_for_now(self, send: Send) -> None:
        exchange = CURRENT_EXCHANGE.get()
        assert exchange is not None
        exchange.refuse(QueueFullError("full", retry_after_s=2, reason="max_num_queued_reqs"))
        await self._answer(send, 500, b"must not be seen")

    async def _validation(self, send: Send) -> None:
        detail = {"type": "int_type", "loc": ["max_tokens"], "msg": "Input should be a valid integer"}
        await self._answer(send, 400, json.dumps({"error": "1 validation error", "detail": [detail]}).encode())

    async def _bento_500(self, send: Send) -> None:
        await self._answer(send, 500, b'{"error": "An unexpected error has occurred, secret"}')

    async def _raise(self, send: Send) -> None:
        raise ValueError("secret")


def edge(app: App, *api_keys: str, body_timeout_s: float = 60.0) -> EdgeMiddleware:
    return EdgeMiddleware(
        app,
        owns=lambda path: path in NATIVE or path.startswith("/v1/"),
        native=NATIVE,
        max_body_bytes=LIMIT,
        body_timeout_s=body_timeout_s,
        gate=lambda: gate_of(*api_keys) if api_keys else Gate(),
    )


def run(
    behaviour: str, connection: Connection, api_key: str | None = None, *, leave_after_s: float | None = None
) -> App:
    app = App(behaviour)

    async def main() -> None:
        async def leave() -> None:
            assert leave_after_s is not None
            await asyncio.sleep(leave_after_s)
            connection.leave()

        tasks = [asyncio.ensure_future(connection.run(edge(app, *([api_key] if api_key else []))))]
        if leave_after_s is not None:
            tasks.append(asyncio.ensure_future(leave()))
        await asyncio.gather(*tasks)
        left_over = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.sleep(0.01)
        assert all(task.done() for task in left_over)

    asyncio.run(main())
    return app


class TestBody:
    @pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
    def test_a_body_in_pieces_arrives_whole(self, path: str) -> None:
        connection = Connection(path, [b"ab", b"", b"cd"])
        app = run("answer", connection)
        assert (app.body, connection.status, connection.body) == (b"abcd", 200, b"done")

    def test_the_limit_itself_is_allowed(self) -> None:
        assert run("answer", Connection("/v1/x", [b"x" * LIMIT])).body == b"x" * LIMIT

    @pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
    def test_a_declared_length_above_it_is_refused_unread(self, path: str) -> None:
        connection = Connection(path, [b"x" * 60] * 3, headers={"Content-Length": "180"})
        run("answer", connection)
        assert connection.error["type"] == "ContentTooLargeError" and connection.status == 413
        assert connection.waited_for_body == 0

    def test_on_anthropics_route_the_refusal_has_its_form(self) -> None:
        connection = Connection("/v1/messages", [b"x" * 60] * 3, headers={"Content-Length": "180"})
        run("answer", connection)
        body = json.loads(connection.body)
        assert connection.status == 413 and body["type"] == "error"
        assert body["error"]["type"] == "request_too_large"

    def test_an_undeclared_one_is_refused_while_it_comes_in(self) -> None:
        connection = Connection("/v1/x", [b"x" * 60] * 100)
        run("answer", connection)
        assert connection.status == 413 and connection.waited_for_body == 2

    @pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
    @pytest.mark.parametrize("chunks", [[], [b"a", b"b"]])
    def test_a_client_that_is_silent_before_its_end_is_not_waited_for(self, path: str, chunks: list[bytes]) -> None:
        connection, app = Connection(path, chunks, unfinished=True), App("answer")
        asyncio.run(connection.run(edge(app, body_timeout_s=0.05)))
        assert connection.status == 408 and connection.error["type"] == "RequestTimeoutError"
        assert "0.05 s (body_timeout_s)" in connection.error["message"]
        assert (b"connection", b"close") in connection.sent[0]["headers"]
        assert connection.waited_for_body == len(chunks) and not app.body

    def test_other_routes_are_left_alone(self) -> None:
        connection = Connection("/elsewhere", [b"x" * (LIMIT + 1)])
        assert run("answer", connection).body == b"x" * (LIMIT + 1)


class TestClientThatLeaves:
    def test_before_the_first_byte(self) -> None:
        connection = Connection("/generate")
        app = run("wait", connection, leave_after_s=0.05)
        assert (app.cancelled, app.aborted) == (1, 1)
        # Something must be sent, or BentoML's TimeoutMiddleware waits on.
        assert connection.status == STATUS_CLIENT_LEFT

    def test_in_the_middle_of_a_stream(self) -> None:
        connection = Connection("/v1/x")
        app = run("stream", connection, leave_after_s=0.05)
        assert (app.cancelled, app.aborted, connection.status) == (1, 1, 200)

    def test_while_it_sends_the_body(self) -> None:
        connection = Connection("/v1/x", [b"a", b"b"])
        connection._chunks = []  # nothing comes any more
        app = run("answer", connection, leave_after_s=0.05)
        assert app.aborted == 0 and connection.status == STATUS_CLIENT_LEFT

    def test_the_end_of_the_response_is_no_leaving(self) -> None:
        connection = Connection("/v1/x")
        app = run("answer_then_work", connection)
        assert (app.cancelled, app.aborted) == (0, 0)

    def test_cancelling_the_whole_cancels_and_aborts(self) -> None:
        app = App("wait")

        async def main() -> None:
            task = asyncio.ensure_future(Connection("/v1/x").run(edge(app)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert (app.cancelled, app.aborted) == (1, 1)


class TestErrors:
    def test_what_the_method_refused(self) -> None:
        connection = Connection("/generate")
        run("refuse", connection)
        assert connection.status == 400
        assert connection.error == {
            "message": "temperature is wrong.",
            "type": "BadRequestError",
            "param": "temperature",
            "code": 400,
        }

    def test_headers_of_a_refusal(self) -> None:
        connection = Connection("/generate")
        run("refuse_for_now", connection)
        assert connection.status == 429
        assert (b"retry-after", b"2") in connection.sent[0]["headers"]

    def test_findings_of_pydantic(self) -> None:
        connection = Connection("/generate")
        run("validation", connection)
        assert connection.error["param"] == "body.max_tokens"
        assert "valid integer" in connection.error["message"]

    @pytest.mark.parametrize("behaviour", ["bento_500", "raise"])
    def test_our_bugs_tell_nothing(self, behaviour: str) -> None:
        connection = Connection("/generate")
        run(behaviour, connection)
        assert connection.error["type"] == "InternalServerError"
        assert b"secret" not in connection.body

    def test_a_bug_on_the_openai_routes(self) -> None:
        connection = Connection("/v1/x")
        run("raise", connection)
        assert connection.error["type"] == "InternalServerError"


class TestKey:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic key"},
            {"x-api-key": "wrong"},
            {"Authorization": "Bearer wrong", "x-api-key": "key"},
        ],
    )
    def test_the_native_api_asks_for_it(self, headers: dict[str, str]) -> None:
        connection = Connection("/generate", headers=headers)
        run("answer", connection, api_key="key")
        assert connection.status == 401 and connection.error["type"] == "AuthenticationError"

    def test_preflights_carry_none(self) -> None:
        connection = Connection("/generate", method="OPTIONS")
        run("answer", connection, api_key="key")
        assert connection.status == 200

    def test_the_right_one(self) -> None:
        for headers in ({"Authorization": "bearer key"}, {"X-API-Key": "key"}):
            connection = Connection("/generate", headers=headers)
            run("answer", connection, api_key="key")
            assert connection.status == 200

    def test_a_request_brings_the_trace_that_it_is_part_of(self) -> None:
        traces = []

        class Traced(App):
            async def _answer(self, send: Send, status: int = 200, body: bytes = b"done") -> None:
                exchange = CURRENT_EXCHANGE.get()
                assert exchange is not None
                traces.append(exchange.trace_headers)
                await super()._answer(send, status, body)

        for headers in ({"TraceParent": "00-1-2-01", "tracestate": "a=b", "Cookie": "c"}, {}):
            asyncio.run(Connection("/generate", headers=headers).run(edge(Traced("answer"))))
        assert traces == [{"traceparent": "00-1-2-01", "tracestate": "a=b"}, None]

    def test_the_openai_service_asks_by_itself(self) -> None:
        connection = Connection("/v1/x")
        run("answer", connection, api_key="key")
        assert connection.status == 200


class TestContentType:
    @pytest.mark.parametrize("content_type", ["application/vnd.bentoml+pickle", "text/plain", "multipart/form-data; x"])
    def test_the_native_api_takes_json_alone(self, content_type: str) -> None:
        connection = Connection("/generate", [b"x"], headers={"Content-Type": content_type})
        app = run("answer", connection)
        assert connection.status == 400 and connection.error["param"] == "body"
        assert "application/json" in connection.error["message"] and app.body == b""

    @pytest.mark.parametrize("headers", [{}, {"Content-Type": "Application/JSON; charset=utf-8"}])
    def test_json_and_what_does_not_say(self, headers: dict[str, str]) -> None:
        connection = Connection("/generate", headers=headers)
        run("answer", connection)
        assert connection.status == 200
