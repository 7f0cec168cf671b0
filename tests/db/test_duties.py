"""Turns of background duties: one replica at a time, when they are due, and rolled back with their work."""

import asyncio
from typing import Any

import pytest

from app.db import duties
from app.db.database import Database
from tests.support.sql import execute, fetch, until_blocked


@pytest.fixture
async def duty(database: Database) -> str:
    async with database.transaction() as connection:
        await duties.ensure(connection, "sweep")
    return "sweep"


async def _turn(database: Database, duty: str, interval: float = 0.0, **done: Any) -> duties.Turn | None:
    async with database.transaction() as connection:
        turn = await duties.claim(connection, duty, interval)
        if turn is not None:
            await duties.record(connection, duty, done, held_back=bool(done.get("held_back")))
        return turn


async def test_the_first_turn_is_due_at_once(database: Database, duty: str) -> None:
    turn = await _turn(database, duty, 3600, swept=3)
    assert turn == duties.Turn(duty=duty, seconds_since_last=0, held_back=False)
    row = (await fetch(database, "SELECT runs, result, last_run_at IS NOT NULL AS ran FROM loop_ticks"))[0]
    assert (row["runs"], row["result"], row["ran"]) == (1, '{"swept": 3}', True)


async def test_a_turn_is_not_due_before_its_time(database: Database, duty: str) -> None:
    await _turn(database, duty)
    assert await _turn(database, duty, 3600) is None
    await execute(database, "UPDATE loop_ticks SET last_run_at = now() - interval '2 hours'")
    turn = await _turn(database, duty, 3600)
    assert turn is not None
    assert turn.seconds_since_last == pytest.approx(7200, abs=60)


async def test_the_next_turn_knows_that_the_last_one_held_back(database: Database, duty: str) -> None:
    await _turn(database, duty, held_back=True)
    turn = await _turn(database, duty)
    assert turn is not None
    assert turn.held_back
    again = await _turn(database, duty)
    assert again is not None
    assert not again.held_back


async def test_who_holds_back_while_the_clock_is_set_back_does_so_no_longer(database: Database, duty: str) -> None:
    """It would hold back until the old time has come again."""
    await _turn(database, duty, held_back=True, held_back_since="2999-01-01T00:00:00Z")
    turn = await _turn(database, duty)
    assert turn is not None
    assert turn.held_back_seconds == 0


async def test_of_two_replicas_one_has_the_turn(database: Database, duty: str) -> None:
    async with database.transaction() as connection:
        assert await duties.claim(connection, duty, 0) is not None
        assert await _turn(database, duty) is None
    assert await _turn(database, duty) is not None


async def test_a_replica_that_looked_before_the_other_was_done_does_not_repeat_its_turn(
    database: Database, duty: str
) -> None:
    """By its own clock, which stands still within a transaction, the turn is still due."""
    async with database.engine.connect() as early, database.engine.connect() as connection:
        await early.exec_driver_sql("SELECT now()")
        await duties.claim(connection, duty, 0)
        await duties.record(connection, duty, {}, held_back=False)
        await connection.commit()
        assert await duties.claim(early, duty, 0) is None


async def test_a_crash_rolls_back_the_turn_with_its_work(database: Database, duty: str) -> None:
    async with database.engine.connect() as connection:
        await duties.claim(connection, duty, 0)
        await connection.exec_driver_sql(
            "INSERT INTO keys (id, role, label, secret_hash) VALUES ('x', 'admin', '', '')"
        )
        await duties.record(connection, duty, {}, held_back=False)
        await connection.rollback()
    assert await fetch(database, "SELECT FROM keys") == []
    assert await _turn(database, duty, 3600) is not None


async def test_two_replicas_may_introduce_a_duty_at_once(database: Database) -> None:
    async def introduce() -> None:
        async with database.transaction() as connection:
            await duties.ensure(connection, "new")

    async with database.transaction() as connection:
        await duties.ensure(connection, "new")
        other = asyncio.create_task(introduce())
        await until_blocked(database)
    await other
    assert [row["duty"] for row in await fetch(database, "SELECT duty FROM loop_ticks")] == ["new"]


async def test_nobody_waits_until_a_clock_that_was_set_back_has_come_there_again(database: Database, duty: str) -> None:
    """By half a minute, no duty ran for half a minute."""
    await _turn(database, duty)
    await execute(database, "UPDATE loop_ticks SET last_run_at = now() + interval '30 s'")
    assert await _turn(database, duty, 1) is not None
