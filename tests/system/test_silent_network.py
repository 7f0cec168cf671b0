"""Real processes and a network that goes silent without closing anything: they go on by new connections, and end."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from subprocess import Popen

import httpx
import psutil
import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.support.factories import holding
from tests.support.ports import free_port
from tests.support.processes import process
from tests.support.proxy import Line, silent_line
from tests.support.sql import execute, until, value
from tests.system.conftest import api_process

pytestmark = pytest.mark.slow
_PATHS = ("/tasks", "/context", "/workers", "/queues", "/events?wait_seconds=30")


@pytest.fixture
async def line(own_database: Database) -> AsyncIterator[Line]:
    async with silent_line(own_database.url) as line:
        yield line


@pytest.fixture
def loops(line: Line, tmp_path: Path) -> Iterator["Popen[bytes]"]:
    """The loops, connected by that line."""
    environment = {"CONVENER_DATABASE_URL": line.url, "CONVENER_STATE_DIRECTORY": str(tmp_path)}
    environment |= {"CONVENER_POOL_SIZE": "1", "CONVENER_PORT": str(free_port())}
    with process("app.background", environment, tmp_path / "loops.log") as child:
        yield child


async def _until_swept(database: Database) -> None:
    async def swept() -> bool:
        return not await value(database, "SELECT count(*) FROM tasks WHERE state IN ('assigned', 'executing')")

    await until(swept, within=60)


async def _lease_and_expire(database: Database) -> None:
    await holding(database)
    await execute(database, "UPDATE tasks SET lease_expires_at = now() - interval '1 minute'")


async def test_duties_run_again_when_the_network_is_back_and_their_old_connections_stay_silent(
    own_database: Database, line: Line, loops: "Popen[bytes]"
) -> None:
    await _lease_and_expire(own_database)
    await _until_swept(own_database)
    line.die()
    # Long enough for every loop to have sent something into the silence.
    await asyncio.sleep(3)
    await _lease_and_expire(own_database)
    line.come_back()
    await _until_swept(own_database)


async def test_the_loops_end_though_nothing_answers(own_database: Database, line: Line, loops: "Popen[bytes]") -> None:
    await _lease_and_expire(own_database)
    await _until_swept(own_database)
    line.die()
    await asyncio.sleep(1)
    loops.send_signal(signal.SIGTERM)
    # The limit is 5 s; a process that waited for the database took a minute.
    await asyncio.to_thread(loops.wait, 20)


async def test_the_api_ends_though_nothing_answers(own_database: Database, line: Line, tmp_path: Path) -> None:
    async with api_process(line.url, tmp_path) as api, httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
        line.die()
        asking = [asyncio.create_task(client.get(path, headers=api.bearer(Role.ADMIN))) for path in _PATHS]
        await asyncio.sleep(1)
        os.kill(api.pid, signal.SIGTERM)
        await asyncio.to_thread(psutil.Process(api.pid).wait, 20)
        await asyncio.gather(*asking, return_exceptions=True)
