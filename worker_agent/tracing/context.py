"""W3C trace context: reads and writes `traceparent`, and keeps that of the work at hand for log lines."""

import re
from typing import NamedTuple

# Only a version above 00 may have more behind the four fields.
_FIELDS = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?P<rest>-.*)?"
)

_ODD_DIGITS = frozenset("13579bdf")


class TraceContext(NamedTuple):
    """A span as others refer to it: its trace and itself in hexadecimal, and whether the trace is recorded."""

    trace_id: str
    span_id: str
    is_sampled: bool

    @property
    def text(self) -> str:
        """The value of `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}"

    @property
    def fields(self) -> dict[str, str]:
        """The fields of a log line."""
        return {"trace_id": self.trace_id, "span_id": self.span_id}


def read_traceparent(text: str | None) -> TraceContext | None:
    """The context that a `traceparent` names; None for what is none, which the standard has ignored."""
    match = None if text is None else _FIELDS.fullmatch(text)
    if match is None or (match["rest"] is not None and match["version"] == "00"):
        return None
    return TraceContext(match[2], match[3], bool(int(match[4], 16) & 1))


def is_sampled(text: str) -> bool:
    """Whether this `traceparent` says that its trace is recorded, at a glance."""
    return text[-1:] in _ODD_DIGITS


class WorkAtHand:
    """The trace context that every log line of this process carries; None for none."""

    context: TraceContext | None = None


at_hand = WorkAtHand()
