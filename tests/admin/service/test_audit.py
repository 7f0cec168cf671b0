"""The chain of the audit log, under rivals, roll-backs and hands that should not have touched it."""

import asyncio
import json
from collections.abc import Sequence

import asyncpg
import pytest

from app.admin.rules.audit import AuditEntry, Link, next_entry
from app.admin.service import audit
from app.admin.service.audit import Verdict
from app.admin.store import audit as store
from app.admin.store.audit import ListedEntry
from app.db import schema
from app.db.database import Database
from app.db.migration_steps import Step
from app.goals.errors import GoalNotFound
from app.http.fields import NEWEST
from app.kernel.errors import Refused
from tests.support.sql import execute, fetch, until_blocked


async def _record(database: Database, action: str) -> None:
    async with database.transaction() as connection:
        audit.record(connection, action, by="me", old_state={"n": 0.1}, new_state={"n": 1e22}, reason="ü")


async def _entries(database: Database, action: str | None = None) -> Sequence[ListedEntry]:
    """Newest first."""
    async with database.transaction() as connection:
        return (await store.page(connection, below=NEWEST, action=action, limit=99)).items


async def _verdict(database: Database, known: Link | None = None) -> Verdict:
    return await audit.verify(database, known)


async def _forged(database: Database, statement: str) -> None:
    """What somebody does who has the database for himself."""
    async with (await database.pool()).acquire() as connection:
        await connection.execute(f"SET session_replication_role = replica; {statement}; RESET session_replication_role")


async def test_an_empty_log_is_sound(database: Database) -> None:
    assert await audit.verify(database) == Verdict(entries=0, end=Link(), violation=None)


async def test_several_entries_of_one_transaction(database: Database) -> None:
    async with database.transaction() as connection:
        for number in range(3):
            audit.record(connection, f"test.{number}", by="me")
    entries = await _entries(database)
    assert [(entry.seq, entry.action) for entry in entries] == [(3, "test.2"), (2, "test.1"), (1, "test.0")]
    assert await _entries(database, "test.1") == [entries[1]]
    verdict = await audit.verify(database)
    assert (verdict.entries, verdict.end.digest, verdict.violation) == (3, entries[0].digest, None)


async def test_whoever_goes_on_after_recording_holds_up_nobody(database: Database) -> None:
    async with database.transaction() as connection:
        audit.record(connection, "first", by="me")
        assert (await store.lock_tail(connection, "me")).link == Link()
    async with database.transaction() as connection:
        audit.record(connection, "third", by="me")
        await _record(database, "second")
    assert [entry.action for entry in await _entries(database)] == ["third", "second", "first"]


async def test_what_is_given_up_leaves_no_entry(database: Database) -> None:
    async def fail() -> None:
        async with database.transaction() as connection:
            audit.record(connection, "first", by="me")
            raise GoalNotFound

    with pytest.raises(GoalNotFound):
        await fail()
    # Nor does the next transaction of the same connection write it.
    await _record(database, "second")
    assert [entry.action for entry in await _entries(database)] == ["second"]


async def test_a_migration_that_gives_up_tells_how_far_it_went(own_database: Database) -> None:
    def give_up(step: Step) -> None:
        raise Refused(step.revision, "")

    *_, second, first = schema.served()
    await schema.downgrade(own_database.engine, first)
    with pytest.raises(Refused, match=second):
        await audit.migrate(own_database, by="me", watch=schema.Watch(applied=give_up))
    await audit.migrate(own_database, by="me")
    entries = await _entries(own_database, "db.migrate")
    states = [(json.loads(entry.before), json.loads(entry.after)) for entry in entries]
    assert states == [(second, schema.head()), (first, second)]


