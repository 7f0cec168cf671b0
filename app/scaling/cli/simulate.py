"""`convener simulate`: what the scaling rule would do with a trace, beside what others would."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.text import Text

from app.kernel.modes import Mode
from app.scaling.rules.target import ScalingPolicy, in_mode
from app.scaling.simulation import comparison, traces
from app.scaling.simulation.comparison import LATE_AFTER_SECONDS, Summary, summary
from app.scaling.simulation.drawing import svg
from app.scaling.simulation.engine import Run, World
from app.scaling.simulation.workloads import Workload, repeat_workload, speed_up
from app.terminal import output
from app.terminal.failures import ExitCode, Failure
from app.terminal.output import Format, Output

EPILOG = output.examples(
    "convener simulate azure-code --baseline dask --baseline hpa",
    "convener simulate mixed --baseline all --svg pool.svg",
    "convener tasks export-trace week.csv.gz && convener simulate week.csv.gz --min 2 --max 40 -o json",
    "convener simulate azure-conv --repeat 25 --faster 12",
)
# The bounds that each mode is meant for.
_BOUNDS = {Mode.DEVELOPMENT: (2, 5), Mode.PRODUCTION: (10, 1000), Mode.TRUSTED_TESTER: (5, 50)}
_ALL = "all"
_CHOICES = [*comparison.BASELINES, comparison.STATIC]


def _baselines(values: list[str]) -> list[str]:
    unknown = [value for value in values if value not in (*_CHOICES, _ALL)]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not known; known are {', '.join(_CHOICES)}, and all")
    return _CHOICES if _ALL in values else list(dict.fromkeys(values))


def simulate(
    trace: Annotated[
        str, typer.Argument(help=f"{', '.join(traces.names())}, or a file", metavar="TRACE")
    ] = "azure-code",
    min_workers: Annotated[
        int | None, typer.Option("--min", help="workers; by default those of the mode", min=1)
    ] = None,
    max_workers: Annotated[
        int | None, typer.Option("--max", help="workers; by default those of the mode", min=1)
    ] = None,
    mode: Annotated[Mode, typer.Option("--policy", help="deployment mode whose rules to use")] = Mode.PRODUCTION,
    baseline: Annotated[
        list[str], typer.Option(callback=_baselines, metavar="NAME", help=f"{', '.join(_CHOICES)}, or all; repeat it")
    ] = [],  # noqa: B006 (typer copies it)
    start_seconds: Annotated[float, typer.Option(help="until a new worker is ready", min=0)] = 5.0,
    wait_target: Annotated[float, typer.Option(help="seconds that a task may wait", min=1)] = 30.0,
    up: Annotated[float, typer.Option("--scale-up-threshold", min=0, max=1)] = 0.8,
    down: Annotated[float, typer.Option("--scale-down-threshold", min=0, max=1)] = 0.3,
    death_rate: Annotated[float, typer.Option(help="share of executions that kill their worker", min=0, max=0.9)] = 0.0,
    seed: Annotated[int, typer.Option(help="of the deaths; the same seed gives the same run")] = 1,
    repeat: Annotated[int, typer.Option(help="the trace so many times in a row", min=1)] = 1,
    speed: Annotated[float, typer.Option("--faster", help="so many times the arrivals a second", min=0.001)] = 1.0,
    drawing: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="draw backlog and pool")] = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Run the scaling rule on a trace, on a virtual clock; needs no service and no database.

    A file is CSV or JSON lines with arrival, service_seconds and agent_type, as `convener tasks export-trace` writes
    it; what `convener tasks ls -o json` prints; or CSV with TIMESTAMP, ContextTokens and GeneratedTokens. It may be
    gzipped.
    """
    if down >= up:
        raise typer.BadParameter("--scale-down-threshold must be less than --scale-up-threshold")
    low, high = _bounds(mode, min_workers, max_workers)
    policy = ScalingPolicy(
        min_workers=low,
        max_workers=high,
        wait_target_seconds=wait_target,
        scale_up_threshold=up,
        scale_down_threshold=down,
    )
    world = World(min_workers=low, max_workers=high, start_seconds=start_seconds, death_rate=death_rate, seed=seed)
    workload = _workload(trace, repeat, speed)
    runs = _compare(workload, in_mode(policy, mode), world, baseline)
    if drawing is not None:
        _draw(drawing, workload, runs)
    _show(workload, [summary(run) for run in runs], fmt)


def _bounds(mode: Mode, min_workers: int | None, max_workers: int | None) -> tuple[int, int]:
    usual = _BOUNDS[mode]
    low = min_workers if min_workers is not None else min(usual[0], max_workers or usual[0])
    high = max_workers if max_workers is not None else max(usual[1], low)
    if low > high:
        raise typer.BadParameter(f"--min {low} is more than --max {high}")
    return low, high


def _workload(trace: str, times: int, speed: float) -> Workload:
    try:
        once = traces.read(trace)
    except OSError as error:
        hint = f"give a file, or one of {', '.join(traces.names())}"
        raise Failure(f"{trace} cannot be read: {error.strerror or error}", ExitCode.USAGE, hint=hint) from None
    except (ValueError, EOFError) as error:
        raise Failure(str(error), ExitCode.USAGE) from None
    quicker = once if speed == 1 else speed_up(once, speed)
    return quicker if times == 1 else repeat_workload(quicker, times)


def _compare(workload: Workload, policy: ScalingPolicy, world: World, baselines: Sequence[str]) -> list[Run]:
    console = output.errors()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("simulating", total=1.0)
        return comparison.compare(
            workload,
            policy,
            world,
            baselines,
            progress=lambda scaler, share: progress.update(bar, description=scaler, completed=share),
        )


def _draw(file: Path, workload: Workload, runs: Sequence[Run]) -> None:
    try:
        file.write_text(svg(workload.name, runs), encoding="utf-8")
    except OSError as error:
        raise Failure(f"{file} cannot be written: {error.strerror or error}", ExitCode.USAGE) from None


def _show(workload: Workload, summaries: Sequence[Summary], fmt: Format) -> None:
    if fmt is Format.JSON:
        runs = [asdict(item) for item in summaries]
        trace = {"trace": workload.name, "assumption": workload.assumption or None}
        output.write_json({**trace, "late_after_seconds": LATE_AFTER_SECONDS, "runs": runs})
        return
    hours = workload.span_seconds / 3600
    output.show(
        Text(f"{workload.name}: {len(workload):,} tasks in {hours:,.1f} h, {summaries[0].work_hours:,.1f} h of work")
    )
    if workload.assumption:
        output.show(Text(f"assumed: {workload.assumption}"))
    output.show(_table(summaries))
    output.show(
        Text("waits in seconds; cost: worker-hours per hour of work; turns: starts after removals or back in 300 s")
    )
    # Where several types could starve each other.
    if len(longest := summaries[0].longest_waits) > 1:
        waits = ", ".join(f"{agent} {wait:,.1f}" for agent, wait in longest.items())
        output.show(Text(f"longest wait: {waits}"))


def _table(summaries: Sequence[Summary]) -> Any:
    numbers = ("wait p50", "p95", "p99", "max", "late", "cost", "turns", "peak", "breaches")
    table = output.table("scaler", *numbers, numbers=numbers)
    for item in summaries:
        waits = (item.wait_p50, item.wait_p95, item.wait_p99, item.wait_max)
        counts = (item.turns, item.peak_workers, item.breaches)
        cells = (*(f"{wait:,.1f}" for wait in waits), f"{item.late_share:.2%}", f"{item.cost:.3f}")
        table.add_row(item.scaler, *cells, *(f"{count:,}" for count in counts))
    return table
