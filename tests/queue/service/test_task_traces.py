"""Spans of submits, waits and leases: one of each for a task whose trace is recorded, and none for others."""

import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import FrameType
from uuid import UUID, uuid4

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.states import TaskState
from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall
from app.queue.errors import GoalStopped
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.submits import SubmitService
from app.queue.service.task_traces import TaskTraces
from app.queue.service.tasks import Intake, Submitted
from app.queue.store.claims import Lease
from tests.support.factories import ready_worker, submission
from tests.support.sql import execute, fetch
from worker_agent.tracing.context import TraceContext, read_traceparent
from worker_agent.tracing.exporting import start_tracing
from worker_agent.tracing.spans import Span, Tracing

_PARENT = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True)


@dataclass(slots=True)
class _Bench:
    """The queue of one process, and the spans that it has ended."""

    database: Database
    submits: SubmitService
    broker: Broker
    spans: list[Span]
    worker: WorkerId
    samples_all: bool = True

    def of(self, operation: str) -> list[Span]:
        """The spans of submits, waits or leases."""
        return [span for span in self.spans if span.name.startswith(f"{operation} ")]

    async def lease(self, request_id: UUID | None = None) -> Lease:
        """A task for the worker."""
        call = LeaseCall(
            worker_id=self.worker,
            request_id=request_id or uuid4(),
            agent_types=frozenset(AgentType),
            acknowledge=True,
        )
        lease = await self.broker.lease(call, 30)
        assert lease is not None
        return lease


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[_Bench]:
    spans: list[Span] = []

    def samples(parent: TraceContext | None, *_: object) -> bool:
        return parent.is_sampled if parent else subject.samples_all

    traces = TaskTraces(Tracing(samples, spans.append))
    broker = Broker(database, LeasePolicy(), traces=traces)
    subject = _Bench(database, SubmitService(database, Intake(), traces), broker, spans, await ready_worker(database))
    broker.start()
    yield subject
    await broker.stop()
    await subject.submits.stop()


async def test_a_task_has_a_submit_a_wait_and_a_lease_in_one_trace(bench: _Bench) -> None:
    submitted = await bench.submits.submit(submission(trace_context=_PARENT.text, goal_id="kepler"))
    lease = await bench.lease()

    submit, wait, claim = bench.spans
    assert [span.name for span in bench.spans] == ["submit generation", "wait generation", "lease generation"]
    assert submit.parent == _PARENT
    assert lease.trace_context == submit.context.text, "what is done with the task goes on from its submit"
    assert wait.parent == claim.parent == submit.context
    assert wait.began_at <= wait.ended_at == claim.began_at <= claim.ended_at
    assert {span.attributes["messaging.message.id"] for span in bench.spans} == {str(submitted.id)}
    assert submit.attributes["convener.goal_id"] == "kepler"
    assert claim.attributes["convener.worker_id"] == str(bench.worker)


async def test_a_task_without_a_context_begins_a_trace(bench: _Bench) -> None:
    await bench.submits.submit(submission())
    lease = await bench.lease()
    assert bench.spans[0].parent is None
    assert read_traceparent(lease.trace_context) == bench.spans[0].context


async def test_what_is_not_recorded_leaves_nothing(bench: _Bench) -> None:
    bench.samples_all = False
    unsampled = _PARENT._replace(is_sampled=False).text
    for context in (None, unsampled, "no trace context"):
        await bench.submits.submit(submission(trace_context=context))
        lease = await bench.lease()
        assert lease.trace_context == context
        await execute(bench.database, "DELETE FROM tasks")
    assert not bench.spans


async def test_of_repeated_submits_only_the_first_counts(bench: _Bench) -> None:
    same = {"id": uuid4(), "payload": '{"n": 1}'}
    assert (await bench.submits.submit(submission(**same))).created
    again = await bench.submits.submit(submission(**same, traceparent=_PARENT.text))
    assert not again.created, "another trace makes no other task"
    assert len(bench.of("submit")) == 1
    assert (await bench.lease()).trace_context == bench.spans[0].context.text


async def test_each_task_of_a_batch_has_its_own_however_many_are_the_same(bench: _Bench) -> None:
    ids = [uuid4() for _ in range(3)]
    batch = [submission(id=task_id) for task_id in (ids[0], ids[1], ids[0])] + [submission(), submission()]
    await bench.submits.submit(submission(id=ids[1]))
    bench.spans.clear()

    results = await bench.submits.submit_batch(batch)

    assert [result.created for result in results] == [True, False, True, True]
    created = {str(result.id) for result in results if result.created}
    assert {span.attributes["messaging.message.id"] for span in bench.spans} == created
    assert len({span.context.trace_id for span in bench.spans}) == len(bench.spans) == 3
    stored = {
        read_traceparent(text): str(task_id)
        for task_id, text in await _contexts(bench.database)
        if str(task_id) in created
    }
    assert stored == {span.context: span.attributes["messaging.message.id"] for span in bench.spans}


async def test_a_batch_with_a_context_is_all_in_its_trace(bench: _Bench) -> None:
    await bench.submits.submit_batch([submission(traceparent=_PARENT.text) for _ in range(3)])
    assert [span.parent for span in bench.spans] == [_PARENT] * 3
    assert len({span.context.span_id for span in bench.spans}) == 3


async def test_every_attempt_has_its_own_wait_and_lease(bench: _Bench) -> None:
    await bench.submits.submit(submission())
    await bench.lease()
    await execute(bench.database, "UPDATE tasks SET state = 'pending', worker_id = NULL, failures = 1")
    await execute(bench.database, "UPDATE tasks SET lease_expires_at = NULL, leased_at = NULL, deadline_at = NULL")
    await bench.lease()
    assert [span.attributes["convener.attempt"] for span in bench.of("wait")] == [1, 2]
    assert [span.attributes["convener.attempt"] for span in bench.of("lease")] == [1, 2]


async def test_an_answer_that_is_repeated_is_no_second_lease(bench: _Bench) -> None:
    await bench.submits.submit(submission())
    request_id = uuid4()
    first, again = [await bench.lease(request_id) for _ in range(2)]
    assert first.trace_context == again.trace_context
    assert len(bench.of("lease")) == len(bench.of("wait")) == 1


async def test_a_refused_submit_has_no_span(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise GoalStopped

    monkeypatch.setattr("app.queue.service.tasks._insert", refuse)
    with pytest.raises(GoalStopped):
        await bench.submits.submit(submission())
    assert not bench.spans


async def _contexts(database: Database) -> list[tuple[UUID, str]]:
    return [(row["id"], row["trace_context"]) for row in await fetch(database, "SELECT id, trace_context FROM tasks")]


def _calls_of(work: Callable[[], object]) -> int:
    """Calls of Python functions."""
    count = 0

    def note(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(("ratio", "budget"), [("0.0", 30), ("1.0", 60)])
def test_a_submit_costs_few_calls_and_fewer_where_it_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch, ratio: str, budget: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = start_tracing("convener-test")
    assert tracing is not None
    traces, new = TaskTraces(tracing), submission()
    result = Submitted(uuid4(), TaskState.PENDING, True)

    calls = _calls_of(lambda: traces.end_submits(traces.begin_submits([new]), [new], [result]))

    tracing.close_within(0)
    assert calls <= budget, calls
