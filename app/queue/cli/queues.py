"""`convener queues`: how much waits and for how long, pausing agent types, and the weights of research goals."""

from datetime import datetime
from typing import Annotated
from urllib.parse import quote

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.terminal import options, output
from app.terminal.client import Json, Url, connect
from app.terminal.options import Every, Reason, Watch
from app.terminal.output import Format, Output, count, warning_lines

app = typer.Typer(
    help="See how much waits and for how long; pause and resume agent types; weigh research goals.",
    no_args_is_help=True,
)


def _agents(values: list[str] | None) -> list[str]:
    return [options.agent_name(value) for value in values or ()]


Agents = Annotated[list[str] | None, typer.Argument(metavar="AGENT...", callback=_agents, **options.AGENT_HINTS)]
All = Annotated[bool, typer.Option("--all", help="all agent types")]


@app.command(
    epilog=output.examples(
        "convener queues status",
        "convener queues status --watch --every 1",
        "convener queues status -o json | jq -r '.warnings[]'",
    )
)
def status(url: Url = None, fmt: Output = Format.TABLE, watch: Watch = False, every: Every = 2.0) -> None:
    """Show depth, capacity, waits, throughput and service times, what is paused, and warnings."""
    options.show_path("/queues", board, url, fmt, interval=every if watch else None)


@app.command("next", epilog=output.examples("convener queues next", "convener queues next --agent ranking --limit 20"))
def upcoming(
    agent: options.AgentOption = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="tasks of each agent type")] = 10,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show the tasks that are leased next, of one agent type or of each."""
    with connect(url) as client:
        answer = client.get("/queues/next", agent_type=agent, limit=limit)
    output.present(answer, fmt, lambda: _upcoming(answer, client.now))


def _upcoming(answer: Json, now: datetime) -> Table:
    names, optional = ("AGENT", "PLACE", "ID", "PRIORITY", "WAITING", "GOAL"), ["WAITING", "PRIORITY"]
    table = output.table(*names, numbers=["PLACE"], whole=["ID"], flexible="GOAL", optional=optional)
    for kind in answer["agents"]:
        name = f"{kind['agent_type']} (paused)" if kind["paused"] else kind["agent_type"]
        for task in kind["tasks"]:
            waiting = output.age(task["waiting_since"], now)
            goal = output.cell(task["goal_id"] or "")
            table.add_row(name, count(task["place"]), task["id"], task["priority"], waiting, goal)
    return table


@app.command(epilog=output.examples("convener queues namespaces", "convener --namespace lab-a queues namespaces"))
def namespaces(url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show what each namespace has waiting, how much it may, and its weight against others."""
    options.show_path("/namespaces", _namespaces, url, fmt, interval=None)


def _namespaces(answer: Json) -> Table:
    numbers = ("QUEUED", "LIMIT", "RUNNING", "WEIGHT")
    table = output.table("NAMESPACE", *numbers, numbers=numbers)
    for item in answer["items"]:
        running = sum(item["by_phase"].get(phase, 0) for phase in ("assigned", "executing"))
        figures = (count(item["queued"]), f"{item['max_queued']:,}", count(running), f"{item['weight']:g}")
        table.add_row(output.cell(item["namespace"]), *figures)
    return table


