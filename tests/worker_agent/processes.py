"""Whether processes that a test knows by their numbers still live."""

from pathlib import Path

import psutil

from tests.worker_agent.waiting import until


def pids_in(file: Path) -> list[int]:
    """What the `linger` handler tells about itself and its child, once it is there."""
    until(file.exists)
    return [int(word) for word in file.read_text().split()]


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_dead(*pids: int) -> None:
    until(lambda: all(map(is_dead, pids)))
