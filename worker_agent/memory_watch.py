"""Watches the memory of a task's processes together: what they have mapped, and files without a name that they hold."""

import contextlib
import os
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import psutil

from worker_agent.cgroups import TaskGroup

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_BLOCK_BYTES = 512
_GIB = 2**30
# A process fills memory no faster than this, so that a look can wait the longer the more room there is.
_FILL_BYTES_PER_SECOND = 2 * _GIB
_LEAST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 2.0
# Looks take at most this share of the time, however many processes and files a task has.
_SHARE_OF_TIME = 0.05
# A look at every mapping of processes with thousands of them would take longer, and the processor from the heartbeat.
_LOOK_SECONDS = 0.5
# Files in memory; those in the task's own /dev/shm have its limit of size.
_MEMORY_FILES = ("/memfd:", "/dev/shm/")  # noqa: S108 - only looked at


class MemoryWatch:
    """Memory of `root` and its descendants but this process, and of the task's control group; for one thread only."""

    def __init__(self, root: int, limit_bytes: int, group: TaskGroup | None) -> None:
        self.excess: str | None = None  # what passed the limit, in words
        self._root = root
        self._limit_bytes = limit_bytes
        self._group = group
        self.next_look_at = time.monotonic() + self._pause(0)

    def look(self) -> None:
        """Look at everything; `excess` and `next_look_at` tell the outcome."""
        started_at = time.monotonic()
        used_bytes = used(descendants(self._root) - {os.getpid()}, self._limit_bytes)
        if used_bytes > self._limit_bytes:
            self._note(used_bytes)
        self.look_at_group()
        now = time.monotonic()
        self.next_look_at = now + max(self._pause(used_bytes), (now - started_at) / _SHARE_OF_TIME)

    def look_at_group(self) -> None:
        """Learn whether the kernel has ended a process of the group for its memory."""
        if self.excess is None and self._group is not None and self._group.has_run_out_of_memory():
            self._note(self._group.peak_bytes())

    def _note(self, used_bytes: int) -> None:
        self.excess = (
            f"the processes of the handler took {used_bytes / _GIB:.2f} GiB of memory together; "
            f"the limit is {self._limit_bytes / _GIB:.2f} GiB"
        )

    def _pause(self, used_bytes: int) -> float:
        pause = (self._limit_bytes - used_bytes) / _FILL_BYTES_PER_SECOND
        return min(_LONGEST_PAUSE_SECONDS, max(_LEAST_PAUSE_SECONDS, pause))


def descendants(root: int) -> set[int]:
    """The process and all that descend from it, without those that end meanwhile."""
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        with contextlib.suppress(psutil.Error, OSError):
            return {root, *(child.pid for child in psutil.Process(root).children(recursive=True))}
        return {root}
    pids: set[int] = set()
    open_pids = [root]
    while open_pids:
        pid = open_pids.pop()
        if pid not in pids:
            pids.add(pid)
            open_pids += _children(pid)
    return pids


def _children(pid: int) -> Iterator[int]:
    # Each thread has its own.
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                yield from map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())


def used(pids: Iterable[int], limit_bytes: int, seconds: float = _LOOK_SECONDS) -> int:
    """Bytes of memory that the processes take; what they share counts once where that decides about the limit.

    After `seconds` it is what they take at the least.
    """
    end = time.monotonic() + seconds
    pids = list(pids)
    resident_bytes = sum(map(_resident, pids))
    files = {inode: size for pid in pids for inode, size in _memory_files(pid)}
    file_bytes = sum(files.values())
    if resident_bytes + file_bytes <= limit_bytes:
        return resident_bytes + file_bytes
    # The sum counts shared pages for each process, and mapped files twice.
    mapped_bytes = shared_bytes = 0
    for mapped, shared in map(_proportional, pids):
        mapped_bytes, shared_bytes = mapped_bytes + mapped, shared_bytes + shared
    # Memory without a name may be shared as well, so that only each mapping tells what is no file's.
    least_bytes = mapped_bytes - shared_bytes + max(file_bytes, shared_bytes)
    if least_bytes > limit_bytes or not file_bytes or not shared_bytes:
        return least_bytes
    unnamed_bytes = 0
    for pid in pids:
        # By one reading of each process: between two it may end, and what it had mapped would count twice.
        unnamed = _mapped_beside(pid, files, end)
        if unnamed is None:
            return least_bytes
        unnamed_bytes += unnamed
    return unnamed_bytes + file_bytes


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    if not os.path.exists("/proc/self/statm"):
        with contextlib.suppress(psutil.Error, OSError):
            return int(psutil.Process(pid).memory_info().rss)
    return 0


def _memory_files(pid: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield device and inode, and bytes, of each file in memory that the process has open, mapped or not."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if os.readlink(entry.path).startswith(_MEMORY_FILES):
                    status = os.stat(entry.path)
                    yield (status.st_dev, status.st_ino), status.st_blocks * _BLOCK_BYTES


def _proportional(pid: int) -> tuple[int, int]:
    """The process's share of what it has mapped, and how much of it is files in memory and shared memory.

    Where it may not be looked at, all of what it has mapped.
    """
    with contextlib.suppress(OSError, KeyError, IndexError, ValueError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        kilobytes = {name: int(words[0]) for name, *words in map(str.split, lines)}
        # Kernels before 5.4 do not tell the parts; then all of it may be shared.
        return kilobytes["Pss:"] * 1024, kilobytes.get("Pss_Shmem:", kilobytes["Pss:"]) * 1024
    return _resident(pid), 0


def _mapped_beside(pid: int, files: Container[tuple[int, int]], end: float) -> int | None:
    """The process's share of what it has mapped but for `files`, by each mapping; None if time runs out.

    Where it may not be looked at, all of what it has mapped.
    """
    total_bytes, is_counted = 0, True
    try:
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, *words = line.split()
                if name == "Pss:":
                    total_bytes += int(words[0]) * 1024 if is_counted else 0
                elif not name.endswith(":"):
                    if time.monotonic() > end:
                        return None
                    major, minor = (int(part, 16) for part in words[2].split(":"))
                    is_counted = (os.makedev(major, minor), int(words[3])) not in files
    except OSError:
        return _resident(pid)
    return total_bytes
