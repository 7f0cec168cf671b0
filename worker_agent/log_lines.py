"""Log lines, the same for every program: for people or as JSON, with dates, without secrets; in files that rotate."""

import contextlib
import fcntl
import json
import logging
import os
import re
import stat
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from worker_agent.tracing.context import at_hand

# Of a log file, and how many former ones are kept beside it.
MAX_BYTES, FORMER_FILES = 8 * 2**20, 3
_PRIVATE = 0o600
_KEY = re.compile(r"\bcvn_([0-9A-Za-z]+)_[\w-]+")
_PASSWORD = re.compile(r"(://[^:/@\s]+:)[^/@\s]+@")
_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message", "fields"}


def set_up_logging(level: str, *, as_json: bool, file: Path | None = None, quiet: Collection[str] = ()) -> None:
    """Log to stderr from `level` (debug, info, warning or error) on, and loggers in `quiet` from warnings on.

    With a file it takes the place of stdout and stderr, and is exchanged for a new one when it is full. Replaces any
    earlier set-up. Raises OSError.
    """
    handler = logging.StreamHandler(sys.stderr) if file is None else _FileHandler(file)
    handler.setFormatter(_Object() if as_json else _Line())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)


def mask_secrets(text: str) -> str:
    """The text without the secrets of keys and without passwords in addresses."""
    return _PASSWORD.sub(r"\1***@", _KEY.sub(r"cvn_\1_***", text))


def printable(text: str) -> str:
    """The text with line ends, control characters and marks of direction written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _FileHandler(logging.StreamHandler[Any]):
    """Handler whose file is stdout and stderr of this process, so that whatever it writes stands there.

    Several processes may share the file: a full one is renamed, never cut off, so no line of anybody is lost.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(sys.stderr)
        self._path = path.absolute()
        self._open()

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        # Where the disk is full, or the directory gone, the present file goes on.
        with contextlib.suppress(OSError):
            if os.fstat(2).st_size >= MAX_BYTES:
                self._exchange()

    def _exchange(self) -> None:
        # The lock is that of the full file, which all who would rename it have open. While somebody has it, we go on.
        full = os.dup(2)
        try:
            fcntl.flock(full, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_at_path(full):
                for number in range(FORMER_FILES, 1, -1):
                    former = self._former(number - 1)
                    if former.exists():
                        former.replace(self._former(number))
                self._path.replace(self._former(1))
            self._open()
        finally:
            os.close(full)

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _former(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        # A pipe that nobody reads is an error at once, and not a wait for its reader.
        descriptor = os.open(self._path, flags | os.O_NONBLOCK, _PRIVATE)
        try:
            os.set_blocking(descriptor, True)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):  # and no device, which belongs to all
                os.fchmod(descriptor, _PRIVATE)
            # Text for which the former file had no room stays in the buffer, for this one.
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
        finally:
            os.close(descriptor)


class _Line(logging.Formatter):
    """`2026-11-28T12:30:01.250+01:00 INFO    app.main: serving on ... (port=8765)`, in local time; tracebacks follow.

    Text of strangers cannot pass for a line of the log, as all other lines of a record begin with a blank.
    """

    def format(self, record: logging.LogRecord) -> str:
        # The whole line is masked, because a secret may also stand in a traceback or in an extra field.
        return mask_secrets(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        at = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        extra = ", ".join(f"{name}={_quote(value)}" for name, value in _extra(record).items())
        line = f"{at} {record.levelname:<7} {_logger(record)}: {record.message}"
        return printable(f"{line} ({extra})" if extra else line)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name that logging calls
        return _indent(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - the name that logging calls
        return _indent(super().formatStack(stack_info))


class _Object(logging.Formatter):
    """A JSON object with time, level, logger and message, and the extra fields beside them."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": _logger(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        fields = {name: value for name, value in _extra(record).items() if name not in line}
        # Of all that could steer a terminal JSON leaves only U+007F as it is.
        return mask_secrets(json.dumps(line | fields, default=str)).replace("\x7f", "\\u007f")


def _indent(text: str) -> str:
    # Only at \n: the other characters that Python takes for line ends are escaped.
    return "\n".join(f"  {printable(line)}" for line in text.split("\n"))


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """The fields beside the message: those of `extra`, those of any name in its `fields`, and the trace."""
    plain = {name: value for name, value in vars(record).items() if name not in _ORDINARY}
    trace = {} if at_hand.context is None else at_hand.context.fields
    return plain | getattr(record, "fields", {}) | trace


def _quote(value: object) -> str:
    text = str(value)
    is_plain = text and text.isprintable() and not set(text) & set(' "=,()')
    return text if is_plain else json.dumps(text, ensure_ascii=False)


def _logger(record: logging.LogRecord) -> str:
    """The logger's name; of a module that was started with `python -m`, the name it is imported by."""
    main: ModuleType | None = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return spec.name if record.name == "__main__" and spec is not None else record.name
