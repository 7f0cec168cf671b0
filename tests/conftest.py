"""Ways to a database: a connection that is rolled back (cheapest), a database that commits and is emptied afterwards
(for races and loops), and one that is thrown away (for tests that change the schema or look at statistics)."""

import gc
import os
import re
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import schema
from app.db.database import Database
from app.metadata import metadata
from app.postgres.binaries import Binaries, find_binaries
from app.queue.broker.broker import Broker
from app.queue.rules.fair_queueing import FairQueue
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.leases import LeaseService
from app.workers.service.workers import Heartbeats
from app.workers.store import pool
from tests.support.postgres import running_server
from tests.support.problems import everything
from tests.support.service import Service, Worker, make_keys, serving

pytest_plugins = ["tests.support.command_line"]

# Where tests run in parallel on a server that was given, every process has databases of its own.
PROCESS = os.environ.get("PYTEST_XDIST_WORKER", "alone")
_TEMPLATE = f"convener_template_{PROCESS}"
# What rich and typer go by, beside the terminal.
_LOOKS = frozenset(
    {"FORCE_COLOR", "NO_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"}
)
# Of the 103 bytes that macOS has for a socket, tests that run in parallel take 88 for their own directories.
_LONGEST_TEMPORARY_PATH = 15
_LONG = 100
_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Deleting takes a tenth of the time of truncating, and that a fraction of making a database.
_STRANGERS = "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
_EMPTY = "; ".join(
    [
        # Waits until they are gone: one that is just committing would leave a row behind for the next test.
        f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {_STRANGERS}",
        *(f"DELETE FROM {table.name}" for table in metadata.sorted_tables),
    ]
)

# How long an example takes says what else the machine is doing.
settings.register_profile("whenever", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("whenever")


def pytest_configure() -> None:
    """Let programs that tests interrupt notice it, also where a script runs the tests in its background.

    Nor does the shell that starts them decide what they see: its mask of modes, which may close code to handlers of
    another user, its wishes for colours, its servers of PostgreSQL, and a temporary directory whose path is so long
    that sockets have no room below it.
    """
    os.umask(0o022)
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_TEMPORARY_PATH:
        os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"
    is_given = "CONVENER_TEST_DATABASE_URL" in os.environ
    for name in [name for name in os.environ if name in _LOOKS or (name.startswith("PG") and not is_given)]:
        del os.environ[name]
    # Drivers ask no PostgreSQL of the tests for TLS, which it has not: a context for it is made for every connection.
    os.environ.setdefault("PGSSLMODE", "disable")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object) -> str | None:
    """The name of a case is short and shows no random id: processes that share the tests must agree on their names."""
    if isinstance(val, str) and (len(val) > _LONG or _UUID.search(val)):
        return _UUID.sub("some-uuid", val[:_LONG])
    return None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, so none of them is what all wait for at the end.

    The first process has all of them until others have nothing left: slow tests start many processes and wait for them,
    so each has a quick one beside it and no other slow one.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing that is made here becomes garbage: to look for some takes seconds, now and in each long search later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """No test leaves variables behind, which programs that later tests start would obey."""
    before = set(os.environ.items())
    yield
    # Their names only: a value may be a secret.
    assert {name for name, _ in before ^ set(os.environ.items())} <= {"PYTEST_CURRENT_TEST"}


@pytest.fixture(autouse=True)
def _same_signals() -> Iterator[None]:
    """No test leaves handlers of signals behind: of commands that run here, or of an event loop."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def binaries() -> Binaries:
    return find_binaries(os.environ.get("CONVENER_POSTGRES_BIN"))


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """URL of a PostgreSQL for this run: `CONVENER_TEST_DATABASE_URL`, else a bundled one of its own."""
    given = os.environ.get("CONVENER_TEST_DATABASE_URL")
    if given:
        yield given
        return
    directory = Path(tempfile.mkdtemp(prefix="convener-test-"))
    # Where the tests run as root, PostgreSQL may have to run as another user, who must be able to come in.
    directory.chmod(0o711)
    try:
        with running_server(directory / "server") as url:
            yield url
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def named(url: str, database: str) -> str:
    """The URL of another database on the same server."""
    return f"{url.rpartition('/')[0]}/{database}"


class _Cleaner:
    """Empties a database after each test, by one connection: another one would first read every table's description."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def empty(self) -> None:
        """Delete everything, once nobody else is connected."""
        if self._connection is None or self._connection.is_closed():  # a test may have ended all connections
            self._connection = await asyncpg.connect(self._url)
            # So that the triggers which count tasks keep still.
            await self._connection.execute("SET session_replication_role = replica")
        await self._connection.execute(_EMPTY)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


