"""What everything that can go wrong has in common: a title, a stable code, and what the caller needs to know."""

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


class ValuesRefused(ConvenerError):
    """Values of a body that cannot be."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {message}" for path, message in fields))
        self.fields = fields
