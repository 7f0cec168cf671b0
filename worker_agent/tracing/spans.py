"""Spans: pieces of work with a beginning and an end, each in a trace; nothing leaves the process before the end."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from worker_agent.tracing.context import TraceContext

Value: TypeAlias = str | int | float | Sequence[str]


class Kind(Enum):
    """Part of a span in the exchange between programs, in the terms of OpenTelemetry."""

    INTERNAL = auto()
    CLIENT = auto()
    PRODUCER = auto()
    CONSUMER = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class Span:
    """One piece of work; times are nanoseconds since 1970, `error` a short code, None where all went well."""

    context: TraceContext
    parent: TraceContext | None
    link: TraceContext | None
    name: str
    kind: Kind
    began_at: int
    attributes: dict[str, Value]
    ended_at: int = 0
    error: str | None = None


# Whether the trace with this parent, or that has no parent yet but this id, is recorded; the name is the span's.
Sampler: TypeAlias = Callable[[TraceContext | None, int, str], bool]


class Tracing:
    """Spans of one process; to start and end them waits for nothing and raises nothing.

    `sends` takes a span that has ended, `close_within` sends the last ones within so many seconds.
    """

    def __init__(
        self, samples: Sampler, sends: Callable[[Span], None], close_within: Callable[[float], None] = lambda _: None
    ) -> None:
        self._samples = samples
        self._sends = sends
        self.close_within = close_within

    def start(
        self,
        name: str,
        kind: Kind,
        parent: TraceContext | None = None,
        *,
        link: TraceContext | None = None,
        at: int | None = None,
    ) -> Span | None:
        """A span that begins now, or at `at`, in the trace of its parent or in one of its own; None if not recorded."""
        # Identifiers, not secrets: the generator of the standard library is what OpenTelemetry itself uses.
        trace_id = random.getrandbits(128) or 1 if parent is None else int(parent.trace_id, 16)
        if not self._samples(parent, trace_id, name):
            return None
        span_id = random.getrandbits(64) or 1
        return Span(
            context=TraceContext(f"{trace_id:032x}", f"{span_id:016x}", True),
            parent=parent,
            link=link,
            name=name,
            kind=kind,
            began_at=time.time_ns() if at is None else at,
            attributes={},
        )

    def end(self, span: Span, *, error: str | None = None, at: int | None = None) -> None:
        """End a span now, or at `at`, but not before its beginning, and have it sent."""
        span.ended_at = max(span.began_at, time.time_ns() if at is None else at)
        span.error = error
        self._sends(span)
