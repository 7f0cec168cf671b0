"""What an agent may expect of the task that a worker hands to it."""

from typing import Any, Protocol

Json = dict[str, Any]


class Task(Protocol):
    """The part of a worker's task object that these agents use."""

    @property
    def payload(self) -> Json: ...

    def progress(self, percent: float, message: str) -> None: ...
