"""`convener metrics`: runtime metrics, utilisation over time, and metrics that workers and agents push."""

from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.kernel.agents import AgentType
from app.terminal import options, output
from app.terminal.client import Json, Url, connect
from app.terminal.options import AgentOption, Every, Goal, Watch, moment_option
from app.terminal.output import Format, Output, count

app = typer.Typer(
    help="See what is measured: queue, workers and speed now, how busy all were, and what was pushed.",
    no_args_is_help=True,
)
Since = Annotated[str, moment_option("--since", "from then on")]
_HOUR = "1h"
# So many blocks fit on a line beside the other columns.
_BLOCKS = 30
_PERCENT = {"cpu_percentage": "cpu", "memory_percentage": "memory", "busy_percentage": "busy"}
_AMOUNTS = {"cores": "cores", "memory_gb": "memory GB"}


@app.command(
    epilog=output.examples("convener metrics runtime --watch", "convener metrics runtime -o json | jq .queue_depth")
)
def runtime(url: Url = None, fmt: Output = Format.TABLE, watch: Watch = False, every: Every = 2.0) -> None:
    """Show what waits, who works, how fast, and how busy hosts and workers are."""
    options.show_path("/metrics/runtime", render, url, fmt, interval=every if watch else None)


@app.command(
    epilog=output.examples("convener metrics utilisation", "convener metrics utilisation --since 1d --subject pool")
)
def utilisation(
    since: Since = _HOUR,
    subject: Annotated[str | None, typer.Option(help="pool, workers, or host:NAME")] = None,
    step: Annotated[int | None, typer.Option(help="seconds, of whole minutes", min=60, max=86_400)] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show how busy hosts, workers and the pool were, in blocks from 0 to 100 %."""
    with connect(url) as client:
        length = (client.now - datetime.fromisoformat(since)).total_seconds()
        # As many steps as fit on a line, of whole minutes.
        fitting = 60 * max(1, round(length / 60 / _BLOCKS))
        answer = client.get("/metrics/utilisation", since=since, subject=subject, step=step or min(86_400, fitting))
    nothing = Text("nothing was measured; the loops do it, every 5 s")
    output.present(answer, fmt, lambda: _utilisation_table(answer["subjects"]) if answer["subjects"] else nothing)


@app.command(
    epilog=output.examples(
        "convener metrics series",
        "convener metrics series hypotheses_written --since 6h --agent generation",
        "convener metrics series gpu_memory_percent -o json | jq '.items[-1]'",
    )
)
def series(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="of a metric; by default all names")] = None,
    since: Since = _HOUR,
    agent: AgentOption = None,
    worker: Annotated[str | None, typer.Option(help="pushed for this worker")] = None,
    goal: Goal = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show what workers and agents have pushed, by the minute: all names, or the series of one."""
    with connect(url) as client:
        if name is None:
            answer = client.get("/metrics/names")
        else:
            items, _ = client.pages(
                "/metrics/series", None, name=name, since=since, agent=agent, worker=worker, goal=goal
            )
            answer = {"name": name, "items": items}
        now = client.now
    if fmt is Format.JSON:
        output.write_json(answer)
    elif not answer["items"]:
        output.show(Text("nothing was pushed" if name is None else "no sample came in this time"))
    else:
        output.show(_names_table(answer["items"], now) if name is None else _series_table(answer["items"]))


@app.command(
    epilog=output.examples(
        "convener metrics push gpu_memory_percent 61.5 --worker lab-1",
        "convener metrics push hypotheses_written 3 --counter --agent generation --goal kepler",
    )
)
def push(
    name: Annotated[str, typer.Argument(metavar="NAME", help="lower case, digits and underscores")],
    value: Annotated[
        float, typer.Argument(metavar="VALUE", help="now; of a counter, what has come since the last one")
    ],
    counter: Annotated[bool, typer.Option("--counter", help="it adds up; without, it is a gauge")] = False,
    agent: AgentOption = None,
    worker: Annotated[str | None, typer.Option(help="measured of this worker")] = None,
    goal: Goal = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Push one sample, as workers and agents do in batches with POST /metrics/samples."""
    labels = {"agent": agent, "worker": worker, "goal": goal}
    sample = {"name": name, "kind": "counter" if counter else "gauge", "value": value, **labels}
    with connect(url) as client:
        answer = client.post("/metrics/samples", {"batch_id": str(uuid4()), "samples": [sample]})
    output.present(answer, fmt, lambda: Text("taken"))


def render(runtime: Json) -> RenderableType:
    """The answer of `/metrics/runtime` as a table and lines of text."""
    workers, speed = runtime["worker_status"], runtime["performance_metrics"]
    target = "no target yet" if runtime["target_workers"] is None else f"{runtime['target_workers']:,} wanted"
    counts = f"{workers['active_workers']:,} active, {workers['idle_workers']:,} idle, "
    counts += f"{runtime['starting_workers']:,} starting, {workers['failed_workers']:,} failed lately; {target}"
    pace = f"{speed['tasks_per_second']:g} tasks a second, {speed['avg_task_completion_time_ms']:,.0f} ms each"
    lines = [
        ("Workers", counts),
        ("Speed", f"{pace}; {speed['llm_call_latency_ms']:,.0f} ms a call of a language model"),
        *((name, _percent_text(usage)) for name, usage in runtime["utilisation"].items()),
    ]
    notes = [Text(output.plain(reason["message"]), style="dim") for reason in runtime["reasons"]]
    return Group(_agents_table(runtime), Text(""), output.details(lines), *([Text(""), *notes] if notes else []))


def _agents_table(runtime: Json) -> Table:
    numbers = ("QUEUED", "ARRIVE /S", "TOOK MEAN", "P95")
    table = output.table("AGENT", *numbers, numbers=numbers)
    for agent in AgentType:
        times = runtime["service_times"][agent]
        depth, arrivals = runtime["queue_depth"][f"{agent}_tasks"], runtime["arrivals_per_second"][agent]
        table.add_row(output.cell(agent), count(depth), f"{arrivals:g}", _ms(times["mean_ms"]), _ms(times["p95_ms"]))
    return table


def _percent_text(usage: Json) -> str:
    percents = {name: usage[field] for field, name in _PERCENT.items() if usage[field] is not None}
    return ", ".join(f"{name} {percent:.0f} %" for name, percent in percents.items()) or "-"


def _utilisation_table(subjects: dict[str, list[Json]]) -> Table:
    numbers = ("LAST", "MEAN", "MAX")
    table = output.table("SUBJECT", "OF", *numbers, "TIME", numbers=numbers, flexible="TIME")
    for subject, steps in subjects.items():
        for field, name in (_PERCENT | _AMOUNTS).items():
            means = [step[field] and step[field]["mean"] for step in steps]
            measured_steps = [step[field] for step in steps if step[field]]
            if measured_steps:
                figures = (
                    measured_steps[-1]["mean"],
                    sum(part["mean"] for part in measured_steps) / len(measured_steps),
                    max(p["max"] for p in measured_steps),
                )
                line = output.sparkline(means, high=100.0 if field in _PERCENT else None)
                table.add_row(output.cell(subject), name, *(f"{figure:.4g}" for figure in figures), line)
    return table


def _names_table(items: list[Json], now: datetime) -> Table:
    table = output.table("NAME", "KIND", "SERIES", "LAST", numbers=["SERIES"])
    for item in items:
        last = output.cell(output.age(item["last_at"], now))
        table.add_row(output.cell(item["name"]), item["kind"], f"{item['series']:,}", last)
    return table


def _series_table(items: list[Json]) -> Table:
    """A row for each series, of counters the sum by the minute; minutes without a sample are blank."""
    numbers = ("LAST", "MIN", "MEAN", "MAX")
    table = output.table("AGENT", "WORKER", "GOAL", *numbers, "TIME", numbers=numbers, flexible="TIME")
    points_by_labels: dict[tuple[Any, ...], list[Json]] = {}
    for item in items:
        points_by_labels.setdefault((item["agent"], item["worker"], item["goal"]), []).append(item)
    for labels, points in points_by_labels.items():
        counts = points[0]["per_second"] is not None
        low, mean, high, last = ("sum",) * 4 if counts else ("min", "mean", "max", "last")
        figures = (
            points[-1][last],
            min(point[low] for point in points),
            sum(point[mean] for point in points) / len(points),
            max(point[high] for point in points),
        )
        line = output.sparkline(_thin_out(_by_minute(points, mean)))
        table.add_row(*map(output.cell, labels), *(f"{figure:.6g}" for figure in figures), line)
    return table


def _by_minute(points: list[Json], field: str) -> list[float | None]:
    """Values from the first minute to the last; None for a minute without a sample."""
    values = {datetime.fromisoformat(point["minute"]): point[field] for point in points}
    first, last = min(values), max(values)
    return [values.get(first + timedelta(minutes=n)) for n in range((last - first) // timedelta(minutes=1) + 1)]


def _thin_out(values: list[float | None]) -> list[float | None]:
    """As many values as fit on a line, each the mean of the measured ones of its part."""
    size = -(-len(values) // _BLOCKS)
    parts = [[v for v in values[start : start + size] if v is not None] for start in range(0, len(values), size)]
    return [sum(part) / len(part) if part else None for part in parts]


def _ms(milliseconds: float | None) -> Text:
    if milliseconds is None:
        return Text("-", style="dim")
    return Text(output.duration(milliseconds / 1000) if milliseconds >= 10_000 else f"{milliseconds / 1000:.2f} s")
