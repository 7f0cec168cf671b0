"""Why a judgement is what it is: findings, each with a stable code, a weight and a sentence."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding weighs; a note leaves the report as it is."""

    NOTE = "note"
    DEGRADED = "degraded"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A finding: a stable code, how much it weighs, and a sentence."""

    code: str
    level: Level
    message: str


def critical(code: str, message: str) -> Reason:
    """A finding that makes the whole critical."""
    return Reason(code=code, level=Level.CRITICAL, message=message)


def degraded(code: str, message: str) -> Reason:
    """A finding that makes the whole degraded."""
    return Reason(code=code, level=Level.DEGRADED, message=message)


def note(code: str, message: str) -> Reason:
    """A finding that somebody may want to know."""
    return Reason(code=code, level=Level.NOTE, message=message)


def not_measured(figure: str, why: str) -> Reason:
    """The figure is 0 because the shape of an answer wants a number and there is none."""
    return note("not_measured", f"{figure} is 0: {why}")
