"""`convener workers`: who works, how they are, and how fast the lost ones were replaced."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import typer
from rich.table import Table
from rich.text import Text

from app.cli import output
from app.cli.client import Client, Json, Url, connect
from app.cli.failures import ExitCode, Failure
from app.cli.output import Format, Output
from app.cli.words import Reason

app = typer.Typer(help="See and direct the workers.", no_args_is_help=True)
Workers = Annotated[list[str], typer.Argument(metavar="WORKER...", help="names or ids of workers")]
_STEPS = ("requested", "started", "registered", "first_lease")


@app.command(epilog=output.examples("convener workers ls", "convener workers ls --gone -o json"))
def ls(
    gone: Annotated[bool, typer.Option("--gone", help="also those that have stopped or were lost")] = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List workers by name."""
    with connect(url) as client:
        items = _all(client, gone=gone)
        now = client.now
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": None})
    else:
        output.show(_listing(items, now))


@app.command(epilog=output.examples("convener workers drain host-1", "convener workers drain host-1 --reason reboot"))
def drain(
    workers: Workers, reason: Reason = "asked by an operator", url: Url = None, fmt: Output = Format.TABLE
) -> None:
    """Let workers finish their task and end. The pool starts others in their place."""
    _direct("drain", workers, reason, url, fmt)


@app.command(epilog=output.examples("convener workers stop host-1", "convener workers stop host-1 host-2"))
def stop(
    workers: Workers, reason: Reason = "asked by an operator", url: Url = None, fmt: Output = Format.TABLE
) -> None:
    """End workers after a grace period; an unfinished task goes back to the queue without burning an attempt."""
    _direct("stop", workers, reason, url, fmt)


@app.command(epilog=output.examples("convener workers replacements", "convener workers replacements --limit 5 -o json"))
def replacements(
    limit: Annotated[int, typer.Option(help="how many at most", min=1)] = 20,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List lost workers and, step by step, how long it took to replace them; newest first."""
    with connect(url) as client:
        items, following = client.pages("/replacements", limit)
        now = client.now
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": following})
    else:
        output.show(_chronicle(items, now))


def _direct(directive: str, workers: list[str], reason: str, url: str | None, fmt: Format) -> None:
    with connect(url) as client:
        ids = _ids(client, workers)
        done = [client.post(f"/workers/{worker_id}/{directive}", {"reason": reason}) for worker_id in ids]
    if fmt is Format.JSON:
        output.write_json({"items": done})
        return
    for worker in done:
        output.show(Text(output.plain(f"{worker['name']} ({worker['worker_id']}) is told to {directive}")))


def _ids(client: Client, workers: list[str]) -> list[str]:
    """Ids are taken as they are; names are looked up among the living. Raises Failure before anything was done."""
    if all(_is_id(worker) for worker in workers):
        return workers
    named = {worker["name"]: worker["worker_id"] for worker in _all(client, gone=False)}
    unknown = [worker for worker in workers if not _is_id(worker) and worker not in named]
    if unknown:
        raise Failure(
            f"no living worker is named {', '.join(unknown)}",
            ExitCode.NOT_FOUND,
            hint="`convener workers ls` lists the workers",
        )
    return [worker if _is_id(worker) else named[worker] for worker in workers]


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _all(client: Client, *, gone: bool) -> list[Json]:
    return client.pages("/workers", None, all="true" if gone else None)[0]


def _listing(items: list[Json], now: datetime) -> Table:
    wide = output.is_wide()
    more = ("HOST", "PID", "MEMORY", "WORKER") if wide else ()
    whole = ["TASK", "WORKER"] if wide else ["TASK"]
    table = output.table(
        "NAME", "STATE", "SEEN", "CPU", "TASK", *more, numbers=["CPU", "MEMORY"], whole=whole, flexible="NAME"
    )
    for worker in items:
        extra = [worker["host"], worker["pid"], _unit(worker["memory_mb"], "MB"), worker["worker_id"]]
        table.add_row(
            output.cell(worker["name"]),
            output.state(worker["state"]),
            output.cell(output.age(worker["last_seen_at"], now)),
            output.cell(_unit(worker["cpu_percent"], "%")),
            output.cell(worker["task_id"]),
            *(output.cell(value) for value in extra if wide),
        )
    return table


def _chronicle(items: list[Json], now: datetime) -> Table:
    """Times of the steps are seconds since the loss was detected."""
    columns = [step.upper().replace("_", " ") for step in _STEPS]
    table = output.table("WORKER", "LOST", *columns, "CAUSE", numbers=columns, flexible="CAUSE", tight=True)
    for item in items:
        table.add_row(
            output.cell(item["worker_name"]),
            output.cell(output.age(item["detected_at"], now)),
            *(output.cell(_since(item["detected_at"], item[f"{step}_at"])) for step in _STEPS),
            output.cell(item["cause"]),
        )
    return table


def _since(start: str, end: str | None) -> str | None:
    if end is None:
        return None
    return f"+{(datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds():.2f} s"


def _unit(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value:.0f} {unit}"
