"""A pid is given to another process sooner or later; that one must not pay for the worker that had it before."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import psutil
import pytest

from app.workers.provisioners.local import LocalProvisioner


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that leads a session of its own, as workers do, but is none."""
    echo = "import sys; sys.stdout.write(sys.stdin.readline())"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", echo], stdin=pipe, stdout=pipe, start_new_session=True) as child:
        yield child
        child.kill()


async def test_a_stranger_that_leads_a_session_under_the_pid_is_left_alone(
    stranger: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    reported: asyncio.Future[UUID] = asyncio.get_running_loop().create_future()

    async def on_exit(worker_id: UUID, reason: str, error: str | None) -> None:
        reported.set_result(worker_id)

    plane = LocalProvisioner(
        host="here", owner="ours", arguments=[], environment=os.environ, secrets={}, logs=tmp_path, on_exit=on_exit
    )
    worker_id = uuid4()
    plane.adopt(worker_id, {"pid": stranger.pid, "created": psutil.Process(stranger.pid).create_time() - 100})
    assert await reported == worker_id
    assert stranger.communicate(b"still there\n", timeout=60)[0] == b"still there\n"
