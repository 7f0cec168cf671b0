"""Child processes that are watched without a thread, and none of which is forgotten."""

import asyncio
import signal
import sys
from threading import Thread

import psutil
import pytest

from worker_agent import processes
from worker_agent.kernel_calls import end_with_parent
from worker_agent.processes import Process, start_process


def _sleeper() -> Process:
    return start_process(sys.executable, "-c", "import time; time.sleep(60)", parent_ended=signal.SIGTERM)


@pytest.mark.parametrize("has_pidfd", [True, False])
async def test_it_is_watched_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch, has_pidfd: bool) -> None:
    def fail(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", fail)
    if not has_pidfd:
        monkeypatch.setattr(processes, "open_pidfd", lambda _: None)
    process = _sleeper()
    endings = [asyncio.create_task(process.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    assert process.returncode is None
    process.terminate()
    assert await asyncio.gather(*endings) == [-signal.SIGTERM] * 2
    assert process.returncode == await process.wait() == -signal.SIGTERM


async def test_who_waits_no_longer_leaves_it_to_others() -> None:
    process = _sleeper()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.01)
    process.kill()
    assert await process.wait() == -signal.SIGKILL


def test_a_start_that_fails_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("not here")

    before = set(psutil.Process().children())
    for words, before_exec in (["/no/such/program"], end_with_parent), ([sys.executable], fail):
        monkeypatch.setattr(processes, "end_with_parent", before_exec)
        with pytest.raises(OSError, match=r"No such file|preexec_fn"):
            start_process(*words, parent_ended=signal.SIGTERM)
    assert set(psutil.Process().children()) <= before
