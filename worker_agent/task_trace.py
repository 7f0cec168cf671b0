"""The span of a task's execution, from the start of its handler to its end, where its trace is recorded."""

from dataclasses import dataclass, replace

from worker_agent import events as ev
from worker_agent.storable_text import storable_code
from worker_agent.tracing.context import at_hand, read_traceparent
from worker_agent.tracing.spans import Kind, Span, Tracing
from worker_agent.wire import Lease

# Of handlers' own error codes, which are short words.
_CODE_CHARACTERS = 100


@dataclass(slots=True)
class TaskTrace:
    """The trace of the task at hand; without `tracing` it only tells log lines of the trace that the task is in."""

    tracing: Tracing | None
    _span: Span | None = None

    def begin(self, lease: Lease) -> Lease:
        """The lease with the trace context that its handler goes on with: that of the execution, if it is recorded."""
        context = at_hand.context = read_traceparent(lease.trace_context)
        if self.tracing is None or context is None or not context.is_sampled:
            return lease
        # The link is for backends that do not follow parents over a queue.
        self._span = span = self.tracing.start(f"execute {lease.agent_type}", Kind.CONSUMER, context, link=context)
        if span is None:
            return lease
        span.attributes = {
            "messaging.system": "convener",
            "messaging.operation.name": "execute",
            "messaging.operation.type": "process",
            "messaging.destination.name": lease.agent_type,
            "messaging.message.id": lease.task_id,
            "convener.attempt": lease.attempt,
        }
        at_hand.context = span.context
        return replace(lease, trace_context=span.context.text)

    def end(self, end: ev.HandlerEnd) -> None:
        """End the execution."""
        span, self._span = self._span, None
        if span is None or self.tracing is None:
            return
        span.attributes["convener.outcome"] = _outcome(end)
        usage = end.usage
        if usage is not None:
            span.attributes["convener.cpu_seconds"] = usage.cpu_seconds
            span.attributes["convener.max_memory_mb"] = usage.max_memory_mb
        self.tracing.end(span, error=_error(end))

    def leave(self) -> None:
        """Have log lines no longer tell of this task."""
        at_hand.context = None


def _outcome(end: ev.HandlerEnd) -> str:
    match end:
        case ev.HandlerNotStarted():
            return "not_started"
        case ev.HandlerFinished():
            return "completed"
        case ev.HandlerFailed():
            return "failed"
        case ev.HandlerPostponed():
            return "postponed"
        case ev.HandlerTimedOut():
            return "timed_out"
        case ev.HandlerKilled():
            return "killed"


def _error(end: ev.HandlerEnd) -> str | None:
    match end:
        case ev.HandlerNotStarted():
            return "not_started"
        case ev.HandlerFailed(error):
            return storable_code(error.code)[:_CODE_CHARACTERS]
        case ev.HandlerTimedOut():
            return "timeout"
        case ev.HandlerKilled():
            return "killed"
        case _:
            return None
