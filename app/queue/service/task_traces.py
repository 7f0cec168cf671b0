"""Spans of tasks in the API: the submit, each wait and each lease, for those whose trace is recorded.

A task keeps the `traceparent` of its submit, so that whatever is done with it later belongs to one trace. Attributes
name the task and what it is for, never what it holds.
"""

from collections.abc import Iterator, Sequence
from uuid import UUID

from app.kernel.ids import WorkerId
from app.kernel.namespaces import shown_name
from app.queue.service.tasks import Submission, Submitted, identity
from app.queue.store.claims import Lease
from worker_agent.tracing.context import is_sampled, read_traceparent
from worker_agent.tracing.spans import Kind, Span, Tracing, Value


class TaskTraces:
    """Spans of the tasks that this process submits and leases."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def begin_submits(self, submissions: Sequence[Submission]) -> list[Span | None]:
        """Spans for those that are recorded, whose tasks then keep them as their trace context."""
        return [self._begin_submit(submission) for submission in submissions]

    def _begin_submit(self, submission: Submission) -> Span | None:
        text = submission.traceparent or submission.trace_context
        parent = None if text is None else read_traceparent(text)
        # What a body holds in place of a trace context is its own affair.
        if parent is None and text is not None:
            return None
        span = self._tracing.start(f"submit {submission.agent_type}", Kind.PRODUCER, parent)
        if span is not None:
            submission.traceparent = span.context.text
        return span

    def end_submits(
        self, spans: Sequence[Span | None], submissions: Sequence[Submission], results: Sequence[Submitted]
    ) -> None:
        """End the spans of new tasks, after the commit; of a task that existed the first submit has one already."""
        if not any(spans):
            return
        for (span, submission), result in zip(_distinct(spans, submissions), results, strict=True):
            if span is not None and result.created:
                span.attributes = _attributes("submit", "send", submission.agent_type, result.id)
                span.attributes["convener.priority"] = submission.priority.name.lower()
                if (goal := shown_name(submission.goal_id)) is not None:
                    span.attributes["convener.goal_id"] = goal
                self._tracing.end(span)

    def record_leases(self, leases: Sequence[tuple[WorkerId, Lease]]) -> None:
        """Note the wait that has ended for each recorded task, and its lease, once they are committed."""
        for worker_id, lease in leases:
            if lease.trace_context is not None and is_sampled(lease.trace_context):
                self._record_lease(worker_id, lease)

    def _record_lease(self, worker_id: WorkerId, lease: Lease) -> None:
        context = read_traceparent(lease.trace_context)
        if context is None:
            return
        # By the clock of the database as far as the claim; its answer is on its way now.
        leased_at = _nanoseconds(lease.leased_at)
        wait = self._tracing.start(
            f"wait {lease.agent_type}", Kind.INTERNAL, context, at=_nanoseconds(lease.waiting_since)
        )
        if wait is None:
            return
        wait.attributes = {"messaging.message.id": str(lease.task_id), "convener.attempt": lease.attempt}
        self._tracing.end(wait, at=leased_at)
        claim = self._tracing.start(f"lease {lease.agent_type}", Kind.INTERNAL, context, at=leased_at)
        if claim is not None:
            claim.attributes = _attributes("lease", "receive", lease.agent_type, lease.task_id)
            claim.attributes |= {"convener.attempt": lease.attempt, "convener.worker_id": str(worker_id)}
            self._tracing.end(claim)


def _distinct(
    spans: Sequence[Span | None], submissions: Sequence[Submission]
) -> Iterator[tuple[Span | None, Submission]]:
    """Those of distinct tasks, of which the results are: of several with one identity the first counts."""
    identities: set[UUID] = set()
    for span, submission in zip(spans, submissions, strict=True):
        task_id = identity(submission)
        if task_id is None or task_id not in identities:
            yield span, submission
        if task_id is not None:
            identities.add(task_id)


def _attributes(operation: str, kind: str, agent_type: str, task_id: UUID) -> dict[str, Value]:
    """Attributes by the conventions for messaging: the agent type is the queue, the task the message."""
    return {
        "messaging.system": "convener",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": agent_type,
        "messaging.message.id": str(task_id),
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
