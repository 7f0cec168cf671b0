"""`convener doctor`: checks this machine, the service and the database, and says what mends what is wrong."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.cli.checks import Check, Status
from app.terminal import output
from app.terminal.client import Url
from app.terminal.failures import ExitCode
from app.terminal.output import Format, Output

EPILOG = output.examples("convener doctor", "convener doctor -o json | jq '.checks[] | select(.status != \"ok\")'")


def doctor(url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Check this machine, the service and the database, and say what mends what is wrong. Ends with 1 when one fails.

    It works with what it can reach: where the API is away, it reads what that would tell from the database, if it has
    its address. A warning alone ends with 0.
    """
    # Not before they are needed: a press of TAB, and --help, wait for what is imported.
    from app.cli.machine_checks import MACHINE_CHECKS
    from app.cli.secrecy_checks import SECRECY_CHECKS
    from app.cli.service_checks import Service

    service = Service(url)
    with output.errors().status("looking") as status:
        checks: list[Check] = []
        mended: set[tuple[str, str]] = set()
        for look in (service.checks, service.database_checks, *MACHINE_CHECKS, *SECRECY_CHECKS):
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


_ORDER = (Status.FAILED, Status.WARNING, Status.OK)
_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red"}


def _render(checks: Sequence[Check]) -> RenderableType:
    # In columns, so that lines which are too long go on below where they begin.
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        body = Text.assemble((check.name, "bold"), "  ", output.plain(check.detail))
        if check.remedy:
            body.append(f"\nwhat to do: {output.plain(check.remedy)}", style="dim")
        table.add_row(Text(check.status, _STYLES[check.status]), body)
    counts = Counter(check.status for check in checks)
    total = Text(", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status]))
    user = f"checked as user {os.geteuid()}; workers of another user may be kept apart differently"
    return Group(table, total, Text(user, style="dim"))
