"""A research goal on a terminal: limits, iterations, and the chart of its quality."""

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.goals.cli import chart as chart_cli
from app.kernel.namespaces import stored_name
from app.terminal import output
from app.terminal.client import Json

_SHOWN_ITERATIONS = 10


def render_state(goal: Json) -> Text:
    """State of a goal; a hold for its budget is shown as a state of its own."""
    if goal["hold"] == "budget":
        return Text("out of budget", style="yellow")
    return output.state(goal["state"])


def render_goal(goal: Json, iterations: Sequence[Json], now: datetime) -> RenderableType:
    """Render a goal as `GET /goals/{id}` answers it, with a table of its last iterations and a chart of all."""
    compute, last = goal["compute"], goal["last_decision"]
    facts = output.details(
        [
            ("Goal", stored_name(goal["namespace"], goal["id"])),
            ("Objective", goal["objective"]),
            ("State", render_state(goal)),
            ("Because", goal["reason"]),
            ("Created", output.age(goal["created_at"], now)),
            ("Ended", output.age(goal["ended_at"], now)),
            ("Weight", f"{goal['weight']:g}"),
            ("Compute", _format_compute(compute)),
            ("Tasks", _format_tasks(goal["tasks"])),
            *((f"Limit of {use['limit']}", _format_use(use)) for use in goal["usage"]),
            ("Judged by", _format_rule(goal["judged_by"])),
            ("Decided", f"{last['decision']}: {last['reason']}" if last else None),
            ("Explore", f"{100 * last['exploration_share']:.0f} % ({last['exploration_reason']})" if last else None),
            ("Gain", _format_gain(iterations)),
            *(("Notice", notice) for notice in goal["notices"]),
        ]
    )
    if not iterations:
        return facts
    chart = chart_cli.draw_text(chart_cli.curves(iterations))
    charts = [Text(""), Text(chart)] if chart else []
    return Group(facts, Text(""), _iteration_table(iterations[-_SHOWN_ITERATIONS:]), *charts)


def _iteration_table(iterations: Sequence[Json]) -> Table:
    """Table of iterations; COMPUTE is measured by the service, CLAIMED is reported by the client."""
    numbers = ("ITERATION", "QUALITY", "TOP", "COMPUTE", "CLAIMED", "GAIN", "PER S")
    table = output.table(*numbers, "DECISION", "REASON", numbers=numbers, flexible="REASON")
    for row in iterations:
        seconds = (row["iteration_compute_seconds"], row["claimed_compute_seconds"])
        gains = (row["improvement"] or None, row["improvement_per_compute_second"] or None)
        values = (row["quality"], row["top_quality"], *seconds, *gains)
        figures = (None if value is None else f"{value:.4g}" for value in values)
        table.add_row(*map(output.cell, (row["iteration"], *figures, row["decision"], row["reason"])))
    return table


def _format_compute(compute: Json) -> str:
    running = f", {compute['running']} running for {compute['running_seconds']:.1f} s" if compute["running"] else ""
    return f"{compute['spent_seconds']:.1f} s on workers{running}"


def _format_tasks(totals: Json) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in totals.items() if number) or "none yet"


def _format_use(use: Json) -> str:
    return f"{use['used']:,.4g} of {use['allowed']:,.4g} ({100 * use['share']:.0f} %)"


def _format_rule(rule: Json) -> str:
    if not rule["judges"]:
        return "hard limits only"
    return f"{rule['rule']}, improvements of {rule['threshold']:g} ({rule['unit']}), patience {rule['patience']}"


def _format_gain(iterations: Sequence[Json]) -> str | None:
    """Gain for each second of compute, of all iterations and of the later half."""
    if len(iterations) < 2:
        return None
    half = iterations[len(iterations) // 2 :]
    return f"{_format_gain_per_second(iterations)}; lately {_format_gain_per_second(half)}"


def _format_gain_per_second(iterations: Sequence[Json]) -> str:
    gain = sum(row["improvement"] for row in iterations)
    seconds = sum(row["iteration_compute_seconds"] for row in iterations)
    return f"{gain:.3g} in {seconds:.1f} s of compute" + (f", {gain / seconds:.2g} a second" if seconds > 0 else "")
