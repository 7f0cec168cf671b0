"""`convener status`: what is going on."""

import time
from collections.abc import Iterator, Mapping
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from app.cli import output
from app.cli.client import Client, Json, Unreachable, Url, connect
from app.cli.failures import Failure
from app.cli.output import Format, Output
from app.domain.agents import AgentType
from app.domain.tasks import FINISHED, TaskState

EPILOG = output.examples("convener status", "convener status --watch --every 1", "convener status -o json")
_LIVE_STATES = [state.value for state in TaskState if state not in FINISHED]


def status(
    url: Url = None,
    fmt: Output = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="go on until Ctrl-C")] = False,
    every: Annotated[float, typer.Option(help="seconds between two looks", min=0.1, max=3600)] = 2.0,
) -> None:
    """Show tasks by agent and state, workers by state, and what was finished in the last minute."""
    with connect(url) as client:
        if watch:
            _watch(client, fmt, every)
        elif fmt is Format.JSON:
            output.write_json(client.get("/status"))
        else:
            output.show(board(client.get("/status")))


def board(status: Json) -> RenderableType:
    """The answer of `/status`, for people."""
    tasks: Mapping[str, Mapping[str, int]] = status["tasks"]
    table = output.table("TASKS", *(name.upper() for name in _LIVE_STATES), numbers=[n.upper() for n in _LIVE_STATES])
    agents = [*AgentType, *sorted(set(tasks) - set(AgentType))]
    for agent in agents:
        table.add_row(output.cell(agent), *(_count(tasks.get(agent, {}).get(name, 0)) for name in _LIVE_STATES))
    table.add_section()
    totals = (sum(counts.get(name, 0) for counts in tasks.values()) for name in _LIVE_STATES)
    table.add_row(Text("all", style="bold"), *map(_count, totals))
    lines = [
        ("Workers", f"{_listed(status['workers'])}; {status['waiting_leases']} of them waiting for a task"),
        ("Last minute", f"{_listed(status['finished_last_minute'])}; {status['tasks_per_second']:g} tasks a second"),
    ]
    return Group(table, Text(""), output.details(lines))


def _watch(client: Client, fmt: Format, seconds: float) -> None:
    console = output.results()
    if fmt is Format.TABLE and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for look in _looks(client, seconds):
                live.update(Text(look.message, style="red") if isinstance(look, Failure) else board(look), refresh=True)
    for look in _looks(client, seconds):
        if isinstance(look, Failure):
            look.show()
        elif fmt is Format.JSON:
            output.write_json(look, one_line=True)
        else:
            console.print(board(look))


def _looks(client: Client, seconds: float) -> Iterator[Json | Failure]:
    """Look again and again; an outage is told of, and does not end it."""
    while True:
        try:
            yield client.get("/status")
        except Unreachable as failure:
            yield failure
        time.sleep(seconds)


def _count(number: int) -> Text:
    return Text(f"{number:,}") if number else Text("0", style="dim")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items())) or "none"
