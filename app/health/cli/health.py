"""`convener health`: the health report, with an exit code for scripts."""

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.health.rules.finding import Level, Overall
from app.kernel.text import plural
from app.terminal import output
from app.terminal.client import Json, Url, connect
from app.terminal.failures import ExitCode
from app.terminal.output import Format, Output

EPILOG = output.examples(
    "convener health",
    "convener health -o json | jq -r '.reasons[].message'",
    "convener health > /dev/null || echo 'not healthy'",
)
EXITS = {
    Overall.HEALTHY.value: ExitCode.OK,
    Overall.DEGRADED.value: ExitCode.DEGRADED,
    Overall.CRITICAL.value: ExitCode.CRITICAL,
}
_STYLES = {
    Overall.HEALTHY.value: "bold green",
    Overall.DEGRADED.value: "bold yellow",
    Overall.CRITICAL.value: "bold red",
    Level.NOTE.value: "dim",
}


def health(url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show whether the system is well, and why not. Ends with 0 when healthy, 7 when degraded, 8 when critical."""
    with connect(url) as client:
        report = client.report("/health/report")
    output.present(report, fmt, lambda: render(report))
    # A word that this version does not know must not pass for healthy.
    raise typer.Exit(EXITS.get(report["overall_health"], ExitCode.CRITICAL))


def render(report: Json) -> RenderableType:
    """The report as lines of text."""
    if report["worker_pool_health"] is None:
        # The key is not for the whole service, or cannot be checked while the database is away.
        return Group(output.details([("Health", verdict(report["overall_health"]))]), *_reasons(report["reasons"]))
    pool, queue, usage = report["worker_pool_health"], report["queue_health"], report["resource_utilization"]
    workers = f"{pool['healthy_workers']:,} of {pool['total_workers']:,} healthy"
    bottleneck = queue["bottleneck_agent"]
    waiting = plural(queue["total_pending_tasks"], "task")
    waiting += f", the oldest for {output.duration(queue['oldest_task_age_seconds'])}" if bottleneck else ""
    in_use = f"processors {usage['cpu_percentage']:.0f} %, memory {usage['memory_percentage']:.0f} %"
    lines: list[tuple[str, RenderableType | None]] = [
        ("Health", verdict(report["overall_health"])),
        ("Workers", f"{workers}, {pool['utilization_percentage']:.0f} % at work"),
        ("Waiting", waiting),
        ("Bottleneck", bottleneck),
        ("In use", f"{in_use} by the last sample"),
        ("Models", f"{usage['llm_api_usage_percentage']:.0f} % of the permits"),
    ]
    return Group(output.details(lines), *_reasons(report["reasons"]))


def verdict(overall: str) -> Text:
    """The overall health in its color."""
    return Text(output.plain(overall), style=_STYLES.get(overall, ""))


def _reasons(reasons: list[Json]) -> list[RenderableType]:
    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(no_wrap=True)
    # A word of a command that is longer than a narrow terminal is cut nowhere else.
    lines.add_column(overflow="fold")
    for reason in reasons:
        lines.add_row(
            Text(reason["level"], style=_STYLES.get(reason["level"], "")),
            Text.assemble(
                output.plain(reason["message"] or reason["code"]),
                (f"\n{output.plain(reason['advice'])}" if reason.get("advice") else "", "dim"),
            ),
        )
    return [Text(""), lines] if reasons else []
