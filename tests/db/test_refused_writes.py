"""A database that refuses writes, as with a full disk: callers, log and health report are told why."""

import logging
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.db import hot_path
from app.db.database import Database
from app.kernel.access import Role
from app.kernel.errors import DatabaseUnavailable
from app.kernel.refused_writes import RefusedWrite, WriteTrouble, trouble_of
from app.loops.schedule import Job
from app.outage import DatabaseOutage
from tests.support.runner import running
from tests.support.service import make_keys, serving
from tests.support.sql import execute, until

WORDS = 'could not extend file "base/16384/16402": No space left on device'
FULL = RefusedWrite(trouble=WriteTrouble.FULL, words=WORDS)
_REFUSE = f"""
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '{WORDS}' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse();
"""
_TAKE = "DROP FUNCTION refuse CASCADE"


@pytest_asyncio.fixture
async def full_database(own_database: Database) -> AsyncIterator[Database]:
    """A database in whose events there is no room for another one."""
    await execute(own_database, _REFUSE)
    yield own_database


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("app.")]


@pytest.mark.parametrize(
    ("sqlstate", "words", "trouble"),
    [
        ("53100", WORDS, WriteTrouble.FULL),
        ("XX000", 'could not extend file "base/1/2": Disk quota exceeded', WriteTrouble.FULL),
        ("25006", "cannot execute INSERT in a read-only transaction", WriteTrouble.READ_ONLY),
        ("42501", 'could not open file "base/1/2": Read-only file system', WriteTrouble.READ_ONLY),
        ("53200", "out of memory", WriteTrouble.SHORT),
        ("53400", "temporary file size exceeds temp_file_limit (1kB)", WriteTrouble.SHORT),
        ("58030", 'could not fsync file "base/1/2": Input/output error', WriteTrouble.SHORT),
        ("53300", "sorry, too many clients already", None),
        ("42501", "permission denied for table tasks", None),
        ("23505", "duplicate key value violates unique constraint", None),
    ],
)
def test_why_a_write_is_refused(sqlstate: str, words: str, trouble: WriteTrouble | None) -> None:
    assert trouble_of(sqlstate, words) is trouble


async def _write(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.exec_driver_sql("INSERT INTO events (kind) VALUES ('goal.created')")


async def _write_hot(database: Database) -> None:
    await hot_path.run(database, lambda c: c.execute("INSERT INTO events (kind) VALUES ('goal.created')"))


async def test_all_users_of_a_full_disk_tell_of_it_in_one_line_that_names_it(
    full_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Each duty told at each of its turns that the database does not answer, and the API told of nothing."""
    turns = 0

    async def count_and_write(_: object) -> None:
        nonlocal turns
        turns += 1
        await _write(full_database)

    async def has_failed() -> bool:
        return turns > 5

    async with running(full_database, Job(name="writing", seconds=0.01, run=count_and_write)):
        await until(has_failed)
    for write in (_write, _write_hot):
        with pytest.raises(DatabaseUnavailable, match="no room on its disk") as refused:
            await write(full_database)
        assert refused.value.reason == "database_full"
    assert _lines(caplog) == [f"the database has no room on its disk ({WORDS}), trying again"]
    assert full_database.outage.refused == FULL
    assert not full_database.outage.is_on


def test_a_line_at_once_then_one_a_minute_and_one_when_none_was_refused_for_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    outage, moment = DatabaseOutage(), 0.0
    monkeypatch.setattr("app.outage.time.monotonic", lambda: moment)
    for _ in range(1300):
        outage.note_refused(FULL)
        outage.note_answer()  # of a read
        moment += 0.1
    assert len(_lines(caplog)) == 3
    moment += 14
    outage.note_answer()
    assert (outage.refused, outage.is_told) == (FULL, True)
    moment += 2
    assert outage.refused is None
    outage.note_answer()
    outage.note_answer()
    assert len(_lines(caplog)) == 4
    assert "has refused no write" in _lines(caplog)[-1]


async def test_callers_and_the_health_report_are_told_of_a_full_disk(full_database: Database) -> None:
    """Callers were told that the database does not answer, and the report named late duties or nothing."""
    async with serving(full_database.url) as service:
        database: Database = service.app.state.services.database
        with pytest.raises(DatabaseUnavailable):
            await _write(database)
        report = (await service.ask("GET", "/health/report", key=None)).json()
        assert "database_full" in {reason["code"] for reason in report["reasons"]}
        assert report["overall_health"] == "critical"


async def test_a_submit_is_refused_for_a_full_disk_and_taken_once_there_is_room(full_database: Database) -> None:
    async with serving(full_database.url, await make_keys(full_database, [Role.SUPERVISOR])) as service:
        body = {"agent_type": "generation"}
        answer = await service.ask("POST", "/tasks", body, key=Role.SUPERVISOR)
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert answer.json()["reason"] == "database_full"
        assert int(answer.headers["retry-after"]) >= 1
        await execute(full_database, _TAKE)
        answer = await service.ask("POST", "/tasks", body, key=Role.SUPERVISOR)
        assert answer.is_success


async def test_a_database_that_only_reads_is_named(own_database: Database, caplog: pytest.LogCaptureFixture) -> None:
    name = own_database.url.rpartition("/")[2]
    await execute(own_database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    reader = Database(own_database.url)
    for write in (_write, _write_hot):
        with pytest.raises(DatabaseUnavailable, match="takes no writes") as refused:
            await write(reader)
        assert refused.value.reason == "database_read_only"
    await reader.close()
    assert len(_lines(caplog)) == 1
