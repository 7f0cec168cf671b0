"""Failures of commands: a sentence, a hint at what to do, and the exit code that scripts rely on."""

import errno
import json
import re
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """Documented in `convener --help`; part of the contract with scripts."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    KEY = 4
    NOT_FOUND = 5
    TASK_FAILED = 6
    DEGRADED = 7
    CRITICAL = 8
    TIMED_OUT = 9
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.REFUSED: "the service refused; it says why",
    ExitCode.USAGE: "the command line or a CONVENER_ variable makes no sense",
    ExitCode.UNREACHABLE: "the service, or the database, cannot be reached",
    ExitCode.KEY: "the key is missing or refused",
    ExitCode.NOT_FOUND: "there is no such task, worker or key",
    ExitCode.TASK_FAILED: "a task that was waited for failed or was cancelled",
    ExitCode.DEGRADED: "of `health`: the system is degraded",
    ExitCode.CRITICAL: "of `health`: the system is in a critical state",
    ExitCode.TIMED_OUT: "of `--wait`: the time of `--timeout` is over; the task goes on",
    ExitCode.INTERRUPTED: "Ctrl-C; what the service has taken on goes on",
}


class Failure(Exception):
    """Ends a command with a message, an exit code, and a hint at what to do."""

    def __init__(self, message: str, code: ExitCode, *, details: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = details
        self.hint = hint

    def show(self, *, as_json: bool = False) -> None:
        """Print it to stderr: in words for a person, or as one JSON object for a program."""
        # Programs that run on import this module too, and rarely fail.
        from rich.text import Text

        from app.terminal.output import errors

        console = errors()
        if as_json:
            fields = {"error": self.message, "exit_code": self.code, "details": list(self.details), "hint": self.hint}
            console.file.write(json.dumps(fields) + "\n")
            return
        console.print(Text.assemble(("Error:", "bold red"), f" {self.message}"))
        for line in self.details:
            console.print(f"  {line}")
        if self.hint:
            console.print(Text.assemble(("What to do:", "dim"), f" {self.hint}"))


def failure_of_value(error: ValueError) -> Failure:
    """The failure of a command for a number or a text that JSON, or an address, has no room for."""
    hint = "numbers are finite, and texts are UTF-8 without halves of surrogate pairs"
    return Failure(f"a value cannot be sent: {error}", ExitCode.USAGE, hint=hint)


def first_line(error: BaseException) -> str:
    """The first line of an error, without the number that the system has for it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\[Errno -?\d+\] ", "", lines[0])


def read_input(file: str, hint: str | None = None) -> str:
    """The text of a small file that the command line names, or of stdin for -. Raises Failure."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"{file} cannot be read: {getattr(error, 'strerror', error)}"
        raise Failure(message, ExitCode.USAGE, hint=hint) from None


def failure_of_file(error: OSError) -> Failure | None:
    """The failure of a command whose file cannot be used, or for whose output there is no room; None for others."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" for {error.filename}" if error.filename else ""
        return Failure(f"there is no room{place}: {error.strerror}", ExitCode.REFUSED, hint="make room on that disk")
    if error.filename:
        hint = "choose another place, or mend its rights"
        return Failure(f"cannot use {error.filename}: {error.strerror}", ExitCode.REFUSED, hint=hint)
    return None
