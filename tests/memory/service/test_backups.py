"""Backups restored on another server, where transactions are counted anew: readers of events lose none."""

import asyncio
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from app.db import hot_path, schema
from app.db.database import Database
from app.kernel.agents import AgentType
from app.kernel.errors import Refused
from app.kernel.lanes import class_of
from app.memory.service import archives, backups
from app.memory.service.dumps import Dumps
from app.memory.store import backups as store
from app.memory.store import invariants
from app.postgres.binaries import find_binaries
from app.postgres.errors import DumpFailed, ProgramSilent
from app.queue.store import completions, events, outputs
from app.queue.store.events import BEGINNING, Cursor
from tests.conftest import empty_database, named
from tests.memory.service.test_checkpoints import is_accepted
from tests.support.factories import completion, everything, holding, leased, ready_worker, submitted
from tests.support.postgres import running_server
from tests.support.sql import execute, fetch, until_blocked, value

GPU = '{"gpus": 1}'


@pytest.fixture(scope="module")
def other_server() -> Iterator[str]:
    """A server that has just been made: it has hardly counted any transactions."""
    directory = Path(tempfile.mkdtemp(prefix="convener-other-"))
    directory.chmod(0o711)
    try:
        with running_server(directory / "server") as url:
            yield url
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def superusers_server() -> Iterator[str]:
    """A server whose role may all, as a person has who looks after the databases of a company."""
    directory = Path(tempfile.mkdtemp(prefix="convener-superuser-"))
    directory.chmod(0o711)
    try:
        with running_server(directory / "server", script="ALTER ROLE convener SUPERUSER;\n") as url:
            yield url
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def dumps() -> Dumps:
    return Dumps(binaries=find_binaries(os.environ.get("CONVENER_POSTGRES_BIN")))


async def _follow(database: Database, after: Cursor) -> tuple[list[tuple[str, UUID | None]], Cursor]:
    """Every event that follows, and where to go on."""
    seen: list[tuple[str, UUID | None]] = []
    async with database.transaction() as connection:
        while page := (await events.read_batch(connection, after, None, 3)).items:
            seen += [(event.kind, event.task_id) for event in page]
            after = page[-1].cursor
    return seen, after


async def check_invariants(database: Database) -> None:
    """No invariant is violated."""
    async with database.transaction() as connection:
        for verdict in await invariants.run_checks(connection):
            assert verdict.examples == [], verdict.check.name


async def _transaction(database: Database) -> int:
    return int(await value(database, "SELECT pg_current_xact_id()::text::bigint"))


async def _count_up(database: Database, to: int) -> None:
    while await _transaction(database) < to:
        await execute(
            database, "DO $$ BEGIN FOR i IN 1..2000 LOOP COMMIT; PERFORM pg_current_xact_id(); END LOOP; END $$"
        )


async def test_a_reader_of_events_goes_on_on_another_server(
    own_database: Database, other_server: str, dumps: Dumps, tmp_path: Path
) -> None:
    file = tmp_path / "backup.dump"
    await _count_up(own_database, 20_000)
    before = await submitted(own_database, 6)
    async with own_database.transaction() as connection:
        half = ((await events.read_batch(connection, BEGINNING, None, 3)).items)[-1].cursor
        current = await events.latest(connection)
    manifest = await backups.backup(own_database, dumps, file, lambda _: None, "test")
    lost = await submitted(own_database, 2)
    _, beyond = await _follow(own_database, half)
    async with empty_database(other_server) as restored:
        done = await backups.restore(restored, dumps, file, lambda _: None, "test")
        assert (done.dump_revision, done.revision, done.is_verified) == (manifest.revision, schema.head(), True)
        assert await _transaction(restored) < 20_000 < done.transaction_offset
        seen, cursor = await _follow(restored, half)
        assert seen == [("task.submitted", task_id) for task_id in before[3:]]
        after = await submitted(restored, 5)
        new = [("task.submitted", task_id) for task_id in after]
        assert (await _follow(restored, cursor))[0] == new
        # Cursors that stood for `now`, and those received after the backup was made, are good too.
        assert (await _follow(restored, current))[0] == new
        assert (await _follow(restored, beyond))[0] == new
        assert not {task_id for _, task_id in seen} & set(lost)
        await check_invariants(restored)


