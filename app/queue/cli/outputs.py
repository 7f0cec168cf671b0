"""`convener outputs`: what agents have produced, from a token on."""

import json
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from app.terminal import output
from app.terminal.client import PAGE, Client, Json, Url, connect
from app.terminal.options import AgentOption, Limit, Whole
from app.terminal.output import Format, Output

EPILOG = output.examples(
    "convener outputs --agent ranking --goal kepler",
    'convener outputs --after "$(cat token)" -o json > new.json && jq -r .next new.json > token',
)


def outputs(
    agent: AgentOption = None,
    goal: Annotated[str | None, typer.Option(help="only of this research goal")] = None,
    after: Annotated[
        str | None, typer.Option(help="`next` of an earlier answer; `now`: what comes from now on")
    ] = None,
    limit: Limit = 100,
    everything: Whole = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show results of completed tasks, oldest first. Who keeps `next` and goes on from it sees each exactly once."""
    with connect(url) as client:
        wanted = {"agent_type": agent, "goal_id": goal}
        items, following, more = _follow(client, after, None if everything else limit, wanted)
        now = client.now
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": following, "more": more})
        return
    output.show(_listing(items, now))
    output.errors().print(
        f"[dim]{'there may be more: --all, or ' if more else 'go on later with '}--after {following}[/]"
    )


def _follow(client: Client, after: str | None, most: int | None, wanted: Json) -> tuple[list[Json], str, bool]:
    """Up to `most` items, where to go on, and whether there may be more already."""
    items: list[Json] = []
    while True:
        limit = PAGE if most is None else min(PAGE, most - len(items))
        page = client.get("/outputs", after=after, limit=limit, **wanted)
        items += page["items"]
        after = str(page["next"])
        if not page["more"] or len(items) == most:
            return items, after, page["more"]


def _listing(items: list[Json], now: datetime) -> Table:
    table = output.table("TASK", "AGENT", "FINISHED", "GOAL", "RESULT", whole=["TASK"], flexible="RESULT", tight=True)
    for item in items:
        table.add_row(
            output.cell(item["task_id"]),
            output.cell(item["agent_type"]),
            output.cell(output.age(item["finished_at"], now)),
            output.cell(item["goal_id"]),
            output.cell(json.dumps(item["result"])),
        )
    return table
