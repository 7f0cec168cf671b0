"""`convener goals`: list, show, create and steer research goals, and report their iterations."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table
from rich.text import Text

from app.goals.cli import chart, views
from app.goals.rules.exploration import Arm
from app.goals.rules.goals import GoalState
from app.goals.rules.stopping import StoppingRule, Unit
from app.kernel.namespaces import stored_name
from app.terminal import output
from app.terminal.client import Json, Url, connect
from app.terminal.failures import ExitCode, Failure
from app.terminal.options import After, Limit, Reason, Whole, duration_option, parse_duration, show_list
from app.terminal.output import Format, Output

app = typer.Typer(
    help="See research goals and what they have reached; create, pause, extend and stop them; report iterations.",
    no_args_is_help=True,
)
GoalId = Annotated[str, typer.Argument(metavar="GOAL", help="the id of the goal")]


def _seconds(value: str | None) -> float | None:
    return None if value is None else parse_duration(value)


TimeLimit = Annotated[str | None, duration_option("--time-limit", "since it was created")]
ComputeBudget = Annotated[str | None, duration_option("--compute-budget", "on workers, of all its tasks together")]
MoneyBudget = Annotated[
    float | None, typer.Option(help="against what reports say, or calls of language models have cost if that is more")
]
TokenBudget = Annotated[int | None, typer.Option(help="of its calls of language models")]
MinIterations = Annotated[int | None, typer.Option(help="before a plateau may stop it")]
MaxIterations = Annotated[int | None, typer.Option(help="at most")]
Threshold = Annotated[float | None, typer.Option(help="the least improvement that counts, 0.001 to 0.1")]
UnitOption = Annotated[
    Unit | None,
    typer.Option(help="of improvements: win_probability for Elo, relative for scores; by default by what is reported"),
]
RuleOption = Annotated[StoppingRule | None, typer.Option(help="how a plateau is recognised")]
Patience = Annotated[int | None, typer.Option(help="iterations without improvement until it stops")]


@app.command(
    epilog=output.examples("convener goals ls", "convener goals ls --state running -o json | jq '.items[].id'")
)
def ls(
    state: Annotated[list[GoalState] | None, typer.Option(help="in this state; of several, in any")] = None,
    limit: Limit = 50,
    everything: Whole = False,
    after_id: After = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List research goals by id."""
    states = [item.value for item in state or ()] or None
    show_list("/goals", _listing, url, fmt, limit=limit, everything=everything, after=after_id, state=states)


@app.command(
    epilog=output.examples(
        "convener goals get kepler", "convener goals get kepler --svg kepler.svg", "convener goals get kepler -o json"
    )
)
def get(
    goal_id: GoalId,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="draw quality against compute seconds")] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show a goal: its limits and what is used of them, its iterations, and why it goes on or has stopped."""
    with connect(url) as client:
        goal = client.get(_path(goal_id))
        iterations, _ = client.pages(_path(goal_id, "/iterations"), None)
        now = client.now
    if svg is not None:
        _write_chart(svg, goal, iterations)
    output.present({**goal, "history": iterations}, fmt, lambda: views.render_goal(goal, iterations, now))


@app.command(
    epilog=output.examples(
        "convener goals create --id kepler --objective 'what moves the planets?' --compute-budget 20min",
        "convener goals create --objective 'a better catalyst' --time-limit 2h --max-iterations 40",
    )
)
def create(
    objective: Annotated[str, typer.Option(help="the question")],
    goal_id: Annotated[str | None, typer.Option("--id", help="made up when absent; the goal_id of its tasks")] = None,
    weight: Annotated[float | None, typer.Option(help="its share against other goals, 1 by default")] = None,
    time_limit: TimeLimit = None,
    compute_budget: ComputeBudget = None,
    money_budget: MoneyBudget = None,
    token_budget: TokenBudget = None,
    min_iterations: MinIterations = None,
    max_iterations: MaxIterations = None,
    threshold: Threshold = None,
    unit: UnitOption = None,
    rule: RuleOption = None,
    patience: Patience = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Create a research goal. With an id it is safe to repeat."""
    constraints = _constraints(
        time_limit_seconds=_seconds(time_limit),
        compute_budget_seconds=_seconds(compute_budget),
        money_budget=money_budget,
        token_budget=token_budget,
        min_iterations=min_iterations,
        max_iterations=max_iterations,
        improvement_threshold=threshold,
        improvement_unit=unit,
        rule=rule,
        patience=patience,
    )
    body: Json = {"id": goal_id, "objective": objective, "constraints": constraints, "weight": weight}
    with connect(url) as client:
        goal = client.post("/goals", body)
    _print(goal, fmt, goal["id"])


