"""Agents that give back what they are given: enough to see tasks flow before you have written your own.

A payload may ask for more: `sleep_seconds` to take time, `fail` with a message to fail.
"""

import time
from collections.abc import Callable
from typing import Any

AGENTS = ("generation", "reflection", "ranking", "evolution", "proximity", "meta_review")


def echo(task: Any) -> dict[str, Any]:
    """Sleeps and fails as the payload says, else returns the payload."""
    seconds = float(task.payload.get("sleep_seconds", 0))
    steps = max(1, int(seconds))
    for step in range(steps):
        time.sleep(seconds / steps)
        task.progress(100 * (step + 1) / steps)
    if "fail" in task.payload:
        raise RuntimeError(task.payload["fail"])
    return {"echo": task.payload, "agent_type": task.agent_type, "attempt": task.attempt}


HANDLERS: dict[str, Callable[[Any], dict[str, Any]]] = dict.fromkeys(AGENTS, echo)
