"""When the key of a model expires, as its callers say: of the one whose key ends first, so that nobody hides it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

# A caller that has not called for so long gives way to others, as its key may have gone with it. Longer than the pauses
# of one that works on long tasks: with each the alert would be resolved, and open again.
_KEEP = timedelta(hours=1)
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReport:
    """The end of the key of a caller, as it has reported it last."""

    expires_at: datetime
    caller: str = ""
    reported_at: datetime = LONG_AGO


def earliest_report(
    present: KeyReport | None, caller: str, expires_at: datetime | None, now: datetime, *, has_answered: bool
) -> KeyReport | None:
    """The report that counts after a call, for which the service `has_answered`: one binds its own caller alone."""
    own = None if expires_at is None else KeyReport(expires_at=expires_at, caller=caller, reported_at=now)
    if present is None:
        return own
    # A report of a time to come is one before the clock was set back.
    if present.caller == caller or abs(now - present.reported_at) > _KEEP:
        # Where it names no end and works, another key has taken its place.
        return present if own is None and not has_answered else own
    return own if own is not None and own.expires_at < present.expires_at else present
