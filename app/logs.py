"""Logging of the processes of the service."""

import logging
import os
import sys

from app.settings import Settings
from worker_agent.log_lines import set_up_logging
from worker_agent.variables import unknown_variables

# They log every request, or nothing that an operator could use.
_QUIET = ("alembic", "uvicorn.access", "uvicorn.error", "httpx", "httpcore", "asyncio")


def start_logging(settings: Settings) -> None:
    """Log as the settings say, first of all variables that are none; exits with 2 where the file cannot be opened."""
    level, file = settings.log_level or "info", settings.log_file
    try:
        set_up_logging(level, as_json=settings.log_json, file=file, quiet=_QUIET)
    except OSError as error:
        print(f"convener: CONVENER_LOG_FILE: cannot write {file} ({error.strerror})", file=sys.stderr)
        raise SystemExit(2) from None
    for sentence in unknown_variables(os.environ).values():
        logging.getLogger(__name__).warning(sentence)


def set_level(level: str) -> None:
    """Log from another level on."""
    logging.getLogger().setLevel(level.upper())
