"""`convener workers replacements`: who was lost, and how fast others took their places."""

from datetime import datetime

from rich.table import Table

from app.cli import output
from app.cli.client import Json, Url, connect
from app.cli.output import Format, Output
from app.cli.words import Limit

EPILOG = output.examples("convener workers replacements", "convener workers replacements --limit 5 -o json")
_STEPS = ("requested", "started", "registered", "first_lease")


def replacements(
    limit: Limit = 20,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List lost workers, newest first: step by step how long it took to replace them, and how long it usually takes."""
    with connect(url) as client:
        items, following = client.pages("/replacements", limit)
        times = client.get("/replacements/times")
        now = client.now
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": following, "times": times})
        return
    output.show(chronicle(items, now))
    if times["replacements"]:
        output.show("")
        output.show(summary(times))


def chronicle(items: list[Json], now: datetime) -> Table:
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


def summary(times: Json) -> Table:
    """Median and 99th percentile of each step, as `GET /replacements/times` tells them."""
    columns = [step.upper().replace("_", " ") for step in _STEPS]
    table = output.table(f"OF {times['replacements']:,}", *columns, numbers=columns)
    for share in ("p50", "p99"):
        seconds = [None if times[step] is None else f"+{times[step][share]:.2f} s" for step in _STEPS]
        table.add_row(output.cell(share), *map(output.cell, seconds))
    return table


def _since(start: str, end: str | None) -> str | None:
    if end is None:
        return None
    return f"+{(datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds():.2f} s"
