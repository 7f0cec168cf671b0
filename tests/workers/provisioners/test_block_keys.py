"""The keys of blocks: each block that runs has one of its own, in a file that only its user can read."""

import json
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.secrecy import write_private
from app.workers.provisioners.engine import EngineUnavailable
from app.workers.provisioners.scheduler import Job, JobState, SchedulerError
from tests.support.blocks import Jobs, engine


async def test_a_block_gets_a_key_of_its_own_when_it_runs_and_loses_it_afterwards(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path)
    await blocks.scale(await blocks.state(fresh=True), 2, [])
    await blocks.state(fresh=True)
    assert not list(tmp_path.glob("*/secrets"))
    jobs.states["1"] = JobState.RUNNING
    await blocks.state(fresh=True)
    (secrets,) = tmp_path.glob("*/secrets")
    assert json.loads(secrets.read_text()) == {
        "CONVENER_LLM_KEY": "s3cret",
        "CONVENER_KEY": f"cvn_{secrets.parent.name}_4",
    }
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    assert stat.S_IMODE(secrets.parent.stat().st_mode) == 0o700
    written_at = secrets.stat().st_mtime_ns
    await blocks.state(fresh=True)
    assert secrets.stat().st_mtime_ns == written_at
    os.utime(secrets, (time.time() - 400,) * 2)
    await blocks.state(fresh=True)
    assert time.time() - secrets.stat().st_mtime < 100
    jobs.states["1"] = JobState.ENDED
    assert (await blocks.state(fresh=True)).members == []
    assert not secrets.exists()


async def test_what_is_left_of_a_block_that_has_lost_nodes_still_gets_keys(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path, min_nodes=2)
    await blocks.scale(await blocks.state(fresh=True), 4, [])
    jobs.states["1"], jobs.nodes["1"] = JobState.RUNNING, 1
    assert (await blocks.state(fresh=True)).requested == 0
    (secrets,) = tmp_path.glob("*/secrets")
    assert json.loads(secrets.read_text())["CONVENER_KEY"] == f"cvn_{secrets.parent.name}_8"


async def test_keys_are_renewed_while_the_scheduler_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that starts again meanwhile would be refused: a key is good for ten minutes."""
    jobs = Jobs()
    blocks = engine(jobs, tmp_path)
    await blocks.scale(await blocks.state(fresh=True), 2, [])
    jobs.states["1"] = JobState.RUNNING
    await blocks.state(fresh=True)
    (secrets,) = tmp_path.glob("*/secrets")
    os.utime(secrets, (time.time() - 400,) * 2)

    async def away() -> Sequence[Job]:
        raise SchedulerError("squeue: Unable to contact slurm controller")

    monkeypatch.setattr(jobs, "jobs", away)
    with pytest.raises(EngineUnavailable, match="Unable to contact"):
        await blocks.state(fresh=True)
    assert time.time() - secrets.stat().st_mtime < 100
    # One that has never heard which blocks run takes none away.
    with pytest.raises(EngineUnavailable, match="Unable to contact"):
        await engine(jobs, tmp_path).state(fresh=True)
    assert secrets.exists()


async def test_a_file_system_whose_clock_is_off_costs_no_key_at_each_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, keys = Jobs(), []

    def write(path: Path, text: str) -> None:
        keys.append(text)
        write_private(path, text)
        os.utime(path, (time.time() - 400,) * 2)

    monkeypatch.setattr("app.workers.provisioners.blocks.write_private", write)
    blocks = engine(jobs, tmp_path)
    await blocks.scale(await blocks.state(fresh=True), 2, [])
    jobs.states["1"] = JobState.RUNNING
    for _ in range(3):
        await blocks.state(fresh=True)
    assert len(keys) == 1


async def test_what_else_lies_in_the_directory_of_blocks_stays(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path)
    over = tmp_path / "6a7b8c9d0123abcd"
    for directory in (tmp_path / "thesis", over):
        directory.mkdir()
    await blocks.state(fresh=True)
    assert (over.exists(), (tmp_path / "thesis").exists()) == (False, True)
