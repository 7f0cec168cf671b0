"""Agents for hands that break things: they ask a model, or do to themselves what their payload says."""

import os
import signal
import time
from typing import Any

from tests.system.asking import ask
from worker_agent import Task


def run(task: Task) -> dict[str, Any]:
    """Die as by the kernel's killer, or take some time."""
    if task.payload.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(task.payload.get("sleep_seconds", 0)))
    return {}


HANDLERS = {"generation": ask, "ranking": run, "meta_review": run, "reflection": run}
