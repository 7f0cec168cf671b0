"""The interface of tasks that agents rely on."""

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
    """Number of formulas to propose: `count`, fewer while resources are short, at least one."""
    count: int = task.payload["count"]
    return max(1, round(count * task.batch_factor))
