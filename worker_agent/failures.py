"""Exceptions that a handler may raise."""

from __future__ import annotations

import math
from copyreg import __newobj__  # type: ignore[attr-defined]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The longest delay that the control plane accepts.
MAX_POSTPONEMENT_SECONDS = 3600.0


class Failure(Exception):
    """A failure with a code that people and programs can act on."""

    retryable = True

    def __init__(self, code: str, message: str = "", **detail: object) -> None:
        super().__init__(message or code)
        self.code = _as_text(code)
        self.detail = detail


class Permanent(Failure):
    """Trying again cannot help: wrong parameters, or work refused for safety."""

    retryable = False


class Transient(Failure):
    """Trying again later may help."""


class Postponed(Exception):
    """The work cannot be done now: the task is released, costs no attempt, and may be leased again after `seconds`."""

    def __init__(self, seconds: float, reason: str = "postponed by its handler") -> None:
        """A moment that is past is due at once. Raises ValueError for what is no number of seconds."""
        super().__init__(reason)
        if math.isnan(seconds):
            raise ValueError("Postponed takes a number of seconds, not nan")
        self.seconds = min(max(0.0, float(seconds)), MAX_POSTPONEMENT_SECONDS)
        self.reason = _as_text(reason)

    def __reduce__(self) -> tuple[Any, ...]:
        # As it crosses from a process of a pool: by default its reason would be taken for the seconds.
        return __newobj__, (type(self), *self.args), self.__dict__


def _as_text(value: object) -> str:
    # A member of an enumeration of texts is one, and `str` would be its name.
    return value if isinstance(value, str) else str(value)
