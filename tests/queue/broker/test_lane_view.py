"""View of the lanes in one broker."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from app.db import notify
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.queue.broker import lane_view
from app.queue.broker.lane_view import LaneScanner, LaneView
from app.queue.store import ready_lanes
from app.queue.store.claims import BOTTOM
from tests.support.factories import submitted
from tests.support.sql import execute, until

LOW = Lane(agent_type=AgentType.RANKING, priority=Priority.LOW)
HIGH = Lane(agent_type=AgentType.RANKING, priority=Priority.HIGH)


def test_the_most_urgent_lane_of_a_type_comes_first() -> None:
    view = LaneView()
    view.mark_ready({LOW: 1.0})
    assert view.best_lanes().get(AgentType.RANKING) == LOW
    assert view.receive({notify.work(HIGH): 5.0, "events": 0.0})
    assert view.best_lanes().get(AgentType.RANKING) == HIGH
    assert not view.receive({"events": 0.0})


def test_a_claim_moves_the_floor_to_the_tags_that_it_leased() -> None:
    view = LaneView()
    view.mark_ready({LOW: BOTTOM})
    view.begin_claim()
    view.record_claim(LOW, [3.0, 4.0], is_exhausted=False)
    assert view.floor(LOW) == 4.0


def test_announcements_during_a_claim_are_left_to_the_next() -> None:
    """It may have committed after the claim took its snapshot."""
    view = LaneView()
    view.mark_ready({LOW: 2.0})
    view.begin_claim()
    view.mark_ready({LOW: 3.0})
    view.record_claim(LOW, [9.0], is_exhausted=False)
    assert view.floor(LOW) == 3.0
    view.begin_claim()
    view.mark_ready({LOW: 5.0})
    view.record_claim(LOW, [], is_exhausted=True)
    assert view.best_lanes().get(AgentType.RANKING) == LOW
    assert view.floor(LOW) == 5.0


def test_an_exhausted_lane_is_closed_until_an_announcement_and_keeps_its_position() -> None:
    view = LaneView()
    view.mark_ready({LOW: 2.0})
    view.begin_claim()
    view.record_claim(LOW, [7.0], is_exhausted=True)
    assert not view.agents()
    assert view.positions()[LOW] == 7.0
    assert view.positions()[HIGH] == BOTTOM
    view.mark_ready({LOW: 1.0})
    assert view.positions()[LOW] == view.floor(LOW) == 1.0


def test_many_workers_claim_at_once_only_where_many_tasks_were_leased() -> None:
    view = LaneView()
    assert view.width(LOW) == 4
    view.mark_ready({LOW: 0.0})
    for count in (4, 8, 16, 32, 64, 128):
        view.begin_claim()
        view.record_claim(LOW, [float(count)] * count, is_exhausted=False)
    assert view.width(LOW) == 128
    view.record_claim(LOW, [], is_exhausted=True)
    assert view.width(LOW) == 4


def test_nothing_is_kept_of_lanes_whose_resource_class_has_gone() -> None:
    view = LaneView()
    view.know_classes([1])
    lane = replace(LOW, resource_class=1)
    view.mark_ready({lane: lane.bottom})
    view.begin_claim()
    view.record_claim(lane, [lane.bottom + 5] * 4, is_exhausted=False)
    assert (view.width(lane), view.floor(lane)) == (8, lane.bottom + 5)
    view.know_classes([])
    view.know_classes([1])
    assert (view.width(lane), view.floor(lane), view.positions()[lane]) == (4, lane.bottom, lane.bottom)
    assert not view.open_classes


def test_the_types_with_the_most_urgent_work() -> None:
    view = LaneView()
    view.mark_ready({LOW: 0.0, Lane(agent_type=AgentType.EVOLUTION, priority=Priority.HIGH): 0.0})
    both = {AgentType.RANKING, AgentType.EVOLUTION}
    assert view.most_urgent(both, view.best_lanes()) == {AgentType.EVOLUTION}
    assert view.most_urgent({AgentType.RANKING}, view.best_lanes()) == {AgentType.RANKING}
    assert view.most_urgent({AgentType.PROXIMITY}, view.best_lanes()) == set()


async def test_a_scan_finds_work_that_was_not_announced_in_a_lane_that_is_closed(database: Database) -> None:
    """Its tag is above the one at which the lane ran out; meanwhile less urgent work keeps all workers busy."""
    view, scanner = LaneView(), await _scanner(database)
    await scanner.scan(view)
    await submitted(database, 2, agent_type=AgentType.RANKING, priority=Priority.LOW)
    view.mark_ready({LOW: BOTTOM, HIGH: BOTTOM})
    view.begin_claim()
    view.record_claim(HIGH, [0.5], is_exhausted=True)
    assert await scanner.scan(view) == {}
    await execute(database, "UPDATE tasks SET priority = 3, tag = 2 WHERE seq = (SELECT max(seq) FROM tasks)")
    assert await scanner.scan(view) == {HIGH: 2.0}


async def _scanner(database: Database) -> LaneScanner:
    async def is_connected() -> bool:
        return database.announcer.backend is not None

    # Or the connection would be taken for one to another server, between two scans.
    await until(is_connected)
    return LaneScanner(database)


def _claim(view: LaneView, *tags: float) -> None:
    view.begin_claim()
    view.record_claim(LOW, tags, is_exhausted=True)


async def _missing(database: Database, *, tag: float) -> tuple[LaneView, LaneScanner]:
    """A view whose claims went from tag 1 to 9 past a task of this tag, which is not new, and a scanner of it."""
    view, scanner = LaneView(), await _scanner(database)
    await scanner.scan(view)
    await submitted(database, agent_type=AgentType.RANKING, priority=Priority.LOW)
    await execute(database, "UPDATE tasks SET tag = $1, waiting_since = now() - interval '1 min'", tag)
    view.mark_ready({LOW: 1.0})
    _claim(view, 9.0)
    return view, scanner


async def test_scans_look_twice_for_tasks_that_claims_have_missed(database: Database) -> None:
    """The second time when whoever had locked such a task has let it go for sure."""
    view, scanner = await _missing(database, tag=5.0)
    later = lane_view._LAST_LOOK_AFTER
    assert [await scanner.scan(view) for _ in range(2 * later)] == [
        {LOW: 5.0} if number in (0, later) else {} for number in range(2 * later)
    ]


@pytest.mark.parametrize("tag", [0.5, 9.5])
async def test_only_tags_that_claims_went_through_are_looked_at(database: Database, tag: float) -> None:
    view, scanner = await _missing(database, tag=tag)
    assert await scanner.scan(view) == {}


async def test_all_is_looked_through_once_where_the_server_may_be_another(database: Database) -> None:
    """A standby that lagged knows nothing of the last leases: for minutes their tasks were passed by on it."""
    view, scanner = await _missing(database, tag=0.5)
    assert await scanner.scan(view) == {}
    for call in database.announcer.on_connection:
        call()
    assert [await scanner.scan(view) for _ in range(2)] == [{LOW: 0.5}, {}]


async def test_a_task_that_stays_locked_does_not_lead_claims_back_to_it_for_ever(database: Database) -> None:
    """They would go through more and more dead entries."""
    view, scanner = await _missing(database, tag=5.0)
    count = 0
    for number in range(10, 30):
        missed_tags = await scanner.scan(view)
        count += len(missed_tags)
        view.mark_ready(missed_tags or {LOW: number - 1.0})
        _claim(view, float(number))
    assert count == 2


async def test_what_no_claim_would_lease_is_not_missed(database: Database) -> None:
    view, scanner = await _missing(database, tag=5.0)
    await execute(database, "INSERT INTO holds (goal_id, reason) VALUES ('goal', 'paused')")
    assert await scanner.scan(view) == {}


@pytest.mark.parametrize(("seconds", "full_scans"), [(0.0, 3), (0.2, 1)])
async def test_a_full_scan_that_took_long_comes_seldom(
    database: Database, monkeypatch: pytest.MonkeyPatch, seconds: float, full_scans: int
) -> None:
    """Where an old snapshot keeps what was leased, it passes over millions of entries."""
    count = 0

    async def find(*_: Any) -> Mapping[Lane, float]:
        nonlocal count
        count += 1
        await asyncio.sleep(seconds)
        return {}

    monkeypatch.setattr(ready_lanes, "find", find)
    monkeypatch.setattr(lane_view, "_FULL_SCAN_EVERY", 1)
    monkeypatch.setattr(lane_view, "_FULL_SCAN_SHARE", 0.01 if seconds else 1.0)
    scanner = await _scanner(database)
    for _ in range(3):
        await scanner.scan(LaneView())
        await asyncio.sleep(0.01)
    assert count == full_scans
