"""Announcements: to this process at once, to others soon, and again after the connection was lost."""

import asyncio
from collections.abc import Collection, Mapping

import asyncpg
import pytest

from app.db import notify
from app.db.database import Database
from app.db.notify import note
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from tests.support.sql import execute, until

_HANG_UP = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND query ~ 'LISTEN|pg_notify'
"""


class _Ear:
    """What a listener has heard."""

    def __init__(self, database: Database) -> None:
        self.heard: set[str] = set()
        self.times = 0
        database.announcer.subscribe(self._hear)

    def _hear(self, topics: Collection[str]) -> None:
        self.times += 1
        self.heard.update(topics)


async def _until_heard(database: Database, ear: _Ear, topic: str) -> None:
    """Announce until it is heard: a note may be lost while nobody listens."""

    async def heard() -> bool:
        database.announcer.announce([topic])
        await asyncio.sleep(0.02)
        return topic in ear.heard

    await until(heard)


async def test_this_process_hears_at_once(database: Database) -> None:
    ear = _Ear(database)
    database.announcer.announce(["work:ranking"])
    assert ear.heard == {"work:ranking"}


async def test_a_transaction_announces_when_it_has_committed(database: Database) -> None:
    ear = _Ear(database)
    async with database.transaction() as connection:
        note(connection, "events", "fleet")
        assert ear.heard == set()
    assert ear.heard == {"events", "fleet"}


async def _note_and_fail(database: Database) -> None:
    async with database.transaction() as connection:
        note(connection, "fleet")
        raise ZeroDivisionError


async def test_a_transaction_that_fails_announces_nothing_not_even_later(database: Database) -> None:
    ear = _Ear(database)
    for _ in range(10):
        async with database.engine.connect() as connection:
            note(connection, "events")
    with pytest.raises(ZeroDivisionError):
        await _note_and_fail(database)
    async with database.transaction() as connection:
        note(connection, "keys")
    assert ear.heard == {"keys"}


async def test_other_processes_hear_too_and_nobody_hears_itself_twice(database: Database, replica: Database) -> None:
    near, far = _Ear(database), _Ear(replica)
    await _until_heard(database, far, "first")
    near.times = 0
    database.announcer.announce(["second"])
    await until(lambda: _holds("second" in far.heard))
    await execute(database, "SELECT 1")
    assert near.times == 1


async def _holds(condition: bool) -> bool:
    return condition


async def test_a_lost_connection_is_made_again(database: Database, replica: Database) -> None:
    ear = _Ear(replica)
    await _until_heard(database, ear, "before")
    connections: list[None] = []
    replica.announcer.on_connection.append(lambda: connections.append(None))
    assert int((await execute(database, _HANG_UP)).split()[-1]) >= 2
    await _until_heard(database, ear, "after")
    assert connections == [None]


@pytest.mark.parametrize(
    "error", [asyncpg.InternalClientError("half a farewell"), OSError(), RuntimeError("a bug")], ids=repr
)
async def test_whatever_goes_wrong_is_tried_again(database: Database, error: Exception) -> None:
    troubles = [error]

    async def connect() -> "asyncpg.Connection[asyncpg.Record]":
        if troubles:
            raise troubles.pop()
        return await database.connect()

    announcer, heard = notify.Announcer(connect), set[str]()
    announcer.subscribe(heard.update)
    announcer.start()

    async def hears() -> bool:
        database.announcer.announce(["news"])
        await asyncio.sleep(0.02)
        return "news" in heard

    await until(hears)
    await announcer.stop()


async def test_a_second_start_is_none(database: Database) -> None:
    announcer = notify.Announcer(database.connect)
    before = asyncio.all_tasks()
    announcer.start()
    announcer.start()
    assert len(asyncio.all_tasks() - before) == 1
    await announcer.stop()
    assert not asyncio.all_tasks() - before


async def test_a_server_that_hangs_up_on_who_is_speaking_is_found_again(database: Database, replica: Database) -> None:
    """Again and again, so that it is in the middle of a word, between two, and while its farewell is being read."""
    ear = _Ear(replica)
    for number in range(5):
        await _until_heard(database, ear, f"before {number}")
        async with asyncio.TaskGroup() as group:
            group.create_task(_chatter(database))
            group.create_task(execute(database, _HANG_UP))
        await _until_heard(database, ear, f"after {number}")


async def _chatter(database: Database) -> None:
    for number in range(20):
        database.announcer.announce([f"word {number}"])
        await asyncio.sleep(0.005)


async def test_a_strangers_message_is_ignored(database: Database, replica: Database) -> None:
    ear = _Ear(database)
    await _until_heard(replica, ear, "ours")
    for message in ("", "[]", '{"from":"x"}', '{"from":"x","topics":7}', "\u2028", "x" * 7000):
        await execute(database, "SELECT pg_notify($1, $2)", notify.CHANNEL, message)
    ear.heard.clear()
    await _until_heard(replica, ear, "ours again")
    # It was told of again and again until it was heard, so the last of the first may come now.
    assert ear.heard - {"ours"} == {"ours again"}


async def test_a_burst_is_told_to_others_in_few_messages(database: Database, replica: Database) -> None:
    ear = _Ear(replica)
    await _until_heard(database, ear, "first")
    ear.times = 0
    for number in range(1000):
        database.announcer.announce([f"work:{number % 7}"])
    await until(lambda: _holds(len(ear.heard) >= 8))
    assert ear.times <= 3


async def test_who_no_longer_listens_hears_nothing(database: Database) -> None:
    heard: set[str] = set()
    database.announcer.subscribe(heard.update)
    database.announcer.unsubscribe(heard.update)
    database.announcer.announce(["events"])
    assert heard == set()


def test_the_topic_of_work_names_the_lane() -> None:
    lane = Lane(agent_type=AgentType.META_REVIEW, priority=Priority.HIGH)
    assert notify.work(lane) == "work:meta_review:3"


async def test_of_several_notes_on_a_lane_the_lowest_tag_is_announced(database: Database, replica: Database) -> None:
    """Whoever reads a lane from a later place on must go back to where the work is."""
    lane = Lane(agent_type=AgentType.RANKING, priority=Priority.LOW)
    heard: list[Mapping[str, float]] = []
    replica.announcer.subscribe(heard.append)

    async def announced() -> bool:
        async with database.transaction() as connection:
            for tag in (7.5, 3.25, 9.0):
                notify.note_work(connection, {lane: tag})
        await asyncio.sleep(0.02)
        return bool(heard)

    await until(announced)
    assert heard[0] == {"work:ranking:1": 3.25}
