"""Children that die while something else is wrong too: a full disk, a PostgreSQL that cannot start."""

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import cast

from app.cli.supervisor import Program, Supervisor
from app.postgres.errors import StartFailed
from app.postgres.server import Server
from tests.support.sql import until

_SLEEPS = "import time\ntime.sleep(600)\n"


async def test_what_dies_comes_back_although_its_record_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text(_SLEEPS)
    place = tmp_path / "state"
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    program = Program(name="api", module="sleeps", environment=environment, stop_seconds=5)
    supervisor = Supervisor(None, [program], place / "children.json")
    await supervisor.start_programs()
    try:
        shutil.rmtree(place)  # as a full disk: no file can be made in it
        for number in (1, 2):
            former = program.pid
            program.send(signal.SIGKILL)

            async def is_back(former: int | None = former, number: int = number) -> bool:
                return program.restarts == number and program.pid not in (None, former)

            await until(is_back, within=20)
    finally:
        await supervisor.stop()


class _Unstartable:
    """A PostgreSQL that ends at once, however often it is started."""

    url = "postgresql://"
    starts = 0

    async def wait(self) -> int:
        return 1

    async def start(self) -> None:
        self.starts += 1
        raise StartFailed("no space left")

    async def stop(self) -> None:
        pass

    def prune_logs(self) -> None:
        pass


async def test_a_postgresql_that_cannot_start_is_tried_less_and_less_often(tmp_path: Path) -> None:
    server = _Unstartable()
    supervisor = Supervisor(cast("Server", server), [], tmp_path / "children.json")

    async def is_tried_again() -> bool:
        return server.starts > 1

    await supervisor.start_programs()
    await asyncio.sleep(1.5)
    # Every 0.1 s it would be about fifteen.
    assert server.starts < 8
    await until(is_tried_again)
    await supervisor.stop()
