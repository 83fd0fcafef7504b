"""A receiver of traces: OTLP over HTTP on a free port of this machine, which keeps what comes."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TIMEOUT_S = 30.0


class OtlpReceiver:
    """What has come so far.

    Attributes:
        endpoint: where to send it.
        services: names of the services that sent.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.services: set[str] = set()
        self._spans: list[Span] = []
        self._changed = threading.Condition()

    def take(self, body: bytes) -> None:
        """A request's body."""
        with self._changed:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                told = {attribute.key: attribute.value for attribute in resource.resource.attributes}
                self.services.add(told["service.name"].string_value)
                for scope in resource.scope_spans:
                    self._spans.extend(scope.spans)
            self._changed.notify_all()

    def spans(self, name: str, count: int = 1, *, trace_id: str = "") -> list[Span]:
        """The spans of a name, and of a trace if it is given, in order of their beginning, when there are so many."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._named(name, trace_id)) >= count, TIMEOUT_S)
            found = self._named(name, trace_id)
        assert len(found) == count, f"{len(found)} spans {name!r}"
        return found

    def children(self, parent: Span) -> list[Span]:
        """The spans inside one, in order of their beginning."""
        with self._changed:
            inside = [span for span in self._spans if span.parent_span_id == parent.span_id]
        return sorted(inside, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))

    def _named(self, name: str, trace_id: str) -> list[Span]:
        found = [span for span in self._spans if span.name == name and trace_id in ("", span.trace_id.hex())]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


def attributes(span: Span) -> dict[str, Any]:
    """A span's attributes as plain values."""
    return {attribute.key: _plain(attribute.value) for attribute in span.attributes}


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """A receiver, as long as it is entered."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.take(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = OtlpReceiver(f"http://127.0.0.1:{server.server_port}/v1/traces")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_plain(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)
