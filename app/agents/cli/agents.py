"""`convener agents`: performance, speed and trend of the agents."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from app.terminal import output
from app.terminal.client import Json, Url, connect
from app.terminal.options import AGENT_HINTS, agent_name
from app.terminal.output import Format, Output

app = typer.Typer(
    help="See what each agent achieves, how fast it is, what share that gives it, and how it has changed.",
    no_args_is_help=True,
)
_STEPS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
# The service counts spans from this moment.
_ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)


def _per(value: str) -> str:
    if value not in _STEPS:
        raise typer.BadParameter(f"{value} is none of {', '.join(_STEPS)}")
    return value


Agent = Annotated[str, typer.Argument(metavar="AGENT", callback=agent_name, **AGENT_HINTS)]


@app.command(name="ls", epilog=output.examples("convener agents ls", "convener agents ls -o json | jq '.items[0]'"))
def listing(url: Url = None, fmt: Output = Format.TABLE) -> None:
    """List all agents: effectiveness, weight, quality, and speed."""
    with connect(url) as client:
        body = client.get("/agents")
    if fmt is Format.JSON:
        output.write_json(body)
        return
    numbers = ["EFFECTIVE", "WEIGHT", "HEADED FOR", "QUALITY", "SUCCEEDED", "SECONDS", "PER MIN"]
    table = output.table("AGENT", *numbers, "", numbers=numbers)
    for agent in body["items"]:
        mark = "bottleneck" if agent["is_bottleneck"] else ""
        table.add_row(output.cell(agent["agent_type"]), *map(output.cell, _numbers(agent)), Text(mark, style="yellow"))
    output.show(table)


@app.command(
    epilog=output.examples("convener agents get ranking", "convener agents get ranking --per hour --spans 48 -o json")
)
def get(
    agent: Agent,
    per: Annotated[str, typer.Option(metavar="SPAN", callback=_per, help="minute, hour or day")] = "minute",
    spans: Annotated[int, typer.Option(help="how many of them", min=1, max=1440)] = 60,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show an agent, what its effectiveness rests on, and its trend."""
    with connect(url) as client:
        item = client.get(f"/agents/{agent}", per=per, spans=spans)
        now = client.now
    output.present(item, fmt, lambda: _agent_details(item, now, spans))


def _numbers(agent: Json) -> list[str | None]:
    evidence = agent["evidence"] or {}
    successes = f"{evidence['succeeded']} of {evidence['results']}" if evidence else None
    shares = [_number(agent["effectiveness"]), _number(agent["weight"]), _number(agent["target_weight"])]
    speed = [_number(agent["service_seconds"]), f"{agent['tasks_per_second'] * 60:.1f}"]
    return [*shares, _number(evidence.get("quality")), successes, *speed]


def _agent_details(item: Json, now: datetime, spans: int) -> RenderableType:
    evidence = item["evidence"]
    basis = evidence and (
        f"{evidence['succeeded']} of the last {evidence['results']} results succeeded, {evidence['judged']} were judged"
    )
    weight, target, configured_weight = (
        f"{item[name]:.4f}" for name in ("weight", "target_weight", "configured_weight")
    )
    facts: list[tuple[str, RenderableType | None]] = [
        ("Agent", item["agent_type"]),
        ("Effectiveness", _number(item["effectiveness"]) or "too few results to say"),
        ("Evidence", basis),
        ("Quality", _number(evidence and evidence["quality"])),
        ("Gain", _gain(item["quality_gain"])),
        ("Weight", f"{weight}, headed for {target}, configured {configured_weight}"),
        ("Seconds a task", _number(item["service_seconds"])),
        ("Tasks a minute", f"{item['tasks_per_second'] * 60:.1f}"),
        ("Bottleneck", "yes" if item["is_bottleneck"] else None),
    ]
    return Group(output.details(facts), Text(""), *_plot(item, now, spans))


def _plot(item: Json, now: datetime, spans: int) -> list[Text]:
    """Two lines over time: the number of results and their quality, newest at the right."""
    step = _STEPS[item["per"]]
    by_start = {datetime.fromisoformat(span["start"]): span for span in item["trend"]}
    last = now - (now - _ORIGIN) % step
    width = min(spans, max(10, output.results().width - 12))
    starts = [last - step * back for back in reversed(range(width))]
    rows: list[Any] = [by_start.get(start) for start in starts]
    max_results = max((row["results"] for row in rows if row), default=0)
    counts = output.sparkline([row["results"] if row else None for row in rows])
    qualities = output.sparkline([row["quality"] if row else None for row in rows], high=1.0)
    head = f"each {item['per']} until now; results up to {max_results:,}, quality from 0 to 1"
    return [Text(head, style="dim"), Text(f"results  {counts}"), Text(f"quality  {qualities}")]


def _gain(gain: float | None) -> str | None:
    return None if gain is None else f"{gain:.3g} for each doubling of a task's time"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"
