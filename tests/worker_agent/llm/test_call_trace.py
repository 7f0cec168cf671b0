"""Spans of calls to language models: one for each call, by the conventions, and never a word of what was asked."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.worker_agent.llm.conftest import Start, raw, wait_until_settled
from tests.worker_agent.llm.provider import MESSAGES, Act, Provider, cuts_the_stream, refuses, says
from worker_agent.llm.call_trace import CallTraces
from worker_agent.llm.requests import Question
from worker_agent.llm.task_keys import TaskKey
from worker_agent.tracing.context import TraceContext, read_traceparent
from worker_agent.tracing.spans import Kind, Span, Tracing
from worker_agent.wire import Lease

_TASK = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True)


@dataclass(slots=True)
class _Spans:
    """Everything that has ended."""

    ended: list[Span] = field(default_factory=list)

    @property
    def tracing(self) -> Tracing:
        return Tracing(lambda parent, *_: parent is not None and parent.is_sampled, self.ended.append)


@pytest.fixture
def spans() -> _Spans:
    return _Spans()


def _ask(start: Start, spans: _Spans, *script: Act, calls: int = 1, trace: str = _TASK.text, **body: Any) -> Any:
    bench = start(Provider.of(*script), tracing=spans.tracing)
    secret = bench.access(trace=trace).environment["OPENAI_API_KEY"]
    raw(bench, {"messages": MESSAGES, **body}, secret)
    wait_until_settled(bench, calls)
    return bench


def test_a_call_is_a_span_by_the_conventions(start: Start, spans: _Spans) -> None:
    bench = _ask(start, spans, says("Because of gravity."), temperature=0.5, max_tokens=50, seed=2**70, top_p="x")
    (span,) = spans.ended
    assert (span.name, span.kind, span.parent, span.error) == ("chat gpt-4.1", Kind.CLIENT, _TASK, None)
    assert bench.upstream.requests[0].headers["traceparent"] == span.context.text
    port = span.attributes.pop("server.port")
    assert bench.upstream.url.endswith(f":{port}")
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4.1",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "gpt-4.1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "server.address": "127.0.0.1",
    }


def test_a_stream_is_a_span_up_to_its_end(start: Start, spans: _Spans) -> None:
    _ask(start, spans, says("Because of gravity."), stream=True)
    (span,) = spans.ended
    assert span.error is None
    assert span.attributes["gen_ai.usage.output_tokens"] == 3
    assert span.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert span.attributes["gen_ai.response.id"] == "1"


@pytest.mark.parametrize(
    ("trouble", "error", "status"), [(refuses(500), "500", 500), (refuses(429), "429", 429), (refuses(200), None, 200)]
)
def test_each_try_is_a_span(start: Start, spans: _Spans, trouble: Act, error: str | None, status: int) -> None:
    _ask(start, spans, trouble, says("Because."), calls=2)
    first, second = spans.ended
    assert first.error == (error or str(status))
    assert first.attributes["http.response.status_code"] == status
    assert second.error is None
    assert {span.parent for span in spans.ended} == {_TASK}


def test_a_stream_that_breaks_off_is_an_error(start: Start, spans: _Spans) -> None:
    _ask(start, spans, cuts_the_stream, stream=True)
    assert spans.ended[0].error == "server_error"


def test_what_is_not_recorded_goes_on_as_it_came(start: Start, spans: _Spans) -> None:
    unsampled = _TASK._replace(is_sampled=False).text
    bench = _ask(start, spans, says("Because."), trace=unsampled)
    assert bench.upstream.requests[0].headers["traceparent"] == unsampled
    assert not spans.ended


@pytest.mark.parametrize(
    ("own", "counts"),
    [
        (_TASK._replace(span_id="1" * 16), True),
        (_TASK._replace(trace_id="1" * 32), False),
        (_TASK._replace(span_id="1" * 16, is_sampled=False), False),
    ],
)
def test_the_callers_own_span_is_the_parent_within_the_trace_of_its_task(own: TraceContext, counts: bool) -> None:
    lease = Lease(task_id="t", token=1, agent_type="ranking", trace_context=_TASK.text)
    key = TaskKey(secret="s", lease=lease, ends_at=0.0)
    question = Question(body={}, task_key=key, model="m", traceparent=own.text)
    assert read_traceparent(question.trace_context) == (own if counts else _TASK)


def test_nothing_of_what_a_gateway_answers_is_too_much(spans: _Spans) -> None:
    trace = CallTraces(spans.tracing, "https://[::1]/v1").begin({"model": "m"}, _TASK.text)
    long = "\ud800" + "x" * 10_000
    for choices in (None, "stop", [None, 3], [{"finish_reason": long}, {"finish_reason": 7}] * 1000):
        trace.add_answer({"id": long, "model": ["m"], "choices": choices})
    assert trace.span is not None
    assert len(json.dumps(trace.span.attributes)) < 10_000
    assert trace.span.attributes["server.port"] == 443