async def test_a_reader_ahead_of_a_promoted_standby_misses_nothing_that_comes(own_database: Database) -> None:
    """Once as many had come as were lost, nothing told that its cursor was of those, and it missed others."""
    await submitted(own_database, 3)
    async with own_database.transaction() as connection:
        current = await events.latest(connection)
    beyond = Cursor(transaction=current.transaction + 1000, seq=0)
    offset = await backups.advance(own_database, "test")
    # By the connections that have written before.
    new = [("task.submitted", task_id) for task_id in await submitted(own_database, 2)]
    assert (await _follow(own_database, beyond))[0] == new
    seen, cursor = await _follow(own_database, current)
    assert (seen, cursor.transaction > offset) == (new, True)
    assert await backups.advance(own_database, "test") > cursor.transaction
    (entry, *_) = await fetch(own_database, "SELECT action FROM audit ORDER BY seq DESC")
    assert entry["action"] == "db.advance"
    # Nor is the token of a lease that was lost given out again.
    assert (await leased(own_database, await ready_worker(own_database))).token > 1000
    await check_invariants(own_database)


async def test_loops_number_on_once_after_a_promotion(own_database: Database) -> None:
    """Readers missed what came, until somebody had thought of `convener db advance`."""

    async def turn() -> dict[str, int]:
        async with own_database.transaction() as connection:
            return await backups.follow_promotion(connection)

    assert [await turn(), await turn()] == [{}, {}]
    current = await value(own_database, "SELECT convener_transaction_offset()")
    await execute(own_database, "COMMENT ON FUNCTION convener_transaction_offset() IS 'timeline 0'")
    assert (await turn())["transaction_offset"] > current
    assert await turn() == {}


