"""The base of every error, its kinds, and the errors that every feature may raise.

The first line of a class's docstring is the title of its problem; `code` is stable and part of the contract. The kind
that an error is derived from decides its HTTP status (`app/http/problems.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from app.kernel.text import NO_REASON

# First words of the reasons for which a worker has ended, by which it is told what to do.
SUPERSEDED = "superseded"
EVICTED = "evicted:"


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
        # `detail` is prose for people; `reason` and `facts` become members of the problem, which programs can use.
        super().__init__(detail or self.title())
        self.detail = detail or self.title()
        self.reason = reason
        self.facts = facts or {}
        self.retry_after_seconds = retry_after_seconds

    @classmethod
    def title(cls) -> str:
        """The sentence that names this problem, without its full stop."""
        return (cls.__doc__ or "").strip().splitlines()[0].rstrip(".")


class NotPermitted(ConvenerError):
    """The caller may not do this."""


class NotFound(ConvenerError):
    """There is no such thing."""


class Conflict(ConvenerError):
    """The present state forbids this; nothing was changed."""


class Gone(ConvenerError):
    """A thing that was there once, and is not kept any more."""


class TooLarge(ConvenerError):
    """More than this service accepts."""


class Invalid(ConvenerError):
    """A value that is not allowed, although it is well-formed."""


class Exhausted(ConvenerError):
    """There is no room now; the same call may succeed later."""


class Unavailable(ConvenerError):
    """The service cannot answer now; the same call may succeed in a moment."""


class ValuesRefused(Invalid):
    """The request is well-formed, but a value in it is not allowed."""

    code = "invalid_request"

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {message}" for path, message in fields))
        self.fields = fields


class PayloadTooLarge(TooLarge):
    """The payload, result or checkpoint is larger than this service accepts."""

    code = "payload_too_large"


class BodyTooComplex(TooLarge):
    """The body holds more values than this service accepts."""

    code = "body_too_complex"


class TooManyUploads(Exhausted):
    """This key has too many bodies under way; send fewer at once."""

    code = "too_many_uploads"


class UploadsFull(Unavailable):
    """Too many bodies are under way; send the request again in a moment."""

    code = "uploads_full"


class Unstorable(Invalid):
    """The database refuses a value in this request."""

    code = "unstorable_value"


class ShuttingDown(Unavailable):
    """The service is shutting down; send the request again in a moment."""

    code = "shutting_down"


class DatabaseUnavailable(Unavailable):
    """The database does not answer; send the request again in a moment."""

    code = "database_unavailable"


class Locked(DatabaseUnavailable):
    """Something else holds what this request needs; send it again in a moment."""

    code = "locked"


class PreconditionRequired(ConvenerError):
    """This change must name the version that it builds on."""

    code = "precondition_required"


class VersionStale(ConvenerError):
    """Somebody has changed it since the version that this change builds on; nothing was changed."""

    code = "version_stale"


class Refused(Exception):
    """A backup or restore cannot be done; the message says why, the hint what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class KeyNotFound(NotFound):
    """There is no such key."""

    code = "key_not_found"


class Unauthenticated(ConvenerError):
    """The request carries no valid key."""

    code = "unauthenticated"


class TooManyFailures(Exhausted):
    """Too many requests without a valid key have come from this address."""

    code = "too_many_failures"


class TooManyRequests(Exhausted):
    """This key, or all together, has too many requests under way; send it again in a moment."""

    code = "too_many_requests"


class Forbidden(NotPermitted):
    """The key does not permit this."""

    code = "forbidden"


class WorkerGone(Conflict):
    """This incarnation of the worker is over."""

    code = "worker_gone"

    @classmethod
    def of(cls, state: str, ended_reason: str | None) -> "WorkerGone":
        """Of a worker that has ended; `reason` tells the worker whether to come again."""
        kind = (ended_reason or "").partition(" ")[0]
        # One that was evicted stays away, as one that was stopped.
        reason = {SUPERSEDED: SUPERSEDED, EVICTED: "stopped"}.get(kind, state)
        return cls(f"this worker is {state}: {ended_reason or NO_REASON}", reason=reason)
