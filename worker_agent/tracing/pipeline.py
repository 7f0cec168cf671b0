"""The way of spans to a collector by the OpenTelemetry SDK: a bounded queue, a thread, an exporter.

A queue that is full, a collector that is away, or one that takes nothing costs spans and one line of the log.
"""

import importlib
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
    SpanExportResult,
)

from worker_agent.tracing import sdk_spans
from worker_agent.tracing.exporting import without_headers
from worker_agent.tracing.spans import Span, Tracing

log = logging.getLogger(__name__)
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}
_QUEUE_SIZE = "OTEL_BSP_MAX_QUEUE_SIZE"
# A batch of 1,000 tasks, and claims of hundreds, end their spans all at once; each has about 1 KB until it is sent.
_DEFAULT_QUEUE_SIZE = 16_384
_REASON_CHARACTERS = 300


def open_pipeline(service: str, environment: Mapping[str, str]) -> Tracing:
    """Tracing whose spans go where the variables say. Raises ImportError, ValueError, and whatever the SDK raises."""
    # Its messages come with every batch that fails; here they are heard, and what they mean is told once.
    messages, notes = logging.getLogger("opentelemetry"), _Notes(environment)
    messages.handlers, messages.propagate = [notes], False
    resource = sdk_spans.resource(service)
    # Nothing of it but how it samples, as its spans cost several times as much as ours.
    sampler = sdk_spans.sampler(TracerProvider(resource=resource, shutdown_on_exit=False))
    capacity = int(environment.get(_QUEUE_SIZE) or _DEFAULT_QUEUE_SIZE)
    exporter = WatchedExporter(_exporter(environment), notes)
    processor = BatchSpanProcessor(exporter, max_queue_size=capacity)
    convert = sdk_spans.Converter(resource)
    for message in notes.take():
        log.warning("traces: %s", message)

    def send(span: Span) -> None:
        # A full queue would make room and log that, which costs more than the span did.
        if exporter.queued - exporter.taken >= capacity:
            exporter.dropped += 1
            return
        exporter.queued += 1
        processor.on_end(convert(span))

    def close_within(seconds: float) -> None:
        # The processor itself would wait for half a minute, and for a collector that is away in vain.
        closing = threading.Thread(target=processor.shutdown, name="last traces", daemon=True)
        closing.start()
        closing.join(0 if exporter.is_failing else seconds)

    return Tracing(sampler, send, close_within)


def _exporter(environment: Mapping[str, str]) -> SpanExporter:
    """The exporter that the variables name. Raises ValueError, ImportError."""
    name = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"
    if name == "console":
        return ConsoleSpanExporter()
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER is {name!r}: use otlp, console or none")
    words = (environment.get(variable, "").strip().lower() for variable in _PROTOCOLS)
    protocol = next(filter(None, words), "http/protobuf")
    if protocol not in _EXPORTERS:
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}: use {' or '.join(_EXPORTERS)}")
    try:
        exporter: SpanExporter = importlib.import_module(_EXPORTERS[protocol]).OTLPSpanExporter()
    except ModuleNotFoundError:
        if protocol == "http/protobuf":
            raise
        message = "OTEL_EXPORTER_OTLP_PROTOCOL=grpc needs the package opentelemetry-exporter-otlp-proto-grpc"
        raise ValueError(f"{message}; or use http/protobuf") from None
    return exporter


class _Notes(logging.Handler):
    """Hears what the packages of OpenTelemetry log."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__()
        self._environment = environment
        self._messages: deque[str] = deque(maxlen=5)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            message = without_headers(record.getMessage(), self._environment)
            self._messages.append(message[:_REASON_CHARACTERS])

    def take(self) -> list[str]:
        """The latest messages, each once."""
        messages = list(dict.fromkeys(self._messages))
        self._messages.clear()
        return messages


class WatchedExporter(SpanExporter):
    """Passes batches of spans on to an exporter, and logs once when they are not taken, and when they are again.

    `queued` and `dropped` are counted by whoever ends spans, `taken` here, so that no two threads count one thing.
    """

    def __init__(self, exporter: SpanExporter, notes: _Notes) -> None:
        self._exporter = exporter
        self._notes = notes
        self._dropped_before = 0
        self.queued = self.taken = self.dropped = 0
        self.is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Pass a batch on; whatever comes of it, it is over then."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._notes.emit(logging.makeLogRecord({"msg": repr(error), "levelno": logging.ERROR}))
            result = SpanExportResult.FAILURE
        self.taken += len(spans)
        self._tell(is_failing=result is not SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Give up what is under way."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is kept here."""
        return self._exporter.force_flush(timeout_millis)

    def _tell(self, *, is_failing: bool) -> None:
        reasons = self._notes.take()
        if is_failing and not self.is_failing:
            reason = reasons[-1] if reasons else "no reason was given"
            log.warning("the collector of traces takes none; they are dropped until it does, work goes on: %s", reason)
        elif self.is_failing and not is_failing:
            log.warning("the collector takes traces again")
        elif not is_failing and self.dropped > self._dropped_before == 0:
            log.warning("spans come faster than the collector takes them, and some are dropped; sample less of them")
        self.is_failing, self._dropped_before = is_failing, self.dropped
