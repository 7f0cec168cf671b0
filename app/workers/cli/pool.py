"""`convener workers fleet` and `convener workers replacements`: the pool as a whole, and how it recovers."""

from collections.abc import Iterator
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.terminal import output
from app.terminal.client import Json, Url, connect
from app.terminal.deaths import death_lines
from app.terminal.options import Limit
from app.terminal.output import Format, Output, warning_lines

REPLACEMENTS_EPILOG = output.examples(
    "convener workers replacements", "convener workers replacements --limit 5 -o json"
)
_STEPS = ("requested", "started", "registered", "first_lease")


EPILOG = output.examples("convener workers fleet", "convener workers fleet -o json | jq .resting")


def replacements(limit: Limit = 20, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """List lost workers, newest first: step by step how long it took to replace them, and how long it usually takes."""
    with connect(url) as client:
        items, following = client.pages("/replacements", limit)
        times = client.get("/replacements/times")
        now = client.now
        deaths = death_lines(client, (item["lost_worker_id"] for item in items)) if fmt is Format.TABLE else []
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": following, "times": times})
        return
    output.show(replacement_table(items, now))
    if times["replacements"]:
        output.show("")
        output.show(times_table(times))
    for line in deaths:
        output.note(line)


def replacement_table(items: list[Json], now: datetime) -> Table:
    """Table of replacements; the steps are in seconds since the detection of the loss."""
    columns = [step.upper().replace("_", " ") for step in _STEPS]
    table = output.table("WORKER", "LOST", *columns, "CAUSE", numbers=columns, flexible="CAUSE")
    for item in items:
        table.add_row(
            output.cell(item["worker_name"]),
            output.cell(output.age(item["detected_at"], now)),
            *(output.cell(_since(item["detected_at"], item[f"{step}_at"])) for step in _STEPS),
            output.cell(
                f"{item['cause']}; none comes: {item['closed_reason']}" if item["closed_at"] else item["cause"]
            ),
        )
    return table


def times_table(times: Json) -> Table:
    """Table of the median and 99th percentile of each step, from the answer of `GET /replacements/times`."""
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


def fleet(url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show the pool as a whole: its bounds, its workers by state, and places that rest because of crash loops."""
    with connect(url) as client:
        answer = client.get("/fleet")
        now = client.now
    output.present(answer, fmt, lambda: board(answer, now))


def board(fleet: Json, now: datetime) -> RenderableType:
    """The pool as a whole, from the answer of `GET /fleet`."""
    states = ", ".join(f"{number:,} {state}" for state, number in fleet["workers"].items() if number) or "none"
    lines = [
        ("Workers", f"{fleet['total']:,}: {states}" if fleet["total"] else states),
        ("Bounds", f"{fleet['min_workers']:,} to {fleet['max_workers']:,}"),
        ("Hosts", ", ".join(f"{host['host']} is to keep {host['size']:,}" for host in fleet["hosts"]) or "none"),
        *(("Missing", f"{wait['members']:,} of {host['host']}: {wait['reason']}") for host, wait in _waits(fleet)),
    ]
    parts: list[RenderableType] = [output.details(lines)]
    if fleet["reduced_capacity"]:
        parts += warning_lines([f"reduced capacity: {fleet['reduced_reason']}"])
    if fleet["resting"]:
        parts += [Text(""), _resting(fleet, now)]
    return Group(*parts)


def _waits(fleet: Json) -> Iterator[tuple[Json, Json]]:
    """Hosts with why members of theirs do not come; those that never will are told of as reduced capacity."""
    for host in fleet["hosts"]:
        yield from ((host, wait) for wait in host.get("member_waits", ()) if not wait["is_failure"])


def _resting(fleet: Json, now: datetime) -> Table:
    table = output.table("HOST", "SLOT", "DEATHS", "NEXT START", numbers=["SLOT", "DEATHS"], flexible="HOST")
    for place in fleet["resting"]:
        following = output.age(place["until"], now)
        table.add_row(*map(output.cell, (place["host"], place["slot"], place["deaths"], following)))
    return table
