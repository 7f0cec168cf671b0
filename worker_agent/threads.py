"""Threads that a worker can go on without, as the system may have none left for it."""

from collections.abc import Callable
from threading import Thread


def start_thread(target: Callable[[], object], name: str) -> Thread | None:
    """Run `target` on a thread that does not outlive the process; None where no thread can be started now."""
    thread = Thread(target=target, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
