"""Exceptions that a handler may raise."""

from __future__ import annotations


class Failure(Exception):
    """A failure with a code that people and programs can act on."""

    retryable = True

    def __init__(self, code: str, message: str = "", **detail: object) -> None:
        super().__init__(message or code)
        self.code = code
        self.detail = detail


class Permanent(Failure):
    """Trying again cannot help: wrong parameters, or work refused for safety."""

    retryable = False


class Transient(Failure):
    """Trying again later may help."""


class Postponed(Exception):
    """The work cannot be done now: the task is released, costs no attempt, and may be leased again after `seconds`."""

    def __init__(self, seconds: float, reason: str = "postponed by its handler") -> None:
        super().__init__(reason)
        self.seconds = seconds
        self.reason = reason
