"""What can go wrong, in the words of the domain; the API maps each to a problem once.

The first line of a class's docstring is its title; `code` is stable and part of the contract.
"""

from collections.abc import Mapping, Sequence
from typing import Any


class ConvenerError(Exception):
    """Something went wrong."""

    code = "internal_error"
    # (path, message) of each value that is not allowed.
    fields: Sequence[tuple[str, str]] = ()

    def __init__(
        self,
        detail: str | None = None,
        *,
        reason: str | None = None,
        facts: Mapping[str, Any] | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail or self.title())
        self.detail = detail or self.title()
        self.reason = reason
        self.facts = facts or {}
        self.retry_after_seconds = retry_after_seconds

    @classmethod
    def title(cls) -> str:
        """The sentence that names this problem, without its full stop."""
        return (cls.__doc__ or "").strip().splitlines()[0].rstrip(".")


class PayloadTooLarge(ConvenerError):
    """The payload, result or checkpoint is larger than this service accepts."""

    code = "payload_too_large"


class Unstorable(ConvenerError):
    """The database refuses a value in this request."""

    code = "unstorable_value"


class KeyNotFound(ConvenerError):
    """There is no such key."""

    code = "key_not_found"


class ShuttingDown(ConvenerError):
    """The service is shutting down; send the request again in a moment."""

    code = "shutting_down"


class DatabaseUnavailable(ConvenerError):
    """The database does not answer; send the request again in a moment."""

    code = "database_unavailable"


class PreconditionRequired(ConvenerError):
    """This change must name the version that it builds on."""

    code = "precondition_required"


class VersionStale(ConvenerError):
    """Somebody has changed it since the version that this change builds on; nothing was changed."""

    code = "version_stale"


class ValuesRefused(ConvenerError):
    """Values of a body that cannot be."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {message}" for path, message in fields))
        self.fields = fields


class Refused(Exception):
    """A backup or restore cannot be done; the message says why, the hint what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
