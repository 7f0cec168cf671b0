"""Workers are told to drain, restart or stop: once each, the stronger order over the weaker, and with a record."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.errors import WorkerGone
from app.kernel.ids import WorkerId
from app.kernel.states import WorkerState
from app.queue.errors import WorkerNotFound
from app.workers.rules.workers import ENDINGS, Directive, weaker
from app.workers.service import directives, workers
from app.workers.store import directives as store
from app.workers.store.directives import WorkerSelector
from tests.support.factories import order, ready_worker
from tests.support.sql import execute, fetch, until_blocked, value

DRAIN, RESTART, STOP = ENDINGS


async def _tell(database: Database, worker_id: UUID, directive: Directive, reason: str = "enough") -> Any:
    async with database.transaction() as connection:
        return await directives.direct(connection, worker_id, order(directive, reason))


async def _tell_many(
    database: Database, crew: WorkerSelector, directive: Directive, limit: int = 1000
) -> directives.Outcome:
    async with database.transaction() as connection:
        return await directives.direct_many(connection, crew, order(directive), limit=limit)


async def _told(database: Database) -> dict[str, str | None]:
    return {row["name"]: row["directive"] for row in await fetch(database, "SELECT name, directive FROM workers")}


async def _audited(database: Database) -> list[Any]:
    return await fetch(database, "SELECT action, by, before, after, reason FROM audit ORDER BY seq")


def test_a_stop_takes_the_place_of_all_others_and_a_drain_of_none() -> None:
    assert [set(weaker(directive)) for directive in ENDINGS] == [set(), {DRAIN}, {DRAIN, RESTART}]


@pytest.mark.parametrize("first", ENDINGS)
@pytest.mark.parametrize("second", ENDINGS)
async def test_only_a_stronger_order_takes_the_place_of_another(
    database: Database, first: Directive, second: Directive
) -> None:
    worker = await ready_worker(database, "ada")
    assert (await _tell(database, worker, first))["directive"] == first
    shown = await _tell(database, worker, second, "again")
    assert shown["directive"] == max(first, second, key=ENDINGS.index)
    assert (shown["directive_reason"] == "again") == (first in weaker(second))
    assert len(await _audited(database)) == 1 + (first in weaker(second))


async def test_who_was_told_what_by_whom_and_why_is_kept(database: Database) -> None:
    worker = await ready_worker(database, "ada")
    await _tell(database, worker, DRAIN)
    await _tell(database, worker, STOP, "the host goes down")
    first, second = await _audited(database)
    assert (first["action"], first["by"]) == ("workers.drain", "test")
    assert (second["action"], second["reason"]) == ("workers.stop", "the host goes down")
    assert ('"ada":"drain"' in second["before"].replace(" ", ""), '"stop"' in second["after"]) == (True, True)


async def test_who_has_obeyed_meanwhile_may_be_told_again(database: Database) -> None:
    """The answer to the first call was lost, and the worker was quick."""
    worker = await ready_worker(database)
    await _tell(database, worker, RESTART)
    async with database.transaction() as connection:
        await workers.say_goodbye(connection, worker, "restart")
    assert (await _tell(database, worker, RESTART))["state"] == "stopped"
    assert (await _tell(database, worker, DRAIN))["state"] == "stopped"
    with pytest.raises(WorkerGone):
        await _tell(database, worker, STOP)
    assert len(await _audited(database)) == 1


async def test_nobody_is_told_who_is_over_or_unknown(database: Database) -> None:
    worker = await ready_worker(database)
    async with database.transaction() as connection:
        await workers.lose(connection, worker, WorkerState.LOST, "silent")
    with pytest.raises(WorkerGone):
        await _tell(database, worker, DRAIN)
    with pytest.raises(WorkerNotFound):
        await _tell(database, uuid4(), DRAIN)
    assert await _audited(database) == []


async def _crew(database: Database) -> list[WorkerId]:
    ids = [await ready_worker(database, name) for name in ("ada", "bob", "eve")]
    await execute(database, "UPDATE workers SET assigned_agent = 'ranking' WHERE name <> 'ada'")
    await execute(database, "UPDATE workers SET labels = jsonb_build_object('site', name)")
    return ids


@pytest.mark.parametrize(
    ("crew", "names"),
    [
        (lambda _: WorkerSelector(), "ada bob eve"),
        (lambda _: WorkerSelector(names=["ada", "eve", "nobody"]), "ada eve"),
        (lambda ids: WorkerSelector(ids=ids[1:2]), "bob"),
        (lambda _: WorkerSelector(agent_type=AgentType.RANKING), "bob eve"),
        (lambda _: WorkerSelector(labels=[("site", "bob")]), "bob"),
        (lambda _: WorkerSelector(agent_type=AgentType.RANKING, names=["ada"]), ""),
    ],
)
async def test_a_filter_selects_by_all_that_it_names(
    database: Database, crew: Callable[[list[WorkerId]], WorkerSelector], names: str
) -> None:
    ids = await _crew(database)
    outcome = await _tell_many(database, crew(ids), DRAIN)
    assert outcome.selected_workers == outcome.directed_workers == len(names.split())
    assert {name for name, told in (await _told(database)).items() if told} == set(names.split())


async def test_many_are_told_bit_by_bit_and_nobody_twice(database: Database) -> None:
    await _crew(database)
    assert await _tell_many(database, WorkerSelector(), STOP, limit=2) == directives.Outcome(
        selected_workers=3, directed_workers=2
    )
    assert await _tell_many(database, WorkerSelector(), STOP, limit=2) == directives.Outcome(
        selected_workers=1, directed_workers=1
    )
    assert await _tell_many(database, WorkerSelector(), STOP, limit=2) == directives.Outcome(
        selected_workers=0, directed_workers=0
    )
    assert [len(entry["after"].split(",")) for entry in await _audited(database)] == [2, 1]


async def test_counting_tells_nobody(database: Database) -> None:
    await _crew(database)
    async with database.transaction() as connection:
        counts = await directives.direct_many(connection, WorkerSelector(), order(DRAIN), limit=1000, dry_run=True)
    assert counts == directives.Outcome(selected_workers=3, directed_workers=0)
    assert set((await _told(database)).values()) == {None}


@pytest.mark.parametrize(("first", "second"), [(DRAIN, STOP), (STOP, DRAIN)])
async def test_two_orders_at_once_leave_the_stronger(database: Database, first: Directive, second: Directive) -> None:
    worker = await ready_worker(database)
    async with database.transaction() as connection:
        assert len(await store.direct(connection, WorkerSelector(ids=[worker]), first, "first")) == 1
        late = asyncio.create_task(_tell(database, worker, second))
        await until_blocked(database)
    await late
    assert await value(database, "SELECT directive FROM workers") == "stop"
    assert len(await _audited(database)) == (second is STOP)
