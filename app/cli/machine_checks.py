"""Checks of this machine as a place to run on: misspelt variables, room on the disk, and handlers that load."""

import asyncio
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from app.cli.checks import Check, Status
from app.settings import Settings, SettingsError
from worker_agent.variables import unknown_variables

_GB = 1 << 30
# Below the first PostgreSQL may stop at any time, below the second somebody should make room.
_SCARCE, _LITTLE = 0.25 * _GB, 2 * _GB


def variables() -> Iterable[Check]:
    """Yield a check for each variable that begins like ours and is none."""
    strangers = unknown_variables(os.environ)
    if not strangers:
        yield Check(name="variables", status=Status.OK, detail="every CONVENER_ variable is one")
    for name, sentence in strangers.items():
        remedy = f"unset {name}, or correct its name"
        yield Check(name="variables", status=Status.WARNING, detail=sentence, remedy=remedy)


def disk() -> Iterable[Check]:
    """Yield a check of the room for the database, logs and backups of this machine."""
    settings = _settings()
    if settings is None:  # `network` says why
        return
    place = _existing(settings.state_directory)
    free = shutil.disk_usage(place).free
    detail = f"{free / _GB:,.1f} GB are free where {settings.state_directory} is"
    remedy = (
        "make room there, keep less history (CONVENER_HISTORY_DAYS, CONVENER_EVENTS_DAYS), "
        "or choose another place with CONVENER_STATE_DIRECTORY"
    )
    if free >= _LITTLE:
        yield Check(name="disk", status=Status.OK, detail=detail)
    else:
        status = Status.FAILED if free < _SCARCE else Status.WARNING
        yield Check(name="disk", status=status, detail=detail, remedy=remedy)


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)


def handlers_load() -> Iterable[Check]:
    """Yield a check that the handlers which the pool would run can be imported, as its workers would."""
    from app.workers.provisioners.environment import HandlersRefused, check_handlers

    settings = _settings()
    if settings is None or settings.worker_handlers is None:
        return
    try:
        asyncio.run(check_handlers(settings.model_copy(update={"pool_size": max(1, settings.pool_size)})))
    except (HandlersRefused, OSError) as error:
        remedy = (
            "correct CONVENER_WORKER_HANDLERS, or the module; "
            f"`convener worker --check-handlers --handlers {settings.worker_handlers}` shows all of it"
        )
        yield Check(name="handlers: import", status=Status.FAILED, detail=str(error), remedy=remedy)
    else:
        detail = f"a worker can import {settings.worker_handlers}"
        yield Check(name="handlers: import", status=Status.OK, detail=detail)


def _settings() -> Settings | None:
    try:
        return Settings.from_environment()
    except SettingsError:
        return None


MACHINE_CHECKS = (variables, disk, handlers_load)
