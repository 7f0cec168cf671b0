"""What the one-shot service leaves behind: a database that is up to date, and one key that workers can use."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from app.admin.service.keyring import Keyring
from app.db import schema
from app.db.database import Database
from app.workers.store import tables
from tests.docker.composition import services
from tests.support.processes import program
from worker_agent.options import read_options

FILE = "pool.key"


def set_up(keys: Path, programs: Path, database_url: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the service's own script, with `keys` in the place of the volume and `programs` first in the path."""
    service = services()["setup"]
    words = [word.replace("/keys", str(keys)) for word in [*service["entrypoint"], *service["command"]]]
    given = {"PATH": f"{programs}:{os.environ['PATH']}", "CONVENER_DATABASE_URL": database_url}
    # A key of the caller's would send the command to the service, which is not there yet.
    inherited = {name: value for name, value in os.environ.items() if name != "CONVENER_KEY"}
    return subprocess.run(words, env=inherited | given, capture_output=True, text=True, timeout=120)


def stand_in(directory: Path, script: str) -> Path:
    """A directory whose `convener` is this shell script."""
    directory.mkdir()
    program(directory, "convener", script)
    return directory


async def test_the_key_is_made_once_and_is_a_pools(database: Database, tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    assert shutil.which("convener", path=str(programs))
    for _ in range(2):
        done = await asyncio.to_thread(set_up, tmp_path, programs, database.url)
        assert done.returncode == 0, done.stderr
    key = (tmp_path / FILE).read_text().strip()
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert (await Keyring(database).recognise(key)).role == "pool"
    assert await schema.revision(database.engine) == schema.head()
    async with database.transaction() as connection:
        labels = await connection.execute(select(tables.keys.c.label))
        assert sorted(labels.scalars()) == ["pool", "prometheus"]
    monitor_key = tmp_path.with_name(f"{tmp_path.name}-monitor") / "monitor.key"
    assert (await Keyring(database).recognise(monitor_key.read_text().strip())).role == "monitor"
    # Prometheus runs as another user.
    assert stat.S_IMODE(monitor_key.stat().st_mode) == 0o444


@pytest.mark.parametrize("failing", ["db", "key"])
def test_a_step_that_fails_leaves_no_key_and_says_so(tmp_path: Path, failing: str) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    programs = stand_in(tmp_path / "bin", f'test "$1" != {failing} || exit 5\necho cvn_half')
    assert set_up(keys, programs).returncode == 5
    assert not (keys / FILE).exists()


def test_a_key_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / FILE).touch()
    assert set_up(keys, stand_in(tmp_path / "bin", 'test "$1" != key || echo cvn_whole')).returncode == 0
    assert (keys / FILE).read_text() == "cvn_whole\n"


def test_workers_accept_their_command_line_with_that_key(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("cvn_4f0c9d2a71be_secret\n")
    worker = services()["worker"]
    words = [word.replace("/keys", str(tmp_path)) for word in worker["command"]]
    assignment, _ = read_options(words, {name: value for name, value in worker["environment"].items() if value})
    assert assignment.url == worker["environment"]["CONVENER_URL"]
    assert assignment.pool_key == "cvn_4f0c9d2a71be_secret"
    assert assignment.handlers
