"""`convener doctor`: checks this machine, the service and the database, and says what mends what is wrong."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from app.cli.checks import Check, Status
from app.cli.database_checks import database_checks
from app.cli.machine_checks import MACHINE_CHECKS
from app.cli.secrecy_checks import SECRECY_CHECKS
from app.cli.service_checks import Service
from app.http.tls import EXPOSED, EXPOSED_REMEDY, UnusableCertificate, expiry_problem, served_certificate
from app.settings import Settings, SettingsError
from app.terminal import output
from app.terminal.failures import ExitCode
from app.terminal.output import Format, Output

EPILOG = output.examples("convener doctor", "convener doctor -o json | jq '.checks[] | select(.status != \"ok\")'")
_WORKER_SECONDS = 60


def doctor(fmt: Output = Format.TABLE) -> None:
    """Check this machine, the service and the database, and say what mends what is wrong. Ends with 1 when one fails.

    It works with what it can reach: where the API is away, it reads what that would tell from the database, if it has
    its address. A warning alone ends with 0.
    """
    service = Service()
    with output.errors().status("looking") as status:
        checks: list[Check] = []
        mended: set[tuple[str, str]] = set()
        for look in (service.checks, lambda: database_checks(is_alone=not service.is_there), *CHECKS):
            for check in look():
                # What both the service and the database tell of is told once.
                if not check.remedy or (check.name, check.remedy) not in mended:
                    checks.append(check)
                mended.add((check.name, check.remedy))
                status.update(f"looking: {check.name}")
    checks.sort(key=lambda check: _ORDER.index(check.status))
    shown = [{**asdict(check), "commands": check.commands} for check in checks]
    output.present({"checks": shown}, fmt, lambda: _render(checks))
    if any(check.status is Status.FAILED for check in checks):
        raise typer.Exit(ExitCode.REFUSED)


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
CHECKS: Sequence[Callable[[], Iterable[Check]]] = (*MACHINE_CHECKS, network, handler_isolation, *SECRECY_CHECKS)
_ORDER = (Status.FAILED, Status.WARNING, Status.OK)
_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red"}


def _render(checks: Sequence[Check]) -> RenderableType:
    lines: list[Text] = []
    for check in checks:
        head = (f"{check.status:8}", _STYLES[check.status])
        lines.append(Text.assemble(head, (check.name, "bold"), "  ", output.plain(check.detail)))
        if check.remedy:
            lines.append(Text(f"{'':8}what to do: {output.plain(check.remedy)}", style="dim"))
    counts = Counter(check.status for check in checks)
    lines.append(Text(", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status])))
    user = f"checked as user {os.geteuid()}; workers of another user may be kept apart differently"
    return Group(*lines, Text(user, style="dim"))
