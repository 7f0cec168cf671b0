"""Logging to stderr: lines for people, or one JSON object a line, with secrets masked."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

from app.kernel.text import printable

_KEY = re.compile(r"\bcvn_([0-9A-Za-z]+)_[\w-]+")
_PASSWORD = re.compile(r"(://[^:/@\s]+:)[^/@\s]+@")
_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
# They log every request, or nothing that an operator could use.
_QUIET = ("alembic", "uvicorn.access", "uvicorn.error", "httpx", "httpcore", "asyncio")


def set_up_logging(level: str, *, as_json: bool = False) -> None:
    """Log to stderr from `level` (debug, info, warning or error) on; replaces any earlier set-up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Object() if as_json else _Line())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Log from another level on."""
    logging.getLogger().setLevel(level.upper())


def mask_secrets(text: str) -> str:
    """The text without the secrets of keys and without passwords in addresses."""
    return _PASSWORD.sub(r"\1***@", _KEY.sub(r"cvn_\1_***", text))


class _Line(logging.Formatter):
    """`12:30:01.250 INFO    app.main: serving on ... (port=8765)`, in local time; tracebacks follow, indented.

    Text of strangers cannot pass for a line of the log, as all other lines of a record begin with a blank.
    """

    def format(self, record: logging.LogRecord) -> str:
        # The whole line is masked, because a secret may also stand in a traceback or in an extra field.
        return mask_secrets(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        extra = ", ".join(f"{name}={value}" for name, value in _extra(record).items())
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
        # Of all that could steer a terminal JSON leaves only U+007F as it is.
        return mask_secrets(json.dumps(_extra(record) | line, default=str)).replace("\x7f", "\\u007f")


def _indent(text: str) -> str:
    # Only at \n: the other characters that Python takes for line ends are escaped.
    return "\n".join(f"  {printable(line)}" for line in text.split("\n"))


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _ORDINARY}


def _logger(record: logging.LogRecord) -> str:
    """The logger's name; of a module that was started with `python -m`, the name it is imported by."""
    main: ModuleType | None = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    return spec.name if record.name == "__main__" and spec is not None else record.name
