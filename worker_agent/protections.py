"""Protections of the service from its handlers: which of them hold on this system, and why others do not."""

import ctypes
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """One protection; `why` says what it lacks where it does not hold, `remedy` what would mend that."""

    name: str
    meaning: str
    holds: bool
    why: str = ""
    remedy: str = ""


def forbid_dumps() -> None:
    """Close this process to others of its user, who could otherwise read its memory and environment, or trace it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def determine() -> tuple[Protection, ...]:
    """Determine which protections hold here, for workers of this user."""
    return (_environment(), _memory())


def as_json(protections: Sequence[Protection]) -> str:
    return json.dumps({"protections": [asdict(protection) for protection in protections]}, indent=2)


def as_text(protections: Sequence[Protection]) -> str:
    lines = []
    for protection in protections:
        lines.append(f"{'held    ' if protection.holds else 'NOT HELD'} {protection.name}: {protection.meaning}")
        if not protection.holds:
            lines.append(f"         {protection.why}; {protection.remedy}")
    return "\n".join(lines)


def _environment() -> Protection:
    return Protection(
        name="environment",
        meaning="a handler inherits only variables on a list, none of which is a secret of the service",
        holds=True,
    )


def _memory() -> Protection:
    holds = sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0
    return Protection(
        name="daemon_memory",
        meaning="memory and environment of the daemon, where its keys are, are closed to other processes of its user",
        holds=holds,
        why="" if holds else "this system has no way to close a process to others of its user",
        remedy="" if holds else "run workers on Linux, or each worker as a user of its own",
    )
