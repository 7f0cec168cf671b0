"""What an agent may expect of the task that a worker hands to it."""

from typing import Any, Protocol

Json = dict[str, Any]


class Task(Protocol):
    """The part of a worker's task object that these agents use."""

    @property
    def payload(self) -> Json: ...

    @property
    def batch_factor(self) -> float: ...

    def progress(self, percent: float, message: str) -> None: ...


def batch(task: Task) -> int:
    """How many formulas to propose: `count`, fewer while resources are short, one at least."""
    wanted: int = task.payload["count"]
    return max(1, round(wanted * task.batch_factor))
