"""Detects that a child has exited without reaping it, so that its pid cannot be reused yet."""

import os
import select
import selectors

import psutil

_POLL_SECONDS = 0.05
_EVENT_WAIT_SECONDS = 60.0


class ExitWatcher:
    """Wakes the selector at the child's exit where the system has pidfds; elsewhere it must be polled."""

    def __init__(self, pid: int, selector: selectors.BaseSelector) -> None:
        self._pid = pid
        self._poller = select.poll()
        self._fd = open_pidfd(pid)
        if self._fd is not None:
            selector.register(self._fd, selectors.EVENT_READ, None)
            self._poller.register(self._fd, select.POLLIN)

    @property
    def max_wait_seconds(self) -> float:
        return _POLL_SECONDS if self._fd is None else _EVENT_WAIT_SECONDS

    def has_exited(self) -> bool:
        if self._fd is not None:
            return bool(self._poller.poll(0))
        try:
            return psutil.Process(self._pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)


def open_pidfd(pid: int) -> int | None:
    """A descriptor that is readable once the process has exited; None where there is none to be had."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
