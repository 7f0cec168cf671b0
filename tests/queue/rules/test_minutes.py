"""A window that slides on between whole minutes."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from app.kernel.agents import AgentType
from app.kernel.histograms import Durations
from app.kernel.lanes import Lane, Priority
from app.queue.rules.status import MinuteCount, events_within

_LANE = Lane(agent_type=AgentType.RANKING, priority=Priority.HIGH)
_NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)


def _minutes(*counts: int, kind: str = "task.completed") -> list[MinuteCount]:
    """The last of them begins at noon."""
    starts = (_NOON - back * _MINUTE for back in reversed(range(len(counts))))
    return [
        MinuteCount(start=start, lane=_LANE, kind=kind, durations=Durations(count=count))
        for start, count in zip(starts, counts, strict=True)
    ]


def test_the_minute_that_the_window_cuts_counts_in_part() -> None:
    known = _minutes(100, 60, 30)
    assert events_within(known, {"task.completed"}, _NOON + timedelta(seconds=15), _MINUTE) == 30 + 60 * 0.75
    assert events_within(known, {"task.completed"}, _NOON, _MINUTE) == 30 + 60
    assert events_within(known, {"task.completed"}, _NOON + _MINUTE, _MINUTE) == 30


def test_other_kinds_do_not_count() -> None:
    known = [*_minutes(5), *_minutes(7, kind="task.failed")]
    assert events_within(known, {"task.failed"}, _NOON, _MINUTE) == 7
    assert events_within(known, {"task.failed", "task.completed"}, _NOON, _MINUTE) == 12


@given(st.lists(st.integers(0, 1000), min_size=8, max_size=8), st.floats(0, 60), st.integers(1, 5))
def test_never_more_than_what_the_touched_minutes_hold(counts: list[int], seconds: float, minutes: int) -> None:
    found = events_within(_minutes(*counts), {"task.completed"}, _NOON + timedelta(seconds=seconds), minutes * _MINUTE)
    assert sum(counts[-minutes:]) <= found + 1e-6
    assert found <= sum(counts[-minutes - 1 :]) + 1e-6
