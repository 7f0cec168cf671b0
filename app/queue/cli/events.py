"""`convener events`: past events in pages, or new ones as they happen."""

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.table import Table

from app.kernel.events import EVENT_KINDS
from app.kernel.namespaces import stored_name
from app.terminal import output
from app.terminal.client import PAGE, Client, Json, Refusal, Unreachable, Url, connect
from app.terminal.failures import Failure
from app.terminal.options import Goal, moment_option
from app.terminal.output import Format, Output

EPILOG = output.examples(
    "convener events --goal kepler --kind completed --kind failed",
    "convener events --since 30min --kind failed",
    "convener events --follow",
    "convener events --follow --after 1234-5678 -o json | jq -c '[.cursor, .kind, .task_id]'",
)
# Less than the 30 s that the service lets a request wait.
_WAIT_SECONDS = 25.0
_RETRY_SECONDS = 1.0
_DEFAULT_LIMIT = 50
# Kinds of task events are the usual ones, so people may leave their prefix out.
_TASK_PREFIX = "task."


def _kind(values: list[str] | None) -> list[str]:
    kinds = {value: value if "." in value else f"{_TASK_PREFIX}{value}" for value in values or ()}
    for value, kind in kinds.items():
        if kind not in EVENT_KINDS:
            choices = ", ".join(choice.removeprefix(_TASK_PREFIX) for choice in EVENT_KINDS)
            raise typer.BadParameter(f"{value} is no kind of event; known are {choices}")
    return list(kinds.values())


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on with what happens, until Ctrl-C")] = False,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR", help="those that follow it; by default from the start, with --follow from now on"
        ),
    ] = None,
    since: Annotated[str | None, moment_option("--since", "instead of --after: from then on")] = None,
    goal: Goal = None,
    kind: Annotated[
        list[str] | None, typer.Option(callback=_kind, help="of this kind, like completed; of several, of any")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help=f"how many at most; {_DEFAULT_LIMIT} by default, without end with --follow", min=1),
    ] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show events in order, each exactly once. With --follow and -o json, one object a line."""
    if after is not None and since is not None:
        raise typer.BadParameter("give --after or --since")
    with connect(url) as client:
        query = {"goal_id": goal, "kind": kind, "since": since}
        if follow:
            _follow(client, after or (None if since else "now"), query, limit, fmt)
            return
        items, cursor = _read(client, after, query, limit or _DEFAULT_LIMIT)
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": cursor})
        return
    output.show(_listing(items))
    if len(items) == (limit or _DEFAULT_LIMIT):
        output.note(f"there may be more: --limit, or --after {cursor}")


def _read(client: Client, cursor: str | None, query: Json, limit: int) -> tuple[list[Json], str | None]:
    """Up to `limit` events that exist already, and the next cursor. A page without matches may still lead on."""
    items: list[Json] = []
    while len(items) < limit:
        page = client.get("/events", after=cursor, limit=min(PAGE, limit - len(items)), **query)
        items += page["items"]
        if page["next"] == cursor:
            break
        cursor = page["next"]
    return items, cursor


def _follow(client: Client, cursor: str | None, query: Json, limit: int | None, fmt: Format) -> None:
    for count, event in enumerate(_endless_events(client, cursor, query), 1):
        if fmt is Format.JSON:
            output.write_json(event, one_line=True)
        else:
            typer.echo(output.plain(event_line(event)))
        if count == limit:
            return


def _endless_events(client: Client, cursor: str | None, query: Json) -> Iterator[Json]:
    """All events from the cursor on, without end; an outage is reported once and waited out."""
    is_away = False
    while True:
        try:
            page = client.get("/events", after=cursor, limit=PAGE, wait_seconds=_WAIT_SECONDS, **query)
        except Failure as failure:
            if not isinstance(failure, Unreachable) and not (isinstance(failure, Refusal) and failure.status == 503):
                raise
            if not is_away:
                output.note(f"waiting for the service, from {cursor or query['since']} on")
            is_away = True
            time.sleep(_RETRY_SECONDS)
            continue
        is_away, cursor = False, page["next"]
        yield from page["items"]


def _listing(items: list[Json]) -> Table:
    names, optional = ("AT", "EVENT", "TASK", "AGENT", "GOAL", "DETAIL"), ["GOAL", "AGENT"]
    table = output.table(*names, whole=["TASK"], flexible=["GOAL", "DETAIL"], optional=optional)
    for event in items:
        values = (_time(event), _name(event), event["task_id"], event["agent_type"], _goal(event), _detail(event))
        table.add_row(*(output.cell(value) for value in values))
    return table


def event_line(event: Json) -> str:
    """An event in one line."""
    words: list[Any] = [_time(event), f"{_name(event):<10}", event["task_id"], event["agent_type"]]
    return "  ".join(str(word) for word in [*words, _goal(event), _detail(event)] if word)


def _time(event: Json) -> str:
    return str(event["at"])[:19].replace("T", " ")


def _name(event: Json) -> str:
    return str(event["kind"]).removeprefix(_TASK_PREFIX)


def _detail(event: Json) -> str | None:
    detail = event["detail"] or {}
    return detail.get("reason") or detail.get("message") or (json.dumps(detail) if detail else None)


def _goal(event: Json) -> str | None:
    return stored_name(event["namespace"], event["goal_id"])
