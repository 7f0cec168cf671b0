"""`convener tasks`: list, read and cancel tasks."""

from typing import Annotated

import typer
from rich.text import Text

from app.kernel.states import TaskState
from app.queue.cli import dead_letters, logs, submit
from app.queue.cli.submit import PriorityName
from app.queue.cli.views import listing, present_task, task_details
from app.terminal import bulk, output
from app.terminal.bulk import Action, Confirmation, DryRun, Everything, MaxCount, Yes
from app.terminal.client import Client, Json, Url, connect
from app.terminal.failures import Failure
from app.terminal.ids import TaskIdArgument, TaskIds, id_or_prefix, whole_id, whole_ids
from app.terminal.options import (
    After,
    AgentOption,
    Code,
    Goal,
    Labels,
    Limit,
    Reason,
    Whole,
    coming_moment_option,
    moment_option,
)
from app.terminal.output import Format, Output

app = typer.Typer(help="Submit tasks, and see what becomes of them.", no_args_is_help=True)
app.command("submit", epilog=submit.EPILOG)(submit.submit)
app.command("logs", epilog=logs.EPILOG)(logs.logs)
# Hidden: a second name, because people look for it among the tasks.
app.command("requeue", hidden=True, epilog=output.examples("convener tasks requeue 0190a5b2 --priority high"))(
    dead_letters.requeue
)
PriorityOption = Annotated[PriorityName | None, typer.Option("--priority", help="of this priority")]
_CANCEL = Action(path="/tasks/cancel", verb="cancel", participle="cancelled", thing="task")


@app.command(
    epilog=output.examples(
        "convener tasks ls --goal kepler --state failed",
        "convener tasks ls --state pending --state blocked --label team=blue",
        "convener tasks ls --code llm_timeout --finished-after 2h",
        "convener tasks ls --agent ranking --all -o json | jq -r '.items[].id'",
    )
)
def ls(
    goal: Goal = None,
    state: Annotated[list[TaskState] | None, typer.Option(help="in this state; of several, in any")] = None,
    agent: AgentOption = None,
    priority: PriorityOption = None,
    label: Labels = None,
    code: Code = None,
    worker: Annotated[
        str | None, typer.Option(metavar="ID", parser=id_or_prefix, help="that this worker runs, or ran last")
    ] = None,
    created_after: Annotated[str | None, moment_option("--created-after", "submitted since then")] = None,
    created_before: Annotated[str | None, moment_option("--created-before", "submitted before")] = None,
    finished_after: Annotated[str | None, moment_option("--finished-after", "finished since then")] = None,
    finished_before: Annotated[str | None, moment_option("--finished-before", "finished before")] = None,
    limit: Limit = 50,
    everything: Whole = False,
    after: After = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List tasks, newest first: those that agree with all of the filters."""
    query = {
        "goal_id": goal,
        "state": [choice.value for choice in state or ()],
        "agent_type": agent,
        "priority": priority.value if priority else None,
        "label": label,
        "code": code,
        "created_after": created_after,
        "created_before": created_before,
        "finished_after": finished_after,
        "finished_before": finished_before,
        "after": after,
    }
    with connect(url) as client, output.errors().status("reading tasks") as status:
        query["worker_id"] = whole_id(client, "workers", worker) if worker else None
        items, following = client.pages(
            "/tasks", None if everything else limit, lambda count: status.update(f"reading tasks: {count:,}"), **query
        )
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": following})
        return
    output.show(listing(items, client.now))
    if following:
        output.hint_at_more("--all", "--limit", f"--after {following}")


@app.command(epilog=output.examples("convener tasks get 0190a5b2", "convener tasks get 0190a5b2 -o json | jq .result"))
def get(task_id: TaskIdArgument, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """Show everything about a task: payload, progress, result, and the attempts that failed."""
    with connect(url) as client:
        task = client.get(f"/tasks/{whole_id(client, 'tasks', task_id)}")
        present_task(client, task, fmt)


@app.command(
    epilog=output.examples(
        "convener tasks change 0190a5b2 --priority critical --reason 'the referee waits'",
        "convener tasks change 0190a5b2 --deadline 2030-01-31T12:00Z",
        "convener tasks change 0190a5b2 --no-deadline",
    )
)
def change(
    task_id: TaskIdArgument,
    priority: Annotated[PriorityName | None, typer.Option(help="that it has from now on")] = None,
    deadline: Annotated[str | None, coming_moment_option("--deadline", "to be done before")] = None,
    no_deadline: Annotated[bool, typer.Option("--no-deadline", help="to be done at any time")] = False,
    reason: Reason = "changed by an operator",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Change the priority or the deadline of a task that waits."""
    new = {"priority": priority.value if priority else None, "deadline": deadline}
    body: Json = {name: value for name, value in new.items() if value is not None}
    body |= {"deadline": None} if no_deadline else {}
    if not body or (deadline and no_deadline):
        raise typer.BadParameter("give a --priority, and a --deadline or --no-deadline")
    with connect(url) as client:
        task = client.patch(f"/tasks/{whole_id(client, 'tasks', task_id)}", body | {"reason": reason})
    output.present(task, fmt, lambda: task_details(task, client.now))


@app.command(
    epilog=output.examples(
        "convener tasks cancel 0190a5b2 --reason 'wrong data set'",
        "convener tasks cancel --goal kepler --state pending --dry-run",
        "convener tasks cancel --agent ranking --created-before 2h --yes",
    )
)
def cancel(
    task_ids: TaskIds = None,
    goal: Goal = None,
    state: Annotated[TaskState | None, typer.Option(help="that are blocked, pending, assigned or executing")] = None,
    agent: AgentOption = None,
    priority: PriorityOption = None,
    label: Labels = None,
    created_before: Annotated[str | None, moment_option("--created-before", "submitted before")] = None,
    everything: Everything = False,
    reason: Reason = "",
    limit: MaxCount = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Cancel tasks by their ids, or all that a filter selects, with those that wait for them.

    A running one is stopped with the next heartbeat of its worker; cancelling twice is fine. A filter is counted
    first, and asks before it does anything.
    """
    filters = {
        "goal_id": goal,
        "state": state.value if state else None,
        "agent_type": agent,
        "priority": priority.value if priority else None,
        "label": label,
        "created_before": created_before,
    }
    if task_ids:
        bulk.refuse_filters(everything, dry_run, limit, *filters.values())
        with connect(url) as client:
            _cancel_each(client, whole_ids(client, "tasks", task_ids), reason, fmt)
        return
    selected = bulk.selection(everything, **filters)
    bulk.run(_CANCEL, selected, {"reason": reason}, Confirmation(yes=yes, dry_run=dry_run, limit=limit), url, fmt)


def _cancel_each(client: Client, task_ids: list[str], reason: str, fmt: Format) -> None:
    cancelled_tasks, failures = [], []
    for task_id in task_ids:
        try:
            cancelled_tasks.append(client.post(f"/tasks/{task_id}/cancel", {"reason": reason}))
        # One refusal must not keep the other tasks running; the first decides the exit code.
        except Failure as failure:
            failures.append((task_id, failure))
    if fmt is Format.JSON:
        output.write_json({"items": cancelled_tasks})
    else:
        for task in cancelled_tasks:
            output.show(Text(f"cancelled {task['id']}"))
    for task_id, refusal in failures:
        refusal.message = f"{task_id} was not cancelled: {refusal.message}"
        refusal.show(as_json=fmt is Format.JSON)
    if failures:
        raise typer.Exit(failures[0][1].code)