async def test_a_server_that_does_not_tell_its_timeline(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PRESENT_TIMELINE", text("SELECT no_such_function()"))
    async with own_database.transaction() as connection:
        assert await backups.follow_promotion(connection) == {}
    assert await backups.advance(own_database, "test") > 0


async def test_whoever_is_writing_has_committed_before_it_is_counted_on(own_database: Database) -> None:
    """Otherwise a reader could be past it by then, and miss it."""
    writer = await own_database.connect()
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("INSERT INTO events (kind) VALUES ('task.submitted')")
    advancing = asyncio.create_task(backups.advance(own_database, "test"))
    await until_blocked(own_database)
    await transaction.commit()
    await writer.close()
    highest = await value(own_database, "SELECT max(transaction) FROM events")
    assert await advancing > highest


async def test_numbers_go_on_while_a_partition_of_events_is_vacuumed(own_database: Database) -> None:
    """That takes minutes, and once for each of 30 attempts advance waited for 200 ms, which cancels no vacuum."""
    async with own_database.transaction() as vacuum:
        await vacuum.exec_driver_sql("LOCK TABLE events_default IN SHARE UPDATE EXCLUSIVE MODE")
        assert await asyncio.wait_for(backups.advance(own_database, "test"), 10) > 0


async def test_what_has_moved_can_move_again(
    own_database: Database, other_server: str, server_url: str, dumps: Dumps, tmp_path: Path
) -> None:
    first = await submitted(own_database)
    await backups.backup(own_database, dumps, tmp_path / "one", lambda _: None, "test")
    async with empty_database(other_server) as there:
        one = await backups.restore(there, dumps, tmp_path / "one", lambda _: None, "test")
        second = await submitted(there)
        _, cursor = await _follow(there, BEGINNING)
        await backups.backup(there, dumps, tmp_path / "two", lambda _: None, "test")
        async with empty_database(server_url) as back:
            two = await backups.restore(back, dumps, tmp_path / "two", lambda _: None, "test")
            assert two.transaction_offset > one.transaction_offset
            third = await submitted(back)
            assert (await _follow(back, cursor))[0] == [("task.submitted", third[0])]
            whole, _ = await _follow(back, BEGINNING)
            assert [task_id for _, task_id in whole] == [*first, *second, *third]
            await check_invariants(back)


async def test_what_was_restored_twice_hides_no_event_from_readers_of_the_first(
    own_database: Database, server_url: str, other_server: str, dumps: Dumps, tmp_path: Path
) -> None:
    """The first is given up, and its readers go on with the second, whose server has counted less."""
    await _count_up(own_database, 20_000)
    await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")
    async with empty_database(server_url) as first, empty_database(other_server) as second:
        await backups.restore(first, dumps, tmp_path / "b", lambda _: None, "test")
        await submitted(first)
        _, cursor = await _follow(first, BEGINNING)
        await backups.restore(second, dumps, tmp_path / "b", lambda _: None, "test")
        assert await _transaction(second) < 20_000
        new = await submitted(second)
        assert (await _follow(second, cursor))[0] == [("task.submitted", new[0])]


async def test_everything_is_there_and_leases_are_released_unharmed(
    own_database: Database, other_server: str, dumps: Dumps, tmp_path: Path
) -> None:
    worker_id, lease = await holding(own_database)
    await execute(
        own_database,
        """UPDATE tasks SET progress = '{"percent": 40}', checkpoint = '{"step": 4}', failures = 1, rescues = 2""",
    )
    waiting = await submitted(own_database, depends_on=[lease.task_id])
    finished = await _complete_task(own_database)
    await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")
    async with empty_database(other_server) as restored:
        done = await backups.restore(restored, dumps, tmp_path / "b", lambda _: None, "test")
        assert done.released_leases == 1
        task = await everything(restored, lease.task_id)
        assert (task["state"], task["worker_id"], task["token"]) == ("pending", None, lease.token)
        assert (task["failures"], task["rescues"], task["checkpoint"]) == (1, 2, {"step": 4})
        assert task["progress"] == {"percent": 40}
        assert [attempt["outcome"] for attempt in task["attempts"]] == ["released"]
        assert (await everything(restored, waiting[0]))["state"] == "blocked"
        assert (await everything(restored, finished))["result"] == {"ok": True}
        (event,) = await fetch(
            restored, "SELECT task_id, worker_id, token FROM every_event WHERE kind = 'task.released'"
        )
        assert (event["task_id"], event["worker_id"], event["token"]) == (lease.task_id, worker_id, lease.token)
        async with restored.transaction() as connection:
            page = await outputs.page(connection, BEGINNING, agent_type=None, goal_id=None, limit=10)
        assert [output.task_id for output in page.items] == [finished]
        await check_invariants(restored)
        # The old worker is known here, and its old token is worth nothing.
        again = await leased(restored, await ready_worker(restored))
        assert (again.task_id, again.checkpoint) == (lease.task_id, '{"step": 4}')
        assert again.token > lease.token


async def test_no_lease_after_the_backup_shares_its_token_with_one_of_the_restored_database(
    own_database: Database, server_url: str, dumps: Dumps, tmp_path: Path
) -> None:
    """Its worker is in the backup, and whatever it sent for the lost lease may arrive while it has the new one."""
    worker_id = await ready_worker(own_database)
    await submitted(own_database)
    await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")
    lost = await leased(own_database, worker_id)
    async with empty_database(server_url) as first, empty_database(server_url) as second:
        for restored in (first, second):
            await backups.restore(restored, dumps, tmp_path / "b", lambda _: None, "test")
            lease = await leased(restored, worker_id)
            assert (lease.task_id, lease.token > lost.token) == (lost.task_id, True)
            assert not await is_accepted(restored, completion(worker_id, lost))
            assert await is_accepted(restored, completion(worker_id, lease))
            await check_invariants(restored)
            lost = lease


async def test_a_task_that_asks_for_resources_goes_back_to_workers_that_offer_them(
    own_database: Database, other_server: str, dumps: Dumps, tmp_path: Path
) -> None:
    (asking,) = await submitted(own_database, resources=GPU)
    await leased(own_database, await ready_worker(own_database), resources=GPU)
    await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")
    async with empty_database(other_server) as restored:
        await backups.restore(restored, dumps, tmp_path / "b", lambda _: None, "test")
        assert class_of(await value(restored, "SELECT tag FROM tasks")) == 1
        assert (await leased(restored, await ready_worker(restored), resources=GPU)).task_id == asking


async def _complete_task(database: Database) -> UUID:
    """A task with a result."""
    worker_id = await ready_worker(database)
    await submitted(database, agent_type=AgentType.RANKING)
    lease = await leased(database, worker_id, agent_type=AgentType.RANKING)
    await hot_path.run(database, lambda c: completions.complete(c, [completion(worker_id, lease)]))
    return lease.task_id


async def test_a_restore_needs_an_empty_database(
    own_database: Database, server_url: str, dumps: Dumps, tmp_path: Path
) -> None:
    await submitted(own_database)
    await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")
    with pytest.raises(Refused, match=f"not empty: it has a schema at {schema.head()}"):
        await backups.restore(own_database, dumps, tmp_path / "b", lambda _: None, "test")
    async with empty_database(server_url) as stranger:
        await execute(stranger, "CREATE TABLE theirs (id int)")
        with pytest.raises(Refused, match="not empty"):
            await backups.restore(stranger, dumps, tmp_path / "b", lambda _: None, "test")
        with pytest.raises(Refused, match="nothing to back up"):
            await backups.backup(stranger, dumps, tmp_path / "c", lambda _: None, "test")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b", "b.json"]


async def test_a_backup_is_for_its_owner_only_and_replaces_nothing(
    own_database: Database, dumps: Dumps, tmp_path: Path
) -> None:
    file = tmp_path / "b"
    manifest = await backups.backup(own_database, dumps, file, lambda _: None, "test")
    for made in (file, archives.manifest_path(file)):
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert archives.read_manifest(file) == manifest
    assert manifest.sha256 == archives.checksum(file)
    content = file.read_bytes()
    with pytest.raises(Refused, match="exists already"):
        await backups.backup(own_database, dumps, file, lambda _: None, "test")
    assert file.read_bytes() == content
    with pytest.raises(Refused, match="cannot write"):
        await backups.backup(own_database, dumps, tmp_path / "nowhere" / "b", lambda _: None, "test")


async def test_a_failed_backup_leaves_nothing_behind(own_database: Database, dumps: Dumps, tmp_path: Path) -> None:
    gone = Database(named(own_database.url, "convener_nowhere"))
    with pytest.raises(DumpFailed, match="convener_nowhere"), archives.new_file(tmp_path / "b") as draft:
        await dumps.dump(gone.url, draft, lambda _: None)
    assert list(tmp_path.iterdir()) == []


async def test_a_disk_that_has_no_room_for_the_manifest_keeps_no_dump_without_it(
    own_database: Database, dumps: Dumps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the same command is refused as there is such a file, and a restore takes that one unchecked."""

    def write_into_full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(archives, "write_manifest", write_into_full_disk)
        with pytest.raises(Refused, match="No space left"):
            await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")
    assert list(tmp_path.iterdir()) == []
    await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")


async def test_a_disk_without_room_for_the_dump_is_named_with_what_helps(
    own_database: Database, dumps: Dumps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dump(*_: object) -> None:
        raise DumpFailed("pg_dump: error: could not write to output file: No space left on device")

    monkeypatch.setattr(Dumps, "dump", dump)
    with pytest.raises(Refused, match="could not write") as refused:
        await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")
    assert "name a file on another" in str(refused.value.hint)
    assert list(tmp_path.iterdir()) == []


async def test_a_backup_of_a_database_whose_disk_is_full_is_complete(
    own_database: Database, dumps: Dumps, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The command failed for its line in the audit log, with the backup there, and was refused when it was repeated."""
    await execute(
        own_database,
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION 'could not extend file "base/1/2": No space left on device' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION refuse()""",
    )
    manifest = await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")
    assert archives.read_manifest(tmp_path / "b") == manifest
    assert "not in the audit log: the database has no room on its disk" in caplog.text


async def test_a_backup_that_cannot_be_checked_for_want_of_room_is_not_called_bad(
    own_database: Database, dumps: Dumps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def silent(*_: object) -> None:
        raise ProgramSilent("pg_restore: it ended with code 1 and said nothing")

    for place, failure in (("tempfile.TemporaryFile", no_room), ("Dumps.contents", silent)):
        with monkeypatch.context() as patch:
            patch.setattr(f"app.memory.service.dumps.{place}", failure)
            with pytest.raises(Refused, match="cannot be checked") as refused:
                backups.inspect(dumps, tmp_path / "b")
            assert "TMPDIR" in str(refused.value.hint)


async def test_damage_is_found(own_database: Database, dumps: Dumps, tmp_path: Path, server_url: str) -> None:
    file = tmp_path / "b"
    await backups.backup(own_database, dumps, file, lambda _: None, "test")
    assert backups.inspect(dumps, file).violations == []
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "SHA-256" in backups.inspect(dumps, file).violations[0]
    file.write_bytes(content[:-1])
    assert "bytes" in backups.inspect(dumps, file).violations[0]
    async with empty_database(server_url) as database:
        with pytest.raises(Refused, match="cannot be restored"):
            await backups.restore(database, dumps, file, lambda _: None, "test")
        assert await schema.revision(database.engine) is None
    archives.manifest_path(file).write_text("{")
    assert "manifest" in backups.inspect(dumps, file).violations[0]
    archives.manifest_path(file).unlink()
    file.write_bytes(b"nonsense")
    assert backups.inspect(dumps, file).violations
    with pytest.raises(Refused, match="no file"):
        backups.inspect(dumps, tmp_path / "none")


async def test_a_dump_without_its_manifest_is_restored_unchecked(
    own_database: Database, server_url: str, dumps: Dumps, tmp_path: Path
) -> None:
    await submitted(own_database)
    await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")
    archives.manifest_path(tmp_path / "b").unlink()
    async with empty_database(server_url) as database:
        done = await backups.restore(database, dumps, tmp_path / "b", lambda _: None, "test")
        assert not done.is_verified
        assert await value(database, "SELECT count(*) FROM tasks") == 1


async def test_a_restore_that_is_interrupted_leaves_nothing_that_could_be_taken_for_a_database(
    own_database: Database, server_url: str, dumps: Dumps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submitted(own_database)
    await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")

    async def interrupted(*_: object, **__: object) -> None:
        raise RuntimeError("interrupted")

    monkeypatch.setattr(backups, "_finish_restore", interrupted)
    async with empty_database(server_url) as database:
        with pytest.raises(RuntimeError):
            await backups.restore(database, dumps, tmp_path / "b", lambda _: None, "test")
        assert await value(database, "SELECT count(*) FROM tasks") == 1
        assert await schema.revision(database.engine) is None
        with pytest.raises(Refused, match="not empty: it has other tables, or what a restore that was cut off left"):
            await backups.restore(database, dumps, tmp_path / "b", lambda _: None, "test")


async def test_an_older_schema_is_brought_up_to_date(server_url: str, dumps: Dumps, tmp_path: Path) -> None:
    async with empty_database(server_url) as old:
        await schema.migrate(old.engine, "2026_11_23_first_schema")
        await execute(
            old,
            "INSERT INTO events (kind, task_id, agent_type) VALUES ('task.submitted', gen_random_uuid(), 'ranking')",
        )
        await backups.backup(old, dumps, tmp_path / "old", lambda _: None, "test")
    async with empty_database(server_url) as new:
        done = await backups.restore(new, dumps, tmp_path / "old", lambda _: None, "test")
        assert (done.dump_revision, done.revision) == ("2026_11_23_first_schema", schema.head())
        assert await schema.revision(new.engine) == schema.head()
        assert len((await _follow(new, BEGINNING))[0]) == 1
        await submitted(new)
        await check_invariants(new)


async def test_a_newer_schema_is_refused(own_database: Database, server_url: str, dumps: Dumps, tmp_path: Path) -> None:
    await execute(own_database, "UPDATE alembic_version SET version_num = 'next_year'")
    await backups.backup(own_database, dumps, tmp_path / "b", lambda _: None, "test")
    async with empty_database(server_url) as database:
        with pytest.raises(Refused, match="next_year"):
            await backups.restore(database, dumps, tmp_path / "b", lambda _: None, "test")


async def test_a_system_whose_loops_have_told_of_it_is_still_unused(database: Database) -> None:
    async with database.transaction() as connection:
        await events.append_system(connection, "alert.opened", {"rule": "pool_below_minimum"})
        assert await store.is_unused(connection)
    await submitted(database)
    async with database.transaction() as connection:
        assert not await store.is_unused(connection)


_ONLY_READING = "ALTER DATABASE {name} SET default_transaction_read_only = on"


@pytest.mark.parametrize("restriction", ["REVOKE INSERT ON audit FROM CURRENT_USER", _ONLY_READING])
async def test_whoever_may_only_read_makes_a_backup_without_an_entry(
    own_database: Database, dumps: Dumps, tmp_path: Path, restriction: str
) -> None:
    await execute(own_database, restriction.format(name=await value(own_database, "SELECT current_database()")))
    reader = Database(own_database.url)
    manifest = await backups.backup(reader, dumps, tmp_path / "dump", lambda _: None, "a reader")
    assert archives.read_manifest(tmp_path / "dump") == manifest
    assert await fetch(reader, "SELECT FROM audit WHERE action = 'db.backup'") == []
    await reader.close()


_OF_SUPERUSERS = (
    "SET allow_in_place_tablespaces = on",
    "CREATE TABLESPACE fast LOCATION ''",
    "ALTER TABLE events_default SET TABLESPACE fast",
    "CREATE EXTENSION pg_stat_statements",
    "COMMENT ON EXTENSION pg_stat_statements IS 'of a superuser'",
    "CREATE PUBLICATION all_tables FOR ALL TABLES",
    "CREATE PUBLICATION some_tables FOR TABLE tasks, TABLES IN SCHEMA public",
    "CREATE FUNCTION watch_changes() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
    "CREATE EVENT TRIGGER watch_changes ON ddl_command_end EXECUTE FUNCTION watch_changes()",
)


async def test_what_a_superuser_has_added_to_the_database_keeps_no_backup_from_being_restored(
    superusers_server: str, server_url: str, dumps: Dumps, tmp_path: Path
) -> None:
    """A role that is none may make no extension, event trigger or publication of all tables."""
    async with empty_database(superusers_server) as database:
        await schema.migrate(database.engine)
        await submitted(database)
        connection = await database.connect()
        for statement in _OF_SUPERUSERS:
            await connection.execute(statement)
        connection.terminate()
        await backups.backup(database, dumps, tmp_path / "b", lambda _: None, "test")
    async with empty_database(server_url) as restored:
        await backups.restore(restored, dumps, tmp_path / "b", lambda _: None, "test")
        assert await value(restored, "SELECT count(*) FROM tasks") == 1
        assert await fetch(restored, "SELECT FROM pg_publication") == []
        await check_invariants(restored)


@pytest.mark.parametrize("is_prepared", [True, False])
async def test_tables_in_a_schema_of_their_own_are_found_there_after_a_restore(
    server_url: str, dumps: Dumps, tmp_path: Path, is_prepared: bool
) -> None:
    """It refused a schema that was there already, and elsewhere left tables that nothing found."""
    async with empty_database(server_url) as empty:
        await _choose_schema(empty)
        database = Database(empty.url)
        await schema.migrate(database.engine)
        await submitted(database)
        await backups.backup(database, dumps, tmp_path / "b", lambda _: None, "test")
        await database.close()
    async with empty_database(server_url) as empty:
        if is_prepared:
            await _choose_schema(empty)
        database = Database(empty.url)
        await backups.restore(database, dumps, tmp_path / "b", lambda _: None, "test")
        await check_invariants(database)
        await submitted(database)
        assert await value(database, "SELECT count(*) FROM app.tasks") == 2
        assert await value(database, "SELECT count(*) FROM tasks") == 2
        await database.close()


async def _choose_schema(database: Database) -> None:
    name = await value(database, "SELECT current_database()")
    await execute(database, "CREATE SCHEMA app")
    await execute(database, f"ALTER DATABASE {name} SET search_path = app")


async def test_the_check_of_invariants_takes_longer_than_the_database_allows_others(own_database: Database) -> None:
    if not await fetch(own_database, "SELECT FROM pg_settings WHERE name = 'transaction_timeout'"):
        pytest.skip("a server before PostgreSQL 17 knows no limit for transactions")
    name = await value(own_database, "SELECT current_database()")
    await execute(own_database, f"ALTER DATABASE {name} SET transaction_timeout = '300ms'")
    database = Database(own_database.url)
    slow = invariants.Check(
        name="slow", description="one second", query="SELECT 'x' FROM pg_sleep(1) AS s WHERE s IS NULL"
    )
    async with database.transaction() as connection:
        (verdict,) = await invariants.run_checks(connection, [slow])
    assert verdict.violations == 0
    await database.close()


async def test_what_depends_on_an_extension_that_any_owner_may_make_is_restored_with_it(
    server_url: str, dumps: Dumps, tmp_path: Path
) -> None:
    """Without it an index of whoever looks after the database kept every backup from being restored."""
    async with empty_database(server_url) as database:
        await schema.migrate(database.engine)
        await submitted(database)
        await execute(database, "CREATE EXTENSION pg_trgm")
        await execute(database, "CREATE INDEX of_a_dba ON tasks USING gin (agent_type gin_trgm_ops)")
        await backups.backup(database, dumps, tmp_path / "b", lambda _: None, "test")
    async with empty_database(server_url) as restored:
        await backups.restore(restored, dumps, tmp_path / "b", lambda _: None, "test")
        assert await value(restored, "SELECT count(*) FROM pg_indexes WHERE indexname = 'of_a_dba'") == 1
        await check_invariants(restored)
