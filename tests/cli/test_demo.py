"""`convener demo` ends soon after Ctrl-C, whatever its supervisor waits for."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from app.cli import demo_run
from app.cli.demo_run import Plan
from app.cli.up_run import StopSignals, stoppable
from app.kernel.access import Role
from app.postgres.errors import ClusterUnusable
from app.settings import Settings
from app.terminal.failures import ExitCode
from examples.kepler import supervisor

_PLAN = Plan(seed=1, rounds=None, keep=False, llm=False)


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for a service that is up at once."""
    there = SimpleNamespace(url="http://here", own_address="http://here", keys={Role.SUPERVISOR: "key"})

    @asynccontextmanager
    async def running(*_: Any, **__: Any) -> AsyncIterator[Any]:
        yield there

    monkeypatch.setattr(demo_run, "running", running)
    return there


@pytest.mark.usefixtures("stack")
async def test_the_supervisor_tries_no_longer_once_the_demo_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started, ended = threading.Event(), threading.Event()

    def run(*, sleep: Callable[[float], None] = time.sleep, **rest: Any) -> None:
        """As where the API is away: it pauses again and again, here for no more than 10 s."""
        started.set()
        try:
            for _ in range(100):
                sleep(0.1)
        except InterruptedError:
            ended.set()
            raise

    monkeypatch.setattr(supervisor, "run", run)
    demo = asyncio.create_task(_demo(tmp_path))
    assert await asyncio.to_thread(started.wait, 20)
    os.kill(os.getpid(), signal.SIGINT)
    assert await demo is False
    assert await asyncio.to_thread(ended.wait, 20)


async def test_a_start_that_takes_long_can_be_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @asynccontextmanager
    async def running(*_: Any, **__: Any) -> AsyncIterator[Any]:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(20)
        yield None

    monkeypatch.setattr(demo_run, "running", running)
    with pytest.raises(typer.Exit) as ending:
        await _demo(tmp_path)
    assert ending.value.exit_code == ExitCode.INTERRUPTED


async def test_what_ctrl_c_has_ended_as_well_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a terminal it goes to all programs, to initdb too, for which the start waits."""

    @asynccontextmanager
    async def running(*_: Any, **__: Any) -> AsyncIterator[Any]:
        os.kill(os.getpid(), signal.SIGINT)
        if tmp_path.exists():
            raise ClusterUnusable("initdb was terminated by signal 2")
        yield None

    monkeypatch.setattr(demo_run, "running", running)
    with pytest.raises(typer.Exit) as ending:
        await _demo(tmp_path)
    assert ending.value.exit_code == ExitCode.INTERRUPTED


async def _demo(state: Path) -> bool:
    settings = Settings(state_directory=state)

    async def run(stop: StopSignals) -> bool:
        return await demo_run._run(stop, settings, _PLAN)

    try:
        return await stoppable(run)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().remove_signal_handler(number)