@app.command(
    epilog=output.examples(
        "convener queues pause ranking --reason 'its model is being replaced'", "convener queues pause --all"
    )
)
def pause(
    agents: Agents = None,
    everything: All = False,
    reason: Reason = "",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Lease no more tasks of these agent types. Tasks that run go on, and submitting goes on; pausing twice is fine."""
    _send_order("pause", agents, everything, {"reason": reason}, url, fmt)


@app.command(epilog=output.examples("convener queues resume ranking", "convener queues resume --all"))
def resume(
    agents: Agents = None,
    everything: All = False,
    reason: Reason = "",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Lease tasks of these agent types again. Workers that wait get what has piled up at once."""
    _send_order("resume", agents, everything, {"reason": reason}, url, fmt)


@app.command(epilog=output.examples("convener queues weight kepler", "convener queues weight kepler 2.5"))
def weight(
    goal: Annotated[str, typer.Argument(metavar="GOAL", help="the id of a research goal")],
    weight: Annotated[
        float | None, typer.Argument(metavar="WEIGHT", help="2 gets twice the share of 1", min=0.01, max=100)
    ] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show or set the share that a research goal has of the queue, for the tasks that it submits from now on."""
    path = f"/goals/{quote(goal, safe='')}/weight"
    with connect(url) as client:
        answer = client.get(path) if weight is None else client.put(path, {"weight": weight})
    output.present(answer, fmt, lambda: Text(output.plain(f"{answer['goal_id']} has the weight {answer['weight']:g}")))


def board(queue: Json) -> RenderableType:
    """The answer of `GET /queues` as tables and lines."""
    capacity, depth = queue["capacity"], queue["depth"]
    fullness = f"{depth['total']:,} of {capacity['max_queue_size']:,} ({capacity['fullness']:.0%}); {capacity['level']}"
    lines = [("Queued", fullness), *_throughput(queue)]
    if queue["dead_letters_last_hour"]:
        lines.append(("Dead letters", f"{queue['dead_letters_last_hour']:,} in the last hour"))
    now = datetime.fromisoformat(queue["at"])
    lines += [("Paused", _describe_pause(pause, now)) for pause in queue["paused"]]
    tables = (_priorities(queue), Text(""), _types(queue), Text(""))
    return Group(*tables, output.details(lines), *warning_lines(queue["warnings"]))


def _priorities(queue: Json) -> Table:
    """Depth, quota and waits by priority: OLDEST is of tasks that wait now, the others of the last five minutes.

    QUOTA says how much of it is taken up, which tasks of lower priorities do too.
    """
    numbers = ("QUEUED", "QUOTA", "WAITED P50", "P95", "P99", "OLDEST")
    table = output.table("PRIORITY", *numbers, numbers=numbers)
    for name, quota in queue["capacity"]["quotas"].items():
        waits = queue["waits"][name]
        seconds = (waits["p50"], waits["p95"], waits["p99"], waits["oldest_waiting"])
        used = f"{quota['depth']:,} / {quota['limit']:,}"
        table.add_row(name, count(queue["depth"]["by_priority"][name]), used, *map(_seconds, seconds))
    return table


def _types(queue: Json) -> Table:
    numbers = ("PENDING", "DELAYED", "HELD", "BLOCKED", "RUNNING", "TOOK P50", "P95")
    table = output.table("AGENT", *numbers, numbers=numbers)
    for agent, lanes in queue["queues"].items():
        phases = {phase: sum(lane[phase] for lane in lanes.values()) for phase in next(iter(lanes.values()))}
        running = phases["assigned"] + phases["executing"]
        counts = (phases["pending"], phases["delayed"], phases["held"], phases["blocked"], running)
        service_times = queue["service_times"][agent]
        table.add_row(
            output.cell(agent), *map(count, counts), _seconds(service_times["p50"]), _seconds(service_times["p95"])
        )
    return table


def _throughput(queue: Json) -> list[tuple[str, str]]:
    spans = {"last_minute": "Last minute", "last_5_minutes": "Last 5 min"}
    return [
        (name, ", ".join(f"{rate:g} {outcome}" for outcome, rate in queue["throughput"][span].items()) + " a second")
        for span, name in spans.items()
    ]


def _describe_pause(pause: Json, now: datetime) -> str:
    age = output.age(pause["paused_at"], now)
    return f"{pause['agent_type']}, {age} by key {pause['paused_by']}: {pause['reason']}"


def _seconds(seconds: float | None) -> Text:
    if seconds is None:
        return Text("-", style="dim")
    return Text(output.duration(seconds) if seconds >= 10 else f"{seconds:.2f} s")


def _send_order(
    verb: str, agents: list[str] | None, everything: bool, body: Json, url: str | None, fmt: Format
) -> None:
    if everything == bool(agents):
        raise typer.BadParameter("name agent types, or give --all")
    paths = ["/queues"] if everything else [f"/queues/{agent}" for agent in agents or ()]
    with connect(url) as client:
        answers = [client.post(f"{path}/{verb}", body) for path in paths]
    # Every answer lists all pauses, so the last one is complete.
    agent_names = [pause["agent_type"] for pause in answers[-1]["paused"]]
    text = Text(f"paused: {', '.join(agent_names)}" if agent_names else "nothing is paused")
    output.present(answers[-1], fmt, lambda: text)
