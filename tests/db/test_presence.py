"""Notes of the API's processes that they are there."""

import asyncio
from uuid import UUID, uuid4

from app.db import hot_path, presence
from app.db.database import Database
from app.kernel.presence import ApiProcess, PresencePolicy, absence_reason
from tests.support.sql import execute, fetch, until

_POLICY = PresencePolicy()


async def _note(database: Database, process_id: UUID) -> None:
    await hot_path.run(database, lambda connection: presence.note(connection, process_id, _POLICY))


async def _read(database: Database) -> list[ApiProcess]:
    async with database.transaction() as connection:
        return await presence.read(connection)


async def _pass(database: Database, seconds: float) -> None:
    statement = """UPDATE api_processes SET began_at = began_at - make_interval(secs => $1),
        present_since = present_since - make_interval(secs => $1), seen_at = seen_at - make_interval(secs => $1)"""
    await execute(database, statement, seconds)


async def test_an_absence_is_seen_while_it_lasts_and_after_it(database: Database) -> None:
    process_id = uuid4()
    await _note(database, process_id)
    await _pass(database, 3)
    await _note(database, process_id)
    (process,) = await _read(database)
    assert process.silent_seconds < 2 < process.present_seconds
    assert (process.was_away, process.is_connected) == (False, True)
    await _pass(database, _POLICY.away_after_seconds + 1)
    assert absence_reason(await _read(database), _POLICY)
    await _pass(database, 3600)
    assert await _read(database) == [], "an older version would note nothing"
    await _note(database, process_id)
    (process,) = await _read(database)
    assert process.present_seconds < 2
    assert process.was_away


async def test_a_clock_that_is_set_back_neither_keeps_a_process_there_nor_away(database: Database) -> None:
    """For as long as it had been set back nobody was lost, or a process that was killed counted as there."""
    process_id = uuid4()
    await _note(database, process_id)
    await _pass(database, -3600)
    assert absence_reason(await _read(database), _POLICY), "nobody has been heard of since"
    await _note(database, process_id)
    for _ in range(2):
        await _pass(database, _POLICY.grace_seconds / 2 + 1)
        await _note(database, process_id)
    assert absence_reason(await _read(database), _POLICY) is None
    await _pass(database, _POLICY.away_after_seconds + 1)
    await _note(database, process_id)
    assert [process.was_away for process in await _read(database)] == [True]


async def test_a_process_that_was_killed_is_told_from_one_that_is_paused(database: Database) -> None:
    other = Database(database.url)
    await _note(other, uuid4())
    assert [process.is_connected for process in await _read(database)] == [True]
    await other.close()

    async def killed() -> bool:
        return [process.is_connected for process in await _read(database)] == [False]

    await until(killed)


async def test_it_notes_for_as_long_as_it_runs_and_forgets_those_of_long_ago(database: Database) -> None:
    await _note(database, uuid4())
    await _pass(database, 3601)
    noting = asyncio.create_task(presence.keep_noting(database, lambda: _POLICY, lambda: 0.0))

    async def noted_again() -> bool:
        rows = await fetch(database, "SELECT seen_at > began_at AS again FROM api_processes")
        return [row["again"] for row in rows] == [True]

    await until(noted_again)
    noting.cancel()
