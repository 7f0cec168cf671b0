"""The span of an execution, what its handler and the log learn of it, and what its handler does not."""

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker_agent import events as ev
from worker_agent.handler_options import add_handler_options, read_rules
from worker_agent.log_lines import set_up_logging
from worker_agent.task_trace import TaskTrace
from worker_agent.tracing.context import TraceContext, at_hand, read_traceparent
from worker_agent.tracing.spans import Kind, Span, Tracing
from worker_agent.wire import Lease, Postponement, TaskError, Usage

_SUBMIT = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True)
_LEASE = Lease(task_id="t-1", token=1, agent_type="ranking", attempt=2, trace_context=_SUBMIT.text)
_USAGE = Usage(wall_seconds=1.0, cpu_seconds=0.5, max_memory_mb=20.0)
_ERROR = TaskError(code="odd\ud800\n" + "x" * 500, message="a secret", retryable=True)


@pytest.fixture(autouse=True)
def _nothing_at_hand() -> Iterator[None]:
    yield
    at_hand.context = None


def _tracing(spans: list[Span]) -> Tracing:
    return Tracing(lambda *_: True, spans.append)


@pytest.mark.parametrize(
    ("end", "outcome", "error"),
    [
        (ev.HandlerFinished({"a": "secret"}, _USAGE), "completed", None),
        (ev.HandlerFailed(_ERROR), "failed", "odd?\ufffd" + "x" * 95),
        (ev.HandlerPostponed(Postponement(seconds=1, reason="secret"), _USAGE), "postponed", None),
        (ev.HandlerNotStarted("secret"), "not_started", "not_started"),
        (ev.HandlerTimedOut(1.0, _USAGE), "timed_out", "timeout"),
        (ev.HandlerKilled(_USAGE), "killed", "killed"),
    ],
)
def test_an_execution_is_a_span(end: ev.HandlerEnd, outcome: str, error: str | None) -> None:
    spans: list[Span] = []
    trace = TaskTrace(_tracing(spans))
    lease = trace.begin(_LEASE)
    trace.end(end)
    trace.end(end)
    (span,) = spans
    assert (span.name, span.kind, span.parent, span.link) == ("execute ranking", Kind.CONSUMER, _SUBMIT, _SUBMIT)
    assert read_traceparent(lease.trace_context) == span.context
    assert lease.ref == _LEASE.ref
    assert span.attributes["convener.outcome"] == outcome
    assert span.attributes["convener.attempt"] == 2
    assert span.error == error
    assert "secret" not in str(span)


@pytest.mark.parametrize("text", [None, "no trace context", _SUBMIT._replace(is_sampled=False).text])
def test_what_is_not_recorded_goes_on_as_it_came(text: str | None) -> None:
    spans: list[Span] = []
    trace = TaskTrace(_tracing(spans))
    lease = Lease(task_id="t-1", token=1, agent_type="ranking", trace_context=text)
    assert trace.begin(lease) is lease
    trace.end(ev.HandlerKilled(_USAGE))
    assert not spans


@pytest.mark.parametrize("is_on", [True, False])
def test_log_lines_tell_of_the_trace_while_the_task_is_at_hand(is_on: bool, capsys: pytest.CaptureFixture[str]) -> None:
    trace = TaskTrace(_tracing([]) if is_on else None)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging("info", as_json=True)
        context = read_traceparent(trace.begin(_LEASE).trace_context)
        logging.info("with")
        trace.leave()
        logging.info("without")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert context is not None
    assert (first["trace_id"], first["span_id"]) == (_SUBMIT.trace_id, context.span_id)
    assert is_on == (context != _SUBMIT)
    assert not second.keys() & {"trace_id", "span_id"}


def test_handlers_do_not_see_the_key_for_the_collector(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_handler_options(parser)
    key = tmp_path / "client.pem"
    key.touch()
    rules = read_rules(
        argparse.Namespace(**vars(parser.parse_args([])), key_file=None), {"OTEL_EXPORTER_OTLP_CLIENT_KEY": str(key)}
    )
    assert str(key) in set(map(str, rules.view.hidden))
    names = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_ENDPOINT", "TRACEPARENT", "OTEL_SERVICE_NAME")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, "x")
        assert not rules.environment(str(tmp_path)).keys() & set(names)
