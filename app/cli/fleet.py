"""`convener workers fleet`: the pool as a whole, and the places that rest."""

from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.cli import output
from app.cli.client import Json, Url, connect
from app.cli.output import Format, Output
from app.cli.status import cautions

EPILOG = output.examples("convener workers fleet", "convener workers fleet -o json | jq .resting")


def fleet(url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show the pool as a whole: its bounds, its workers by state, and places that rest because of crash loops."""
    with connect(url) as client:
        found = client.get("/fleet")
        now = client.now
    if fmt is Format.JSON:
        output.write_json(found)
    else:
        output.show(board(found, now))


def board(fleet: Json, now: datetime) -> RenderableType:
    """The answer of `GET /fleet`, for people."""
    states = ", ".join(f"{number:,} {state}" for state, number in fleet["workers"].items() if number) or "none"
    lines = [
        ("Workers", f"{fleet['total']:,}: {states}" if fleet["total"] else states),
        ("Bounds", f"{fleet['min_workers']:,} to {fleet['max_workers']:,}"),
        ("Hosts", ", ".join(f"{host['host']} is to keep {host['size']:,}" for host in fleet["hosts"]) or "none"),
    ]
    if not fleet["reduced_capacity"]:
        return output.details(lines)
    places = len(fleet["resting"])
    why = f"{places:,} {'place rests' if places == 1 else 'places rest'} because workers there died soon after starting"
    return Group(output.details(lines), *cautions([f"reduced capacity: {why}"]), Text(""), _resting(fleet, now))


def _resting(fleet: Json, now: datetime) -> Table:
    table = output.table("HOST", "SLOT", "DEATHS", "NEXT START", numbers=["SLOT", "DEATHS"], flexible="HOST")
    for place in fleet["resting"]:
        following = output.age(place["until"], now)
        table.add_row(*map(output.cell, (place["host"], place["slot"], place["deaths"], following)))
    return table
