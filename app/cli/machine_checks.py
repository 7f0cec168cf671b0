"""Checks of this machine as a place to run on: variables, disk, network, handlers and what keeps them apart."""

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from app.cli.checks import Check, Status, usable_settings
from app.http.tls import EXPOSED, EXPOSED_REMEDY, UnusableCertificate, expiry_problem, served_certificate
from app.settings import Settings
from app.settings_sources import SettingsError
from worker_agent.variables import unknown_variables

_WORKER_SECONDS = 60
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
    settings = usable_settings()
    if settings is None:  # `network` says why
        return
    # Either may be a disk of its own.
    places = (settings.state_directory, settings.state_directory / "postgres")
    free, place = min((shutil.disk_usage(_existing(place)).free, place) for place in places)
    detail = f"{free / _GB:,.1f} GB are free where {place} is"
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
    from app.workers.provisioners.environment import HandlersRefused, check_handlers, handler_arguments, named_handlers

    settings = usable_settings()
    if settings is None or not handler_arguments(settings):
        return
    try:
        asyncio.run(check_handlers(settings.model_copy(update={"pool_size": max(1, settings.pool_size)})))
    except (HandlersRefused, OSError) as error:
        remedy = (
            "correct CONVENER_WORKER_HANDLERS or CONVENER_WORKER_HANDLER, or what they name; "
            f"`convener worker --check-handlers {shlex.join(handler_arguments(settings))}` shows all of it"
        )
        yield Check(name="handlers: import", status=Status.FAILED, detail=str(error), remedy=remedy)
    else:
        detail = f"a worker can use {named_handlers(settings)}"
        yield Check(name="handlers: import", status=Status.OK, detail=detail)


def handler_isolation() -> Iterable[Check]:
    """Yield a check for each protection that a worker, started here by this user, has from its handlers."""
    # The worker is a separate program, which alone knows how it confines its handlers.
    command = [sys.executable, "-P", "-m", "worker_agent", "--check-isolation", "-o", "json"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_WORKER_SECONDS, check=True)
        protections = json.loads(answer.stdout)["protections"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        yield Check(
            name="handlers",
            status=Status.FAILED,
            detail=f"the worker could not check how it confines handlers: {reason.strip()}",
            remedy=f"run `{' '.join(command)}` and see",
        )
        return
    for protection in protections:
        yield Check(
            name=f"handlers: {protection['name']}",
            status=Status.OK if protection["holds"] else Status.WARNING,
            detail=protection["meaning"] if protection["holds"] else f"not held: {protection['why']}",
            remedy="" if protection["holds"] else protection["remedy"],
        )


def network() -> Iterable[Check]:
    """Yield a check of the addresses that an API with these settings would listen on, and of its certificate."""
    try:
        settings = Settings.from_environment()
        certificate = served_certificate(settings.tls_certificate, settings.tls_key)
    except (SettingsError, UnusableCertificate) as error:
        yield Check(name="network", status=Status.FAILED, detail=str(error), remedy="correct the settings of the API")
        return
    if settings.is_exposed:
        yield Check(name="network", status=Status.WARNING, detail=EXPOSED, remedy=EXPOSED_REMEDY)
    else:
        where = " and ".join(settings.addresses)
        yield Check(name="network", status=Status.OK, detail=f"an API would listen on {where}")
    if certificate is not None:
        problem = expiry_problem(certificate.expires_at)
        status = Status.WARNING if problem else Status.OK
        detail = problem or f"the TLS certificate is valid until {certificate.expires_at.isoformat()}"
        remedy = "renew it: `convener tls create NAME` does for those that it has made" if problem else ""
        yield Check(name="certificate", status=status, detail=detail, remedy=remedy)


# Each yields its checks, and none raises.
MACHINE_CHECKS: Sequence[Callable[[], Iterable[Check]]] = (
    variables,
    disk,
    handlers_load,
    network,
    handler_isolation,
)
