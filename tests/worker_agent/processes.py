"""Whether processes that a test knows by their numbers still live, also those in namespaces of their own."""

import contextlib
from pathlib import Path

import psutil

from tests.worker_agent.waiting import until


def pids_in(file: Path) -> list[int]:
    """What the `linger` handler tells about itself and its child, once it is there."""
    until(file.exists)
    return [_outer_pid(int(word)) for word in file.read_text().split()]


def _outer_pid(inner: int) -> int:
    """The number here of the newest descendant of this process that has this number where it runs."""
    for child in sorted(psutil.Process().children(recursive=True), key=psutil.Process.create_time, reverse=True):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            numbers = next(line for line in lines if line.startswith("NSpid:")).split()[1:]
            if len(numbers) > 1 and int(numbers[-1]) == inner:
                return child.pid
    return inner


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_dead(*pids: int) -> None:
    until(lambda: all(map(is_dead, pids)))
