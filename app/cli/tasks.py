"""`convener tasks`: list, read and cancel tasks."""

import json
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.cli import output, submit
from app.cli.client import Json, Url, connect
from app.cli.failures import Failure
from app.cli.output import Format, Output
from app.cli.words import AgentOption, Reason
from app.domain.tasks import TaskState

app = typer.Typer(help="Submit tasks, and see what becomes of them.", no_args_is_help=True)
app.command("submit", epilog=submit.EPILOG)(submit.submit)
TaskIdArgument = Annotated[UUID, typer.Argument(metavar="ID", help="the id of a task")]


@app.command(
    epilog=output.examples(
        "convener tasks ls --goal kepler --state failed",
        "convener tasks ls --agent ranking --all -o json | jq -r '.items[].id'",
    )
)
def ls(
    goal: Annotated[str | None, typer.Option(help="only of this research goal")] = None,
    state: Annotated[TaskState | None, typer.Option(help="only in this state")] = None,
    agent: AgentOption = None,
    limit: Annotated[int, typer.Option(help="how many at most", min=1)] = 50,
    everything: Annotated[bool, typer.Option("--all", help="all of them, however many")] = False,
    after: Annotated[str | None, typer.Option(help="`next` of an earlier answer: go on from there")] = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List tasks, newest first."""
    wanted = {"goal_id": goal, "state": state.value if state else None, "agent_type": agent, "after": after}
    with connect(url) as client, output.errors().status("reading tasks") as seen:
        items, following = client.pages(
            "/tasks", None if everything else limit, lambda count: seen.update(f"reading tasks: {count:,}"), **wanted
        )
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": following})
        return
    output.show(_listing(items, client.now))
    if following:
        output.errors().print(f"[dim]there are more: --all, --limit, or --after {following}[/]")


@app.command(
    epilog=output.examples("convener tasks get 0190a5b2-...", "convener tasks get 0190a5b2-... -o json | jq .result")
)
def get(task_id: TaskIdArgument, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show everything about a task: payload, progress, result, and the attempts that failed."""
    with connect(url) as client:
        task = client.get(f"/tasks/{task_id}")
    if fmt is Format.JSON:
        output.write_json(task)
    else:
        output.show(portrait(task, client.now))


@app.command(
    epilog=output.examples(
        "convener tasks cancel 0190a5b2-... --reason 'wrong data set'",
        "convener tasks ls --goal kepler --state pending --all -o json | jq -r '.items[].id'"
        " | xargs convener tasks cancel",
    )
)
def cancel(
    task_ids: Annotated[list[UUID], typer.Argument(metavar="ID...", help="ids of tasks")],
    reason: Reason = "cancelled by an operator",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Cancel tasks. A running one is stopped with the next heartbeat of its worker; cancelling twice is fine."""
    done, failures = [], []
    with connect(url) as client:
        for task_id in task_ids:
            try:
                done.append(client.post(f"/tasks/{task_id}/cancel", {"reason": reason}))
            except Failure as failure:
                failures.append((task_id, failure))
    if fmt is Format.JSON:
        output.write_json({"items": done})
    else:
        for task in done:
            output.show(Text(f"cancelled {task['id']}"))
    for task_id, refusal in failures:
        output.errors().print(f"{task_id} was not cancelled:")
        refusal.show()
    if failures:
        raise typer.Exit(failures[0][1].code)


def portrait(task: Json, now: datetime) -> RenderableType:
    """A task as `GET /tasks/{id}` tells of it, for people."""
    progress, usage = task["progress"], task["usage"]
    facts = output.details(
        [
            ("Task", task["id"]),
            ("State", output.state(task["state"])),
            ("Agent", task["agent_type"]),
            ("Goal", task["goal_id"]),
            ("Priority", task["priority"]),
            ("Attempt", f"{task['attempt']} of {task['max_attempts']}" + _rescued(task["rescues"])),
            ("Worker", task["worker_id"]),
            ("Created", output.age(task["created_at"], now)),
            ("Runs", output.age(task["run_at"], now)),
            ("Leased", output.age(task["leased_at"], now)),
            ("Finished", output.age(task["finished_at"], now)),
            ("Deadline", output.age(task["deadline"], now)),
            ("Progress", f"{progress['percent']:g} %  {progress['message'] or ''}" if progress else None),
            ("Used", _used(usage) if usage else None),
            ("Labels", ", ".join(f"{name}={value}" for name, value in task["labels"].items()) or None),
            ("Payload", output.json_text(task["payload"])),
            ("Checkpoint", output.json_text(task["checkpoint"])),
            ("Result", output.json_text(task["result"])),
            ("Error", _error(task["error"]) if task["error"] else None),
        ]
    )
    return Group(facts, Text(""), _attempts(task["attempts"], now)) if task["attempts"] else facts


def _listing(items: list[Json], now: datetime) -> Table:
    wide = output.is_wide()
    more = ("PRIORITY", "ATTEMPT", "PROGRESS") if wide else ()
    table = output.table(
        "ID", "AGENT", "STATE", "CREATED", *more, "GOAL", whole=["ID"], flexible="GOAL", tight=not wide
    )
    for task in items:
        progress = task["progress"]
        extra: list[Any] = [task["priority"], f"{task['attempt']}/{task['max_attempts']}"]
        extra.append(f"{progress['percent']:g} %" if progress else None)
        table.add_row(
            output.cell(task["id"]),
            output.cell(task["agent_type"]),
            output.state(task["state"]),
            output.cell(output.age(task["created_at"], now)),
            *(output.cell(value) for value in extra if wide),
            output.cell(task["goal_id"]),
        )
    return table


def _attempts(attempts: list[Json], now: datetime) -> Table:
    table = output.table(
        "ATTEMPT", "OUTCOME", "ENDED", "WORKER", "ERROR", whole=["WORKER"], flexible="ERROR", tight=True
    )
    for attempt in attempts:
        error = attempt["error"] or {}
        table.add_row(
            output.cell(attempt["attempt"]),
            output.cell(attempt["outcome"]),
            output.cell(output.age(attempt["ended_at"], now)),
            output.cell(attempt["worker_id"]),
            output.cell(error.get("message") or error.get("code")),
        )
    return table


def _error(error: Json) -> str:
    """Code and message, then the details, tracebacks as they were printed."""
    more = [
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in (error.get("detail") or {}).items()
    ]
    return "\n".join([f"{error.get('code')}: {error.get('message')}", *more]).rstrip()


def _rescued(rescues: int) -> str:
    return f", rescued from lost workers {rescues} times" if rescues else ""


def _used(usage: Json) -> str:
    return (
        f"{usage['wall_seconds']:.2f} s of wall time, {usage['cpu_seconds']:.2f} s of CPU, "
        f"{usage['max_memory_mb']:.0f} MB at most"
    )
