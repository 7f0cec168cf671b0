"""Log lines that a machine can read: key=value by default, one JSON object a line on request."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any


class _Structured(logging.Formatter):
    """Fields come in `extra={"fields": {...}}`."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"at": at, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps(line, default=str)
        return " ".join(f"{key}={_quoted(value)}" for key, value in line.items())


def _quoted(value: object) -> str:
    text = str(value)
    return text if text and not set(text) & set(' "=\n') else json.dumps(text)


def set_up_logging(level: str, *, as_json: bool) -> None:
    """To stderr. The HTTP library's own lines are left out: they add nothing to ours."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Structured(as_json=as_json))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
