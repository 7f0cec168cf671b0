"""Children that die while something else is wrong too: a full disk, a PostgreSQL that cannot start, a killed parent."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import psutil
import pytest

from app.cli.supervisor import Program, Supervisor, end_leftovers
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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the time of a start cannot be told from the clock")
async def test_leftovers_are_ended_although_the_clock_was_set_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeps.py").write_text(_SLEEPS)
    record = tmp_path / "children.json"
    program = Program(
        name="api", module="sleeps", environment={**os.environ, "PYTHONPATH": str(tmp_path)}, stop_seconds=5
    )
    supervisor = Supervisor(None, [program], record)
    await supervisor.start_programs()
    try:
        for keeper in supervisor._keepers:  # as those of a supervisor that was killed, which start nothing again
            keeper.cancel()
        # The kernel reckons the time of its boot, and so of each start, from the present clock.
        former_boot_time = psutil.boot_time()
        former_create_time = psutil.Process.create_time
        monkeypatch.setattr(psutil, "boot_time", lambda: former_boot_time + 3600)
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: former_create_time(process) + 3600)
        assert await asyncio.to_thread(end_leftovers, record) == 1
        # It is a child of this process: whoever waited for it first has its code, and asyncio 255 if that was another.
        assert await asyncio.wait_for(program.wait(), 20) in (-signal.SIGTERM, 255)
        assert not record.exists()
    finally:
        await supervisor.stop()


def test_a_process_that_has_the_pid_of_a_child_lives_on(tmp_path: Path) -> None:
    record = tmp_path / "children.json"
    with subprocess.Popen([sys.executable, "-c", _SLEEPS]) as stranger:
        try:
            # The clock may have been set to just when the child had started; records of earlier versions tell no more.
            created = psutil.Process(stranger.pid).create_time()
            marks = ({"created": created - 100}, {"created": created, "since_boot": created - psutil.boot_time() - 100})
            for mark in marks:
                record.write_text(json.dumps([{"pid": stranger.pid, **mark}]))
                assert end_leftovers(record) == 0
            assert stranger.poll() is None
        finally:
            stranger.kill()