@app.command(epilog=output.examples("convener goals pause kepler --reason 'the cluster is needed'"))
def pause(goal_id: GoalId, reason: Reason = "", url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Lease no more of its tasks. Those that run go on, its time as well; pausing twice is fine."""
    _post_move("pause", goal_id, reason, url, fmt)


@app.command(epilog=output.examples("convener goals resume kepler"))
def resume(goal_id: GoalId, reason: Reason = "", url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Lease its tasks again, in the order in which they waited."""
    _post_move("resume", goal_id, reason, url, fmt)


@app.command(epilog=output.examples("convener goals stop kepler --reason 'answered'"))
def stop(goal_id: GoalId, reason: Reason = "", url: Url = None, fmt: Output = Format.TABLE) -> None:
    """End a goal for good and cancel its tasks, also those that run."""
    _post_move("stop", goal_id, reason, url, fmt)


@app.command(epilog=output.examples("convener goals extend kepler --compute-budget 1h --max-iterations 60"))
def extend(
    goal_id: GoalId,
    time_limit: TimeLimit = None,
    compute_budget: ComputeBudget = None,
    money_budget: MoneyBudget = None,
    token_budget: TokenBudget = None,
    max_iterations: MaxIterations = None,
    reason: Reason = "",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Set other limits; tasks that waited for a budget are leased again."""
    constraints = _constraints(
        time_limit_seconds=_seconds(time_limit),
        compute_budget_seconds=_seconds(compute_budget),
        money_budget=money_budget,
        token_budget=token_budget,
        max_iterations=max_iterations,
    )
    if not constraints:
        raise typer.BadParameter("name at least one limit")
    with connect(url) as client:
        goal = client.post(_path(goal_id, "/extend"), {"constraints": constraints, "reason": reason or None})
    _print(goal, fmt, f"{goal['id']} is {goal['state']}")


@app.command(
    epilog=output.examples(
        "convener goals report kepler --iteration 3 --quality 1312.5",
        "convener goals report kepler --iteration 4 --quality 1340 --top-quality 1290 --top-matches 5",
    )
)
def report(
    goal_id: GoalId,
    iteration: Annotated[int, typer.Option(help="its number, from 1 on, without gaps", min=1)],
    quality: Annotated[float | None, typer.Option(help="of the best: Elo or a score")] = None,
    top_quality: Annotated[float | None, typer.Option(help="mean of the top k")] = None,
    top_matches: Annotated[int | None, typer.Option(help="fewest matches among the top k")] = None,
    new_best: Annotated[Arm | None, typer.Option(help="where a new best came from")] = None,
    compute_seconds: Annotated[float | None, typer.Option(help="your own count of it")] = None,
    money: Annotated[float, typer.Option(help="spent on it")] = 0.0,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Report an iteration and hear whether to go on. Exits with 0 either way; `-o json` has the decision."""
    body: Json = {"iteration": iteration, "quality": quality, "top_quality": top_quality, "top_matches": top_matches}
    body |= {"new_best": new_best, "compute_seconds": compute_seconds, "money": money}
    with connect(url) as client:
        decision = client.post(_path(goal_id, "/iterations"), body)
    _print(decision, fmt, f"{decision['decision']}: {output.plain(decision['reason'])}")


def _listing(items: list[Json], now: datetime) -> Table:
    columns = ("ID", "STATE", "ITERATIONS", "CREATED", "OBJECTIVE")
    table = output.table(*columns, numbers=["ITERATIONS"], flexible="OBJECTIVE", optional=["CREATED", "ITERATIONS"])
    for goal in items:
        cells = map(output.cell, (goal["iterations"], output.age(goal["created_at"], now), goal["objective"]))
        table.add_row(output.cell(stored_name(goal["namespace"], goal["id"])), views.render_state(goal), *cells)
    return table


def _post_move(move: str, goal_id: str, reason: str, url: str | None, fmt: Format) -> None:
    with connect(url) as client:
        goal = client.post(_path(goal_id, f"/{move}"), {"reason": reason})
    _print(goal, fmt, f"{goal['id']} is {goal['state']}")


def _print(answer: Json, fmt: Format, summary: str) -> None:
    if fmt is Format.JSON:
        output.write_json(answer)
    else:
        output.show(Text(summary))


def _constraints(**options: Any) -> Json:
    return {name: value for name, value in options.items() if value is not None}


def _path(goal_id: str, rest: str = "") -> str:
    return f"/goals/{quote(goal_id, safe='')}{rest}"


def _write_chart(file: Path, goal: Json, iterations: list[Json]) -> None:
    try:
        file.write_text(chart.draw_svg(goal, iterations), encoding="utf-8")
    except OSError as error:
        raise Failure(f"{file} cannot be written: {error.strerror or error}", ExitCode.USAGE) from None
