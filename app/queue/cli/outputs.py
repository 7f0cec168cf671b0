"""`convener outputs`: results of completed tasks, from a continuation token on."""

import json
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from app.kernel.namespaces import stored_name
from app.terminal import output
from app.terminal.client import PAGE, Client, Json, Url, connect
from app.terminal.options import AgentOption, Limit, Whole
from app.terminal.output import Format, Output

EPILOG = output.examples(
    "convener outputs --agent ranking --goal kepler",
    "convener outputs -o json > new.json && jq -r .next new.json > token",
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
        query = {"agent_type": agent, "goal_id": goal}
        items, following, has_more = _read_pages(client, after, None if everything else limit, query)
        now = client.now
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": following, "more": has_more})
        return
    output.show(_listing(items, now))
    output.note(f"{'there may be more: --all, or ' if has_more else 'go on later with '}--after {following}")


def _read_pages(client: Client, token: str | None, limit: int | None, query: Json) -> tuple[list[Json], str, bool]:
    """Up to `limit` items, the token to go on from, and whether there may be more already."""
    items: list[Json] = []
    while True:
        page_size = PAGE if limit is None else min(PAGE, limit - len(items))
        page = client.get("/outputs", after=token, limit=page_size, **query)
        items += page["items"]
        token = str(page["next"])
        if not page["more"] or len(items) == limit:
            return items, token, page["more"]


def _listing(items: list[Json], now: datetime) -> Table:
    names, optional = ("TASK", "AGENT", "FINISHED", "GOAL", "RESULT"), ["GOAL", "FINISHED"]
    table = output.table(*names, whole=["TASK"], flexible=["GOAL", "RESULT"], optional=optional)
    for item in items:
        values = (
            item["task_id"],
            item["agent_type"],
            output.age(item["finished_at"], now),
            stored_name(item["namespace"], item["goal_id"]),
        )
        table.add_row(*map(output.cell, (*values, json.dumps(item["result"]))))
    return table
