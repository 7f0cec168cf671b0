"""The last error that a process has written into its log, for whoever is told that it ended."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from app.kernel.text import printable
from worker_agent.log_lines import mask_secrets

_TAIL_BYTES = 16_384
_MAX_LENGTH = 300
_LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+ (?P<level>[A-Z]+) +(?P<text>.*)")
_TOKEN = re.compile(
    r"(?i)\b(authorization|api[-_]?key|bearer|token|password|secret)\b"
    r"(['\"]?\s*[:= ]\s*['\"]?(?:bearer\s+)?)[^\s'\",;]+"
)
# Warnings tell of what the process got over.
_QUIET = ("debug", "info", "warning")


def last_error(log_file: Path, begin: int = 0, secrets: Iterable[str] = ()) -> str | None:
    """The last error in the file from this byte on, one line of at most 300 characters; None where there is none.

    Keys, tokens and passwords are masked, and whatever is in `secrets`.
    """
    try:
        with log_file.open("rb") as file:
            size = file.seek(0, 2)
            # A file that has become smaller is another one.
            file.seek(max(begin if begin <= size else 0, size - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return None
    error = _last_error(lines)
    if error is None:
        return None
    for secret in secrets:
        if len(secret) > 3:
            error = error.replace(secret, "***")
    return printable(_TOKEN.sub(r"\1\2***", mask_secrets(error)))[:_MAX_LENGTH]


def _last_error(lines: list[str]) -> str | None:
    """The last line of a log that tells of an error, with a traceback its end; or what came after the last line."""
    end, is_last = None, True
    for line in reversed(lines):
        if not line.strip():
            continue
        level, text = _parts(line)
        if level is None:
            is_of_traceback = line[0].isspace()  # its head comes before it
            if is_last and not is_of_traceback and end is None:
                return text
            end = end or line.strip()
            continue
        if level not in _QUIET:
            return f"{text}: {end}" if end else text
        if is_last and end is not None:
            return end
        end, is_last = None, False
    return end if is_last else None


def _parts(line: str) -> tuple[str | None, str]:
    """Level and text of a line that was logged; no level for any other."""
    if line.startswith("{"):
        try:
            entry = json.loads(line)
            trace = str(entry.get("exception") or "").strip().splitlines()
            return str(entry["level"]), ": ".join([str(entry["message"]), *map(str.strip, trace[-1:])])
        except (ValueError, KeyError, AttributeError, TypeError):
            return None, line.strip()
    match = _LINE.match(line)
    return (match["level"].lower(), match["text"]) if match else (None, line.strip())
