"""What somebody should know of the queue, and what nobody need be told."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.kernel.agents import AgentType
from app.kernel.histograms import Durations
from app.kernel.lanes import Lane, Priority
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.status import MinuteCount, Pause, QueueSnapshot, is_look_back_due, oldest_wait_floors, warnings

_NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
_RANKING = Lane(agent_type=AgentType.RANKING, priority=Priority.LOW)
_URGENT = Lane(agent_type=AgentType.EVOLUTION, priority=Priority.CRITICAL)
_POLICY = CapacityPolicy(max_queue_size=100)


def _queue(tasks: Mapping[Lane, Mapping[str, int]] | None = None, **changes: Any) -> QueueSnapshot:
    return QueueSnapshot(at=_NOON, tasks=tasks or {}, **changes)


def _pause(reason: str = "upkeep") -> Pause:
    return Pause(agent_type=AgentType.RANKING, reason=reason, paused_by="key", paused_at=_NOON)


def _minute(lane: Lane, kind: str, **durations: Any) -> MinuteCount:
    return MinuteCount(start=_NOON, lane=lane, kind=kind, durations=Durations(**durations))


def test_an_empty_queue_needs_no_words() -> None:
    assert warnings(_queue(), _POLICY) == []
    assert warnings(_queue({_RANKING: {"pending": 3, "executing": 500}}), _POLICY) == []


def test_what_is_with_workers_is_not_queued() -> None:
    queue = _queue({_RANKING: {"pending": 3, "delayed": 2, "blocked": 1, "executing": 500}, _URGENT: {"assigned": 7}})
    assert queue.count() == 6
    assert queue.depth == {Priority.LOW: 6, Priority.MEDIUM: 0, Priority.HIGH: 0, Priority.CRITICAL: 0}
    assert queue.count(agent=AgentType.RANKING, phase="executing") == 500
    assert queue.count(agent=AgentType.EVOLUTION) == 0


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({_RANKING: {"pending": 39}}, []),
        ({_RANKING: {"pending": 40}}, ["the quota of priority low is filling up: 40 tasks of it wait and 50 may"]),
        ({_RANKING: {"blocked": 48}}, ["the quota of priority low is nearly full: 48 tasks of it wait and 50 may"]),
        ({_RANKING: {"delayed": 50}}, ["the quota of priority low is full: 50 tasks of it wait and 50 may"]),
        ({_URGENT: {"delayed": 96}}, ["the queue is nearly full: 96 tasks wait and 100 may"]),
    ],
)
def test_a_queue_that_fills_up(tasks: Mapping[Lane, Mapping[str, int]], said: list[str]) -> None:
    assert warnings(_queue(tasks), _POLICY) == said


def test_a_pause_is_worth_a_word_while_something_waits() -> None:
    assert warnings(_queue(pauses=[_pause()]), _POLICY) == []
    waiting = _queue({_RANKING: {"pending": 1}}, pauses=[_pause()])
    assert warnings(waiting, _POLICY) == ["ranking is paused and 1 task of it waits: upkeep"]


def test_work_that_no_worker_can_run() -> None:
    served = frozenset({AgentType.EVOLUTION})
    assert warnings(_queue({_RANKING: {"delayed": 2}}, served_agents=served), _POLICY) == []
    queue = _queue({_RANKING: {"pending": 2}, _URGENT: {"pending": 9}}, served_agents=served)
    assert warnings(queue, _POLICY) == ["nobody serves ranking: 2 tasks of it wait, and no live worker can run it"]


def test_a_task_that_has_waited_for_long() -> None:
    queue = _queue(oldest={Priority.HIGH: _NOON - timedelta(minutes=11), Priority.LOW: _NOON - timedelta(minutes=9)})
    assert warnings(queue, _POLICY) == ["a task of priority high has been waiting for 11 min"]
    assert queue.oldest_wait(Priority.LOW) == timedelta(minutes=9)
    assert queue.oldest_wait(Priority.MEDIUM) is None


def test_numbers_that_are_in_doubt() -> None:
    assert "never run" in warnings(_queue(count_age=None), _POLICY)[0]
    assert "for 31 s" in warnings(_queue(count_age=timedelta(seconds=31)), _POLICY)[0]
    assert "off by 4 tasks" in warnings(_queue(count_error=4), _POLICY)[0]


def test_rates_waits_and_service_times() -> None:
    queue = _queue(
        recent=[
            _minute(_RANKING, "task.assigned", count=2, longest=3.0, histogram=[0] * 8 + [2]),
            _minute(_URGENT, "task.assigned", count=1, longest=1.0),
            _minute(_RANKING, "task.completed", count=6, longest=7.0),
            _minute(_RANKING, "task.failed", count=1),
            _minute(_RANKING, "task.displaced", count=2),
        ]
    )
    assert queue.wait_times(Priority.LOW).longest == 3.0
    assert queue.wait_times(Priority.LOW).count == 2
    assert queue.wait_times(Priority.HIGH) == Durations()
    assert queue.service_times(AgentType.RANKING).count == 6
    assert queue.per_second("failed", timedelta(minutes=1)) == 3 / 60
    assert queue.per_second("leased", timedelta(minutes=5)) == 3 / 300


def test_the_first_look_begins_at_the_beginning() -> None:
    assert set(oldest_wait_floors({}, None).values()) == {datetime(1970, 1, 1, tzinfo=UTC)}


def test_a_look_goes_on_from_the_oldest_of_its_priority() -> None:
    oldest = {Priority.LOW: _NOON - timedelta(hours=1), Priority.HIGH: _NOON - timedelta(hours=2)}
    second = timedelta(seconds=1)
    assert {priority: _NOON - floor for priority, floor in oldest_wait_floors(oldest, _NOON).items()} == {
        Priority.LOW: timedelta(hours=1),
        Priority.MEDIUM: second,
        Priority.HIGH: timedelta(hours=2),
        Priority.CRITICAL: second,
    }
    # A transaction that was under way then may have made older ones ready.
    assert oldest_wait_floors({Priority.LOW: _NOON - second / 2}, _NOON)[Priority.LOW] == _NOON - second


def test_a_floor_is_below_all_that_may_come_from_lower_priorities_in_a_look_back() -> None:
    oldest = {Priority.LOW: _NOON - timedelta(hours=1), Priority.HIGH: _NOON - timedelta(hours=2)}
    floors = oldest_wait_floors(oldest, _NOON, looks_back=True)
    margin = timedelta(minutes=2)
    assert {priority: _NOON - floor for priority, floor in floors.items()} == {
        Priority.LOW: timedelta(hours=1),
        Priority.MEDIUM: timedelta(hours=1),
        Priority.HIGH: timedelta(hours=2),
        Priority.CRITICAL: timedelta(hours=2),
    }
    floors = oldest_wait_floors({Priority.LOW: _NOON - margin / 2}, _NOON, looks_back=True)
    assert set(floors.values()) == {_NOON - margin}
    assert set(oldest_wait_floors({}, _NOON, looks_back=True).values()) == {_NOON - margin}


def test_a_look_goes_far_back_once_a_minute() -> None:
    assert is_look_back_due(None, _NOON)
    assert not is_look_back_due(_NOON - timedelta(seconds=59), _NOON)
    assert is_look_back_due(_NOON - timedelta(seconds=60), _NOON)


def test_a_look_goes_far_back_more_rarely_where_that_takes_long() -> None:
    took = timedelta(seconds=2)
    assert not is_look_back_due(_NOON - timedelta(seconds=199), _NOON, took)
    assert is_look_back_due(_NOON - timedelta(seconds=200), _NOON, took)
    assert is_look_back_due(_NOON - timedelta(minutes=10), _NOON, timedelta(minutes=1))
