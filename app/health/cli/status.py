"""`convener status`: tasks, workers, health and warnings at a glance."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from app.health.cli.health import verdict
from app.kernel.agents import AgentType
from app.kernel.states import FINISHED, TaskState
from app.terminal import options, output
from app.terminal.client import Json, Url, connect
from app.terminal.deaths import recent_deaths
from app.terminal.options import Every, Watch
from app.terminal.output import Format, Output, count, warning_lines

EPILOG = output.examples("convener status", "convener status --watch --every 1", "convener status -o json")
_LIVE_STATES = [state.value for state in TaskState if state not in FINISHED]


def status(url: Url = None, fmt: Output = Format.TABLE, watch: Watch = False, every: Every = 2.0) -> None:
    """Show tasks by agent and state, workers by state, what was finished in the last minute, and warnings."""
    options.show_path("/status", render, url, fmt, interval=every if watch else None)
    if fmt is Format.TABLE:
        with connect(url) as client:
            for line in recent_deaths(client):
                output.note(line)


def render(status: Json) -> RenderableType:
    """The answer of `/status` as a table and lines of text."""
    tasks: Mapping[str, Mapping[str, int]] = status["tasks"]
    table = output.table("TASKS", *(name.upper() for name in _LIVE_STATES), numbers=[n.upper() for n in _LIVE_STATES])
    agents = [*AgentType, *sorted(set(tasks) - set(AgentType))]
    for agent in agents:
        table.add_row(output.cell(agent), *(count(tasks.get(agent, {}).get(name, 0)) for name in _LIVE_STATES))
    table.add_section()
    totals = (sum(counts.get(name, 0) for counts in tasks.values()) for name in _LIVE_STATES)
    table.add_row(Text("all", style="bold"), *map(count, totals))
    lines: list[tuple[str, RenderableType | None]] = [
        ("Health", Text.assemble(verdict(status["overall_health"]), _reasons_text(status["health_reasons"]))),
        ("Workers", f"{_counts_text(status['workers'])}; {status['waiting_leases']} waiting at this API for a task"),
        ("Alerts", _alerts(status["alerts"])),
        (
            "Last minute",
            f"{_counts_text(status['finished_last_minute'])}; {status['tasks_per_second']:g} tasks a second",
        ),
    ]
    return Group(table, Text(""), output.details(lines), *warning_lines(status["warnings"]))


def _alerts(counts: Mapping[str, int]) -> Text | None:
    if not counts:
        return None
    style = "red" if "critical" in counts else "yellow"
    return Text.assemble((_counts_text(counts), style), ": `convener alerts ls`")


def _reasons_text(reasons: Sequence[str]) -> str:
    rest_text = f"; {len(reasons) - 1} more: `convener health`" if len(reasons) > 1 else ""
    return f": {output.plain(reasons[0])}{rest_text}" if reasons else ""


def _counts_text(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items())) or "none"
