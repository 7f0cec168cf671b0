"""Ends processes that a handler left behind in groups or sessions of their own, where no namespace ends with it."""

import contextlib
import os
import sys
import time

import psutil

_SECONDS = 5.0


def adopt_orphans() -> bool:
    """Have the kernel make this process the parent of its descendants whose own parent has died; False elsewhere."""
    if sys.platform != "linux":
        return False
    from worker_agent.kernel_calls import PR_SET_CHILD_SUBREAPER, prctl

    prctl(PR_SET_CHILD_SUBREAPER, 1)
    return True


def end_orphans(handler: int) -> None:
    """Kill and reap all descendants of this process but the handler, until there are none; for some seconds at most."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        descendants = [child for child in psutil.Process().children(recursive=True) if child.pid != handler]
        if not descendants:
            return
        for process in descendants:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for process in descendants:
            # A grandchild is not ours to wait for until its own parent is dead.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
