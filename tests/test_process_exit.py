"""Waiting for the exit of a real process, with and without process descriptors."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.process_exit import until_exit


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
