"""`convener workers`: list workers, show one, and direct them."""

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from app.kernel.resources import in_words
from app.terminal import output
from app.terminal.client import Json, Url, connect
from app.terminal.deaths import log_place, unique_lines
from app.terminal.output import Format, Output
from app.workers.cli import directives, pool
from app.workers.cli.directives import all_workers, ids_of

app = typer.Typer(help="See and direct the workers.", no_args_is_help=True)
_SHOWN_DEATHS = 5


@app.command(epilog=output.examples("convener workers ls", "convener workers ls --gone -o json"))
def ls(
    with_ended: Annotated[bool, typer.Option("--gone", help="also those that have stopped or were lost")] = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List workers by name."""
    with connect(url) as client:
        items = all_workers(client, with_ended=with_ended)
        now = client.now
    output.present({"items": items, "next": None}, fmt, lambda: _listing(items, now))
    if fmt is Format.TABLE:
        newest = sorted(items, key=lambda worker: str(worker["ended_at"] or ""), reverse=True)
        for line in [f"{w['name']} is not ready: {w['not_ready_reason']}" for w in items if w["not_ready_reason"]]:
            output.note(output.plain(line))
        for line in unique_lines(newest)[:_SHOWN_DEATHS]:
            output.note(line)


@app.command(epilog=output.examples("convener workers get host-1", "convener workers get host-1 -o json"))
def get(
    worker: Annotated[str, typer.Argument(metavar="NAME", help="name or id of a worker")],
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show everything about a worker: its state, what it is assigned to, and how much its tasks may use."""
    with connect(url) as client:
        (worker_id,) = ids_of(client, [worker])
        answer = client.get(f"/workers/{worker_id}")
        now = client.now
    output.present(answer, fmt, lambda: details(answer, now))


app.command(epilog=pool.EPILOG)(pool.fleet)
directives.add_to(app)
app.command(epilog=pool.REPLACEMENTS_EPILOG)(pool.replacements)


def _listing(items: list[Json], now: datetime) -> Table:
    table = output.table(
        *("NAME", "STATE", "SEEN", "CPU", "TASK", "ASSIGNED", "HOST", "PID", "MEMORY", "WORKER"),
        numbers=["CPU", "MEMORY"],
        whole=["TASK", "WORKER"],
        flexible="NAME",
        optional=["SEEN", "PID", "CPU", "HOST", "ASSIGNED", "MEMORY", "WORKER"],
    )
    for worker in items:
        more = [worker["assigned_agent"], worker["host"], worker["pid"]]
        more += [_unit(worker["memory_mb"], "MB"), worker["worker_id"]]
        table.add_row(
            output.cell(worker["name"]),
            output.state(worker["state"]),
            output.cell(output.age(worker["last_seen_at"], now)),
            output.cell(_unit(worker["cpu_percent"], "%")),
            output.cell(worker["task_id"]),
            *map(output.cell, more),
        )
    return table


def details(worker: Json, now: datetime) -> Table:
    """All about a worker, from the answer of `GET /workers/{id}`."""
    errors = [f"{output.age(error['at'], now)}: {error['message']}" for error in worker["recent_errors"] or ()]
    return output.details(
        [
            ("Worker", worker["worker_id"]),
            ("Name", f"{worker['name']}, incarnation {worker['incarnation']}"),
            ("State", output.state(worker["state"])),
            ("Not ready", worker["not_ready_reason"]),
            ("Told to", _directive(worker)),
            ("Runs", ", ".join(worker["capabilities"])),
            ("Assigned", worker["assigned_agent"]),
            ("A task gets", _amounts(worker)),
            ("It has", _has(worker)),
            ("It uses", _uses(worker)),
            ("Task", worker["task_id"]),
            ("Host", worker["host"] and f"{worker['host']}, process {worker['pid'] or '-'}"),
            ("Labels", ", ".join(f"{name}={value}" for name, value in worker["labels"].items()) or None),
            ("Version", worker["version"]),
            ("Registered", output.age(worker["registered_at"], now)),
            ("Seen", output.age(worker["last_seen_at"], now)),
            ("Ended", worker["ended_at"] and f"{output.age(worker['ended_at'], now)}: {worker['ended_reason']}"),
            ("Errors", "\n".join(errors) or None),
            ("Log", log_place(worker).removeprefix("log: ")),
        ]
    )


def _directive(worker: Json) -> str | None:
    return worker["directive"] and f"{worker['directive']}: {worker['directive_reason'] or 'no reason given'}"


def _amounts(worker: Json) -> str | None:
    """The limits of a task by the last decision; the configuration and the worker itself may allow less."""
    memory, cores, seconds = (worker[f"assigned_{name}"] for name in ("memory_gb", "cpu_cores", "compute_seconds"))
    parts = [
        None if memory is None else f"{memory:g} GB",
        None if cores is None else f"{cores:g} cores",
        None if seconds is None else f"{seconds:g} s where a task usually has 600 s",
    ]
    return ", ".join(part for part in parts if part) or None


def _has(worker: Json) -> str | None:
    memory, cores = worker["memory_gb"], worker["cpu_cores"]
    if memory is None or cores is None:
        return None
    more = {"gpus": worker.get("gpus") or 0, **(worker.get("resources") or {})}
    return ", ".join([f"{memory:g} GB", f"{cores:g} cores", *(in_words({name: n}) for name, n in more.items() if n)])


def _uses(worker: Json) -> str | None:
    memory, percent = worker["memory_mb"], worker["cpu_percent"]
    return None if memory is None or percent is None else f"{memory:.0f} MB, {percent:.0f} % of a core"


def _unit(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value:.0f} {unit}"
