"""The process that prepares the database of `convener up`."""

import asyncio
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from app.admin.service import sessions
from app.admin.service.keyring import Keyring
from app.cli import stack, up_run
from app.cli.pool_options import PoolInForce, PoolOptions
from app.cli.stack import KEY_FILES, Preparation, Stack, StackError
from app.cli.supervisor import Supervisor
from app.db import schema
from app.db.database import Database
from app.kernel.access import Role
from app.kernel.modes import Mode
from app.settings import Settings
from app.terminal.failures import ExitCode, Failure
from tests.support.ports import free_port
from tests.support.sql import execute, until, value
from worker_agent.connections.trust import SYSTEM_TRUST

pytestmark = pytest.mark.slow


async def _prepared(url: str, state: Path, *, with_link: bool = False, **options: object) -> Preparation:
    settings = Settings(database_url=url, state_directory=state)
    wish = PoolOptions(**options)  # type: ignore[arg-type]
    return await stack._prepare(settings, wish, print, is_alone=False, with_link=with_link)


async def test_keys_are_made_once_and_the_pool_is_configured(database: Database, tmp_path: Path) -> None:
    first = await _prepared(database.url, tmp_path, mode=Mode.PRODUCTION, max_workers=12, reason="convener up")
    assert first.new_keys == set(KEY_FILES)
    assert (first.pool.mode, first.pool.max_workers, first.link) == (Mode.PRODUCTION, 12, None)
    assert (await Keyring(database).recognise(first.keys[Role.ADMIN])).role is Role.ADMIN
    again = await _prepared(database.url, tmp_path)
    assert (again.new_keys, again.keys, again.pool) == (frozenset(), first.keys, first.pool)


async def test_a_password_apart_from_the_address_may_stand_in_the_file_of_settings(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('database_password = "it is in the address by now"\n')
    file.chmod(0o600)
    monkeypatch.setenv("CONVENER_SETTINGS_FILE", str(file))
    prepared = await _prepared(database.url, tmp_path)
    assert prepared.new_keys == set(KEY_FILES)


async def test_a_link_opens_one_session_of_the_operator(database: Database, tmp_path: Path) -> None:
    prepared = await _prepared(database.url, tmp_path, with_link=True)
    assert prepared.link is not None
    assert prepared.link not in repr(prepared)
    async with database.transaction() as connection:
        assert await sessions.open_by_link(connection, prepared.link)


async def test_what_cannot_be_is_refused_in_words(database: Database, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="min_workers must not be above max_workers, which is 5") as refused:
        await _prepared(database.url, tmp_path, min_workers=9)
    assert refused.value.code is ExitCode.REFUSED


async def test_a_schema_of_a_newer_version_is_refused_in_words(own_database: Database, tmp_path: Path) -> None:
    await execute(own_database, "UPDATE alembic_version SET version_num = 'next_year'")
    await execute(own_database, "DELETE FROM served_revisions WHERE revision = $1", schema.head())
    with pytest.raises(Failure, match="next_year, which this version does not know") as refused:
        await _prepared(own_database.url, tmp_path)
    assert "restore the backup" in str(refused.value.hint)


async def test_a_database_that_is_away_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="the database cannot be reached") as refused:
        await _prepared(f"postgresql://a:secret-of-a@127.0.0.1:{free_port()}/x", tmp_path)
    assert refused.value.code is ExitCode.UNREACHABLE
    assert refused.value.hint
    assert "secret-of-a" not in f"{refused.value.details}"


async def test_whoever_is_stopped_meanwhile_leaves_nothing_at_work(database: Database, tmp_path: Path) -> None:
    async def waits() -> bool:
        return bool(await _waiting(database))

    async def is_gone() -> bool:
        return not await _waiting(database)

    async with database.transaction() as connection:
        await connection.exec_driver_sql("LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE")
        preparing = asyncio.create_task(_prepared(database.url, tmp_path))
        await until(waits)
        (child,) = (found for found in psutil.Process().children() if "app.cli.preparation" in found.cmdline())
        preparing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await preparing
        assert not child.is_running()
        # While the lock is still held.
        await until(is_gone)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["no JSON", '{"answer": {"new', "[]", "{}"])
async def test_what_is_no_answer_is_told(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """A process that is killed may leave half a line."""
    other = [sys.executable, "-c", f"print({line!r})"]
    monkeypatch.setattr(stack, "bound_command", lambda *_: other)
    with pytest.raises(StackError, match="could not be prepared"):
        await _prepared(database.url, tmp_path)


@pytest.mark.parametrize("is_terminal", [True, False])
async def test_only_a_terminal_gets_a_link(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    """What is not shown to a person goes into journals, which let others read it."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr(up_run, "console", Console(file=stream, force_terminal=True))
    asked: list[bool] = []

    def running(*_: Any, with_link: bool, **__: Any) -> None:
        asked.append(with_link)
        raise StackError("enough")

    monkeypatch.setattr(up_run, "running", running)
    with pytest.raises(StackError):
        await up_run._run(up_run.StopSignals(), Settings(), PoolOptions())
    assert asked == [is_terminal]


@pytest.mark.parametrize(
    ("link", "words"), [(None, "/dashboard  (log in with"), ("cvs_a", "/dashboard/login?link=cvs_a")]
)
def test_the_address_of_the_dashboard(link: str | None, words: str) -> None:
    pool = PoolInForce(mode=Mode.DEVELOPMENT, min_workers=2, max_workers=5)
    preparation = Preparation(keys={}, new_keys=frozenset(), pool=pool, link=link)
    machine = Stack(
        url="http://here",
        own_address="unix:/here",
        trust=SYSTEM_TRUST,
        preparation=preparation,
        supervisor=Supervisor(None, [], Path("children.json")),
    )
    assert up_run._dashboard(machine).startswith(f"http://here{words}")


async def _waiting(database: Database) -> int:
    return int(
        await value(
            database,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
    )


def test_what_runs_on_needs_nothing_of_the_database() -> None:
    """Its libraries would be half of the memory of a process that only looks after others."""
    code = "import sys, app.cli.up_run; print({'sqlalchemy', 'asyncpg', 'alembic', 'fastapi'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"
