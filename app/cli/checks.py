"""Outcome of a check of this machine."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Outcome of a check; only a failure makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at; `remedy` says what to do unless all is well."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
