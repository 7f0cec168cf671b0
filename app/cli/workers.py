"""`convener workers`: who works, how they are, and what they are told."""

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from app.cli import directing, fleet, output, replacements
from app.cli.client import Json, Url, connect
from app.cli.directing import all_workers
from app.cli.output import Format, Output

app = typer.Typer(help="See and direct the workers.", no_args_is_help=True)


@app.command(epilog=output.examples("convener workers ls", "convener workers ls --gone -o json"))
def ls(
    gone: Annotated[bool, typer.Option("--gone", help="also those that have stopped or were lost")] = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List workers by name."""
    with connect(url) as client:
        items = all_workers(client, gone=gone)
        now = client.now
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": None})
    else:
        output.show(_listing(items, now))


app.command(epilog=fleet.EPILOG)(fleet.fleet)
directing.add_to(app)
app.command(epilog=replacements.EPILOG)(replacements.replacements)


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


def _unit(value: float | None, unit: str) -> str | None:
    return None if value is None else f"{value:.0f} {unit}"
