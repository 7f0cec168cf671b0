"""A collector of traces on loopback, which takes OTLP over HTTP as any other does, and shows what has come."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedSpan:
    """A span as it came over the wire; identifiers in hexadecimal, times in nanoseconds, links by their span."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    began_at: int
    ended_at: int
    is_error: bool
    attributes: dict[str, Any]
    links: list[str]

    @property
    def operation(self) -> str:
        """The first word of its name."""
        return self.name.split()[0]


@dataclass(slots=True)
class Collector:
    """A running collector; `status` is what it answers with."""

    url: str
    status: int = 200
    batches: int = 0
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def spans(self) -> list[ReceivedSpan]:
        """All that have come."""
        return [span for body in list(self.bodies) for span in _spans(body)]

    def traces(self) -> dict[str, list[ReceivedSpan]]:
        """Them by their traces."""
        traces = defaultdict(list)
        for span in self.spans:
            traces[span.trace_id].append(span)
        return traces

    def wait_for(self, count: int, seconds: float = 60) -> list[ReceivedSpan]:
        """The spans, once so many have come."""
        end = time.monotonic() + seconds
        while len(self.spans) < count and time.monotonic() < end:
            time.sleep(0.05)
        assert len(self.spans) >= count, sorted(span.name for span in self.spans)
        return self.spans


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """A collector, ended with the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.batches += 1
            if collector.status == 200:
                collector.paths.append(self.path)
                collector.bodies.append(body)
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the server calls
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _spans(body: bytes) -> Iterator[ReceivedSpan]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _values(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    service=service,
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    kind=span.kind,
                    began_at=span.start_time_unix_nano,
                    ended_at=span.end_time_unix_nano,
                    is_error=span.status.code == 2,
                    attributes=_values(span.attributes),
                    links=[link.span_id.hex() for link in span.links],
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
