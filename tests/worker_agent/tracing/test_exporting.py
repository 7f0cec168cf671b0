"""Traces as the standard variables ask for them: off by default; whatever is wrong is told once and stops nothing."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.ports import free_port
from tests.support.trace_collector import Collector, collecting
from worker_agent.tracing.context import TraceContext
from worker_agent.tracing.exporting import start_tracing
from worker_agent.tracing.spans import Kind, Tracing

_PARENT = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True)
Start = Callable[..., Tracing | None]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts tracing with these variables, in the environment as the SDK reads it."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    started: list[Tracing] = []

    def begin(**variables: str) -> Tracing | None:
        for name, value in variables.items():
            monkeypatch.setenv(f"OTEL_{name}", value)
        tracing = start_tracing("convener-test")
        if tracing is not None:
            started.append(tracing)
        return tracing

    yield begin
    for tracing in started:
        tracing.close_within(5)


def _make(tracing: Tracing, count: int = 1, parent: TraceContext | None = None) -> None:
    for number in range(count):
        span = tracing.start(f"span {number}", Kind.INTERNAL, parent)
        if span is not None:
            tracing.end(span)


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("worker_agent.tracing")]


def _until_told(caplog: pytest.LogCaptureFixture, count: int) -> list[str]:
    end = time.monotonic() + 60
    while len(_told(caplog)) < count and time.monotonic() < end:
        time.sleep(0.02)
    return _told(caplog)


def test_nothing_is_imported_where_nobody_asks_for_traces() -> None:
    code = (
        "import sys; from worker_agent.tracing.exporting import start_tracing; import worker_agent.daemon;"
        "assert start_tracing('x', {'OTEL_SERVICE_NAME': 'x'}) is None;"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize("variables", [{"TRACES_EXPORTER": "none"}, {"SDK_DISABLED": "TRUE"}])
def test_the_standard_ways_to_switch_them_off(
    start: Start, variables: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert start(EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **variables) is None
    assert not _told(caplog)


def test_spans_come_to_the_collector_with_parents_and_names(start: Start) -> None:
    with collecting() as collector:
        tracing = start(EXPORTER_OTLP_ENDPOINT=collector.url, RESOURCE_ATTRIBUTES="deployment.environment.name=lab")
        assert tracing is not None
        outer = tracing.start("outer", Kind.PRODUCER, _PARENT, link=_PARENT, at=5)
        assert outer is not None
        inner = tracing.start("inner", Kind.CLIENT, outer.context)
        assert inner is not None
        inner.attributes["words"] = ["a", "b"]
        tracing.end(inner, error="timeout")
        tracing.end(outer, at=3)
        received = {span.name: span for span in collector.wait_for(2)}
    assert collector.paths == ["/v1/traces"] * len(collector.paths)
    assert {span.trace_id for span in received.values()} == {_PARENT.trace_id}
    assert received["outer"].parent_id == _PARENT.span_id
    assert received["outer"].links == [_PARENT.span_id]
    assert (received["outer"].began_at, received["outer"].ended_at) == (5, 5), "no span ends before it begins"
    assert received["inner"].parent_id == received["outer"].span_id
    assert received["inner"].is_error
    assert received["inner"].attributes == {"words": ["a", "b"], "error.type": "timeout"}
    assert {span.service for span in received.values()} == {"convener-test"}


def test_the_name_of_the_service_can_be_another(start: Start) -> None:
    with collecting() as collector:
        tracing = start(EXPORTER_OTLP_ENDPOINT=collector.url, SERVICE_NAME="lab")
        assert tracing is not None
        _make(tracing)
        assert collector.wait_for(1)[0].service == "lab"


def test_the_sampler_of_the_variables_counts(start: Start) -> None:
    tracing = start(
        EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", TRACES_SAMPLER="parentbased_traceidratio", TRACES_SAMPLER_ARG="0.1"
    )
    assert tracing is not None
    sampled = sum(tracing.start("x", Kind.INTERNAL) is not None for _ in range(5000))
    assert 350 < sampled < 650
    assert tracing.start("x", Kind.INTERNAL, _PARENT) is not None
    assert tracing.start("x", Kind.INTERNAL, _PARENT._replace(is_sampled=False)) is None


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TRACES_EXPORTER": "zipkin"}, "use otlp, console or none"),
        ({"TRACES_EXPORTER": "otlp", "EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"TRACES_EXPORTER": "otlp", "EXPORTER_OTLP_PROTOCOL": "grpc"}, "opentelemetry-exporter-otlp-proto-grpc"),
        ({"TRACES_EXPORTER": "otlp", "BSP_MAX_QUEUE_SIZE": "many"}, "cannot be followed"),
        ({"TRACES_EXPORTER": "otlp", "BSP_SCHEDULE_DELAY": "-1"}, "cannot be followed"),
    ],
)
def test_what_cannot_be_followed_is_told_once_and_there_are_no_traces(
    start: Start, caplog: pytest.LogCaptureFixture, variables: dict[str, str], words: str
) -> None:
    assert start(**variables) is None
    (line,) = _told(caplog)
    assert words in line


@pytest.mark.parametrize(
    "variable", ["TRACES_SAMPLER", "EXPORTER_OTLP_TIMEOUT", "EXPORTER_OTLP_COMPRESSION", "RESOURCE_ATTRIBUTES"]
)
def test_a_value_that_is_none_is_told_of_and_the_default_counts(
    start: Start, caplog: pytest.LogCaptureFixture, variable: str
) -> None:
    assert start(EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **{variable: "odd-one"}) is not None
    (line,) = _told(caplog)
    assert "odd-one" in line


def test_packages_that_are_not_there_are_told_of(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    code = (
        "import sys; sys.modules['opentelemetry.sdk'] = None; import logging; logging.basicConfig();"
        "from worker_agent.tracing.exporting import start_tracing;"
        "assert start_tracing('x', {'OTEL_TRACES_EXPORTER': 'otlp'}) is None"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install 'convener[otel]'" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_collector_that_is_away_costs_one_line_until_it_is_back(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    port = free_port()
    tracing = start(EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}", EXPORTER_OTLP_TIMEOUT="0.2")
    assert tracing is not None
    _make(tracing)
    (line,) = _until_told(caplog, 1)
    assert "takes none" in line
    _make(tracing, 2000)
    with collecting(port) as collector:
        while not collector.spans:
            _make(tracing)
            time.sleep(0.1)
        assert len(_until_told(caplog, 2)) == 2
    assert "again" in _told(caplog)[1]
    assert all(record.name.startswith("worker_agent") for record in caplog.records), "the SDK itself says nothing"


def test_refusals_are_told_once_with_their_reason(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with collecting() as collector:
        collector.status = 401
        tracing = start(EXPORTER_OTLP_ENDPOINT=collector.url, EXPORTER_OTLP_HEADERS="authorization=Bearer%20hush-hush")
        assert tracing is not None
        for number in range(1, 4):
            _make(tracing)
            _until_batches(collector, number)
        (line,) = _until_told(caplog, 1)
    assert "401" in line
    assert "hush" not in line


@pytest.mark.parametrize(
    "headers", ["hush-hush", "authorization=Bearer%20hush-hush%0A", "hush-hush%0A=x", "a=b,hush-hush"]
)
def test_no_line_shows_a_header_that_cannot_be_sent(
    start: Start, caplog: pytest.LogCaptureFixture, headers: str
) -> None:
    with collecting() as collector:
        collector.status = 500
        tracing = start(EXPORTER_OTLP_ENDPOINT=collector.url, EXPORTER_OTLP_HEADERS=headers)
        assert tracing is not None
        _make(tracing)
        lines = _until_told(caplog, 1)
        tracing.close_within(10)
    assert lines
    assert "hush" not in caplog.text


def test_a_queue_that_is_full_loses_spans_and_nothing_else(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    with collecting() as collector:
        tracing = start(
            EXPORTER_OTLP_ENDPOINT=collector.url,
            BSP_MAX_QUEUE_SIZE="64",
            BSP_MAX_EXPORT_BATCH_SIZE="32",
            BSP_SCHEDULE_DELAY="60000",
        )
        assert tracing is not None
        _make(tracing, 20_000)
        tracing.close_within(30)
        assert 0 < len(collector.spans) < 20_000
    assert len(_told(caplog)) <= 1, "told once, when a batch has come after it"


def test_a_collector_that_takes_for_ever_keeps_no_end_waiting(start: Start) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing = start(EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert tracing is not None
        _make(tracing, 1000)
        began_at = time.monotonic()
        tracing.close_within(0.2)
        assert time.monotonic() - began_at < 5, "the exporter's own patience is 10 s"


def _until_batches(collector: Collector, count: int) -> None:
    end = time.monotonic() + 60
    while collector.batches < count and time.monotonic() < end:
        time.sleep(0.02)
    assert collector.batches >= count
