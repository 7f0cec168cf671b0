"""Waiting for the exit of a real process, with and without process descriptors, and children that end with us."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.postgres.launch import stop_with_parent
from app.process_exit import until_exit
from worker_agent.kernel_calls import end_with_parent


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that runs until it is killed."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def _descriptors() -> set[str]:
    return {os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


@pytest.mark.parametrize("has_descriptors", [True, False])
async def test_it_returns_at_the_exit(
    child: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch, has_descriptors: bool
) -> None:
    if not has_descriptors:
        monkeypatch.delattr(os, "pidfd_open")
    wait = asyncio.create_task(until_exit(child.pid, lambda: child.poll() is None))
    await asyncio.sleep(0.1)
    assert not wait.done()
    child.kill()
    await asyncio.wait_for(wait, 20)


async def test_whoever_waits_no_longer_leaves_no_descriptor(child: "subprocess.Popen[bytes]") -> None:
    wait = asyncio.create_task(until_exit(child.pid, lambda: child.poll() is None))
    await asyncio.sleep(0.1)
    assert any("pidfd" in name for name in _descriptors())
    wait.cancel()
    await asyncio.wait([wait])
    assert not any("pidfd" in name for name in _descriptors())


async def test_a_process_that_is_gone_already_is_not_waited_for(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()
    await asyncio.wait_for(until_exit(child.pid, lambda: child.poll() is None), 20)


def _end(parent: int) -> None:
    end_with_parent(parent, signal.SIGTERM)


@pytest.mark.parametrize(
    ("ask", "number"), [(_end, signal.SIGTERM), (stop_with_parent, signal.SIGINT)], ids=["worker", "pg_dump"]
)
def test_a_child_hears_of_its_parent_s_end_before_it_runs_its_program(
    ask: Callable[[int], None], number: signal.Signals
) -> None:
    """A handler of the parent took the signal, and the child lived on."""

    def be_told_at_once() -> None:
        ask(parent)
        os.kill(os.getpid(), number)

    parent, former = os.getpid(), signal.signal(number, lambda *_: None)
    try:
        # Its preexec_fn is what is tested.
        with subprocess.Popen(("sleep", "20"), preexec_fn=be_told_at_once) as child:  # noqa: PLW1509
            assert child.wait() == -number
    finally:
        signal.signal(number, former)
