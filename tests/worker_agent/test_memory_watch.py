"""The memory of several processes: shared memory counts once, and a look ends in time whatever they have mapped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from worker_agent import memory_watch
from worker_agent.memory_watch import used

MIB = 2**20
_HOLD = """
import mmap, os, sys
def filled(memory):
    for at in range(0, len(memory), 4096):
        memory[at] = 1
    return memory
held = []
for word in sys.argv[1:]:
    kind, mebibytes = word.split("=")
    size = int(mebibytes) << 20
    if kind == "shared":
        held.append(filled(mmap.mmap(-1, size)))
    else:
        file = os.memfd_create(kind)
        os.write(file, b"x" * size)
        held.append(filled(mmap.mmap(file, size)) if kind == "mapped" else file)
sys.stdin = open(0)
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the worker watches memory on Linux only")


@contextmanager
def holding(*memory: str) -> Iterator[list[int]]:
    """Two processes that share what the words name."""
    command = [sys.executable, "-c", _HOLD, *memory]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as children:
            pids = [process.pid, *map(int, children.read().split())]
        yield pids
        process.stdin.close()


@pytest.mark.parametrize("kind", ["shared", "mapped", "open"])
def test_what_two_processes_share_counts_once(kind: str) -> None:
    with holding(f"{kind}=64") as pids:
        assert len(pids) == 2
        assert 64 <= used(pids, limit_bytes=32 * MIB) / MIB < 100


def test_files_without_a_mapping_count_beside_shared_memory_without_a_name() -> None:
    with holding("open=64", "shared=64") as pids:
        assert 128 <= used(pids, limit_bytes=120 * MIB, seconds=60) / MIB < 170


def test_processes_that_end_during_a_look_do_not_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    share_of = memory_watch._proportional

    def last_look(pid: int) -> tuple[int, int]:
        share = share_of(pid)
        os.kill(pid, signal.SIGKILL)
        while memory_watch._resident(pid):
            time.sleep(0.01)
        return share

    with holding("mapped=64") as pids:
        monkeypatch.setattr(memory_watch, "_proportional", last_look)
        assert used(pids, limit_bytes=120 * MIB, seconds=60) / MIB < 100


def test_a_look_that_may_not_take_long_tells_what_they_take_at_the_least() -> None:
    with holding("open=64", "shared=64") as pids:
        assert 64 <= used(pids, limit_bytes=120 * MIB, seconds=0) / MIB < 100