async def run_on(url: str, statement: str) -> None:
    """Run one statement outside any transaction."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
async def template(server_url: str) -> str:
    """Name of a migrated, empty database that others are copied from."""
    await run_on(server_url, f"DROP DATABASE IF EXISTS {_TEMPLATE} WITH (FORCE)")
    await run_on(server_url, f"CREATE DATABASE {_TEMPLATE}")
    database = Database(named(server_url, _TEMPLATE))
    await schema.migrate(database.engine)
    await database.close()
    return _TEMPLATE


@asynccontextmanager
async def new_database(server_url: str, template: str = "template1") -> AsyncIterator[str]:
    """URL of a database that is dropped at the end: a copy of the template, by default without a schema."""
    name = f"convener_test_{uuid4().hex[:12]}"
    await run_on(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield named(server_url, name)
    finally:
        await run_on(server_url, f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def empty_database(server_url: str, template: str = "template1") -> AsyncIterator[Database]:
    """As `new_database`, and connections to it."""
    async with new_database(server_url, template) as url:
        database = Database(url)
        try:
            yield database
        finally:
            await database.close()


@pytest.fixture
async def empty_url(server_url: str) -> AsyncIterator[str]:
    """URL of a database without a schema."""
    async with new_database(server_url) as url:
        yield url


@pytest.fixture
async def database_url(server_url: str, template: str) -> AsyncIterator[str]:
    """URL of an empty, migrated database of the test's own."""
    async with new_database(server_url, template) as url:
        yield url


@pytest.fixture(scope="module")
async def module_database_url(server_url: str, template: str) -> AsyncIterator[str]:
    """URL of a database for the tests of one file, which do not disturb each other there."""
    async with new_database(server_url, template) as url:
        yield url


@pytest.fixture
async def own_database(database_url: str) -> AsyncIterator[Database]:
    """A database that is thrown away afterwards: a test may do with it what it likes."""
    database = Database(database_url)
    database.announcer.start()
    yield database
    await database.close()


@pytest.fixture(scope="session")
async def emptied_url(server_url: str, template: str) -> str:
    """URL of the one database of this process that is emptied after each test."""
    name = f"convener_emptied_{PROCESS}"
    await run_on(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await run_on(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    return named(server_url, name)


@pytest.fixture(scope="session")
async def _cleaner(emptied_url: str) -> AsyncIterator[_Cleaner]:
    cleaner = _Cleaner(emptied_url)
    yield cleaner
    await cleaner.close()


@pytest.fixture
async def database(emptied_url: str, _cleaner: _Cleaner) -> AsyncIterator[Database]:
    """An empty database that commits. Its schema must stay as it is; sequences go on counting."""
    database = Database(emptied_url)
    database.announcer.start()
    yield database
    await database.close()
    await _cleaner.empty()


@pytest.fixture(scope="session")
async def shared(server_url: str, template: str) -> AsyncIterator[Database]:
    """One database for all tests of this process that roll back."""
    name = f"convener_shared_{PROCESS}"
    await run_on(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await run_on(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    database = Database(named(server_url, name))
    yield database
    await database.close()


@pytest.fixture
async def connection(shared: Database) -> AsyncIterator[AsyncConnection]:
    """A connection whose transaction is rolled back at the end."""
    async with shared.engine.connect() as connection:
        transaction = await connection.begin()
        yield connection
        await transaction.rollback()


@pytest.fixture
async def service(database: Database) -> AsyncIterator[Service]:
    """The application, and a key for every role."""
    async with serving(database.url, await make_keys(database)) as service:
        yield service


@pytest.fixture
async def worker(service: Service) -> Worker:
    return await service.worker()


@pytest.fixture
async def lease(service: Service, worker: Worker) -> Any:
    await service.submitted()
    return await worker.lease()


@pytest.fixture
async def unchanged(lease: Any, database: Database) -> AsyncIterator[None]:
    """The whole database is the same after the test as before."""
    before = await everything(database)
    yield
    assert await everything(database) == before


@pytest.fixture
async def broker(database: Database) -> AsyncIterator[Broker]:
    broker = Broker(database, LeasePolicy(), on_first_leases=pool.record_first_leases)
    broker.start()
    yield broker
    await broker.stop()


@pytest.fixture
async def desk(database: Database) -> AsyncIterator[LeaseService]:
    desk = LeaseService(database, LeasePolicy(), FairQueue())
    yield desk
    await desk.stop()


@pytest.fixture
async def heartbeats(database: Database) -> AsyncIterator[Heartbeats]:
    heartbeats = Heartbeats(database, LeasePolicy())
    yield heartbeats
    await heartbeats.stop()


@pytest.fixture
async def replica(database: Database) -> AsyncIterator[Database]:
    """The same database as another process of the service sees it."""
    replica = Database(database.url)
    replica.announcer.start()
    yield replica
    await replica.close()
