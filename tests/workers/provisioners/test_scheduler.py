"""Commands of schedulers: what is made of an answer, of a refusal and of silence."""

import os
from pathlib import Path

import psutil
import pytest

from app.workers.provisioners import scheduler
from app.workers.provisioners.engine import CALL_SECONDS
from app.workers.provisioners.scheduler import SchedulerError, run_command


async def test_it_hands_over_the_text_and_returns_what_is_printed() -> None:
    assert await run_command("cat", environment=os.environ, text="#!/bin/sh\n") == "#!/bin/sh\n"


async def test_a_refusal_is_told_by_its_last_line() -> None:
    with pytest.raises(SchedulerError, match="sh: no such partition") as refusal:
        await run_command("sh", "-c", "echo batch job >&2; echo no such partition >&2; exit 1", environment=os.environ)
    assert refusal.value.is_refusal


async def test_a_command_that_names_itself_is_named_once() -> None:
    with pytest.raises(SchedulerError, match=r"^sh: error: invalid account$"):
        await run_command("sh", "-c", "echo sh: error: invalid account >&2; exit 1", environment=os.environ)


async def test_a_command_that_does_not_answer_is_ended() -> None:
    with pytest.raises(SchedulerError, match="has not answered") as silence:
        await run_command("sleep", "60", environment=os.environ, seconds=0.2)
    assert not silence.value.is_refusal


@pytest.mark.parametrize("end", ["wait", "exit 0"])
async def test_a_wrapper_that_does_not_answer_is_ended_with_the_command_that_it_runs(tmp_path: Path, end: str) -> None:
    """Each turn would leave one more behind."""
    script = f"sleep 60 & echo $! > {tmp_path}/pid; {end}"
    with pytest.raises(SchedulerError, match="has not answered"):
        await run_command("sh", "-c", script, environment=os.environ, seconds=0.5)
    _, alive = psutil.wait_procs(_processes(int((tmp_path / "pid").read_text())), timeout=5)
    assert alive == []


def _processes(pid: int) -> list[psutil.Process]:
    try:
        return [psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return []


def test_a_slow_command_is_told_of_before_its_turn_is_over() -> None:
    """A turn that cuts it off has no reason to tell, nor to rest."""
    assert scheduler._COMMAND_SECONDS + scheduler._KILL_SECONDS < CALL_SECONDS


async def test_a_command_that_is_missing_is_a_refusal() -> None:
    with pytest.raises(SchedulerError, match="squeue-of-nobody cannot be started") as refusal:
        await run_command("squeue-of-nobody", environment=os.environ)
    assert refusal.value.is_refusal