async def test_an_error_of_a_migration_is_told_where_it_cannot_be_recorded(
    own_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def give_up(step: Step) -> None:
        raise Refused(step.revision, "")

    async def fail(*_: object) -> None:
        raise ValueError("no room")

    *_, second, first = schema.served()
    await schema.downgrade(own_database.engine, first)
    monkeypatch.setattr(store, "append", fail)
    with pytest.raises(Refused, match=second):
        await audit.migrate(own_database, by="me", watch=schema.Watch(applied=give_up))
    assert "could not be recorded: no room" in caplog.text


async def test_the_second_waits_for_the_first_and_follows_it(database: Database) -> None:
    async with database.transaction() as connection:
        await store.lock_tail(connection, "me")
        rival = asyncio.create_task(_record(database, "second"))
        await until_blocked(database)
        audit.record(connection, "first", by="me")
    await rival
    second, first = await _entries(database)
    assert (first.action, second.action) == ("first", "second")
    assert first.at is not None
    assert second.at is not None
    assert first.at < second.at
    assert (await _verdict(database)).violation is None


async def test_where_the_first_gives_up_there_is_no_gap(database: Database) -> None:
    async with database.engine.connect() as connection:
        tail = await store.lock_tail(connection, "me")
        await store.append(connection, next_entry(tail.link, tail.at, AuditEntry(by="me", action="first")))
        rival = asyncio.create_task(_record(database, "second"))
        await until_blocked(database)
        await connection.rollback()
        await rival
    assert [entry.seq for entry in await _entries(database)] == [1]
    verdict = await _verdict(database)
    assert (verdict.entries, verdict.violation) == (1, None)


async def test_many_at_once_make_one_chain(database: Database, replica: Database) -> None:
    await asyncio.gather(*(_record([database, replica][n % 2], f"n{n}") for n in range(40)))
    assert len({entry.action for entry in await _entries(database)}) == 40
    verdict = await _verdict(database)
    assert (verdict.entries, verdict.violation) == (40, None)


async def test_more_entries_than_are_read_at_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BATCH", 2)
    for number in range(5):
        await _record(database, str(number))
    assert (await _verdict(database)).entries == 5


# An entry is taken out, and those behind it close up.
_CLOSE_UP = """
DELETE FROM audit WHERE seq = 2;
UPDATE audit SET seq = -seq WHERE seq > 2;
UPDATE audit SET seq = -seq - 1 WHERE seq < 0
"""


@pytest.mark.parametrize("statement", ["UPDATE audit SET by = 'you'", "DELETE FROM audit", "TRUNCATE audit"])
async def test_rows_are_only_added(database: Database, statement: str) -> None:
    await _record(database, "one")
    with pytest.raises(asyncpg.RaiseError, match="only added"):
        await execute(database, statement)
    with pytest.raises(asyncpg.RaiseError, match="only added"):
        await execute(database, statement.replace("audit", "config_versions").replace(" by ", " reason "))
    assert len(await fetch(database, "SELECT FROM audit")) == 1


@pytest.mark.parametrize(
    ("statement", "sound"),
    [
        ("UPDATE audit SET reason = 'another' WHERE seq = 2", 1),
        ("UPDATE audit SET label = 'me' WHERE seq = 3", 2),
        ("UPDATE audit SET at = at + interval '1 microsecond' WHERE seq = 1", 0),
        ("UPDATE audit SET after = '{\"n\": 1e21}' WHERE seq = 3", 2),
        ("UPDATE audit SET digest = sha256(digest) WHERE seq = 3", 2),
        ("DELETE FROM audit WHERE seq = 2", 1),
        ("DELETE FROM audit WHERE seq = 1", 0),
        ("UPDATE audit SET seq = 9 WHERE seq = 2", 1),
        (_CLOSE_UP, 1),
        ("UPDATE audit SET seq = -seq WHERE seq IN (2, 3); UPDATE audit SET seq = 5 + seq WHERE seq < 0", 1),
        ("UPDATE audit SET seq = -9223372036854775808 WHERE seq = 4", 0),
        ("UPDATE audit SET seq = 0 WHERE seq = 4", 0),
        ("UPDATE audit SET after = '{\"n\": 1e400}' WHERE seq = 3", 0),
        ("UPDATE audit SET after = repeat('9', 6000)::json WHERE seq = 3", 0),
        ("UPDATE audit SET after = (repeat('[', 3000) || repeat(']', 3000))::json WHERE seq = 3", 0),
        ("UPDATE audit SET at = '4000-01-01 BC' WHERE seq = 3", 0),
    ],
)
async def test_what_was_changed_is_found(database: Database, statement: str, sound: int) -> None:
    for action in ("one", "two", "three", "four"):
        await _record(database, action)
    assert (await _verdict(database)).violation is None
    await _forged(database, statement)
    verdict = await _verdict(database)
    assert verdict.violation is not None
    assert verdict.entries == sound


async def test_what_was_cut_off_is_missed_by_whoever_noted_the_end(database: Database) -> None:
    for action in ("one", "two", "three"):
        await _record(database, action)
    end = (await _verdict(database)).end
    await _forged(database, "DELETE FROM audit WHERE seq = 3")
    assert (await _verdict(database)).violation is None
    assert "entry 3 is missing" in str((await _verdict(database, end)).violation)
    await _record(database, "another")
    assert "another digest" in str((await _verdict(database, end)).violation)
