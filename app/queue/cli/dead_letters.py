"""`convener dead-letters`: tasks that failed for good."""

from typing import Annotated, Any

import typer
from rich.text import Text

from app.queue.cli.submit import PriorityName
from app.queue.cli.views import dead_letter_table, present_task
from app.terminal import bulk, output
from app.terminal.bulk import Action, Confirmation, DryRun, Everything, MaxCount, Yes
from app.terminal.client import Url, connect
from app.terminal.ids import TaskIdArgument, TaskIds, whole_id, whole_ids
from app.terminal.options import After, AgentOption, Code, Goal, Labels, Limit, Reason, Whole, moment_option, show_list
from app.terminal.output import Format, Output

app = typer.Typer(help="See tasks that failed for good, requeue them, or forget them.", no_args_is_help=True)
FailedAfter = Annotated[str | None, moment_option("--failed-after", "failed since then")]
FailedBefore = Annotated[str | None, moment_option("--failed-before", "failed before")]
_REQUEUE = Action(path="/dead-letters/requeue", verb="requeue", participle="requeued", thing="dead letter")
_PURGE = Action(path="/dead-letters/purge", verb="forget for good", participle="purged", thing="dead letter")


@app.command(
    epilog=output.examples(
        "convener dead-letters ls --goal kepler",
        "convener dead-letters ls --code llm_timeout --failed-after 2h -o json | jq -r '.items[].id'",
    )
)
def ls(
    goal: Goal = None,
    agent: AgentOption = None,
    code: Code = None,
    label: Labels = None,
    failed_after: FailedAfter = None,
    failed_before: FailedBefore = None,
    limit: Limit = 50,
    everything: Whole = False,
    after: After = None,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """List dead letters, those that were submitted last first."""
    query = _filters(goal, agent, code, label, failed_after, failed_before)
    show_list("/dead-letters", dead_letter_table, url, fmt, limit=limit, everything=everything, after=after, **query)


@app.command(epilog=output.examples("convener dead-letters get 0190a5b2", "convener dead-letters get 0190a5b2 -o json"))
def get(
    task_id: TaskIdArgument,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Show everything about a dead letter: its payload, error, and every attempt."""
    with connect(url) as client:
        present_task(client, client.get(f"/dead-letters/{whole_id(client, 'tasks', task_id)}"), fmt)


@app.command(
    epilog=output.examples(
        "convener dead-letters requeue 0190a5b2 --reason 'prompt mended'",
        "convener dead-letters requeue --goal kepler --code llm_timeout --priority high",
        "convener dead-letters requeue --failed-after 2h --yes -o json",
    )
)
def requeue(
    task_ids: TaskIds = None,
    goal: Goal = None,
    agent: AgentOption = None,
    code: Code = None,
    label: Labels = None,
    failed_after: FailedAfter = None,
    failed_before: FailedBefore = None,
    everything: Everything = False,
    priority: Annotated[PriorityName | None, typer.Option(help="of them from now on; as it was by default")] = None,
    reason: Reason = "",
    limit: MaxCount = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Give failed tasks another chance, by their ids or all that a filter selects.

    They keep their checkpoints, and count their failures anew. Tasks that waited for them stay cancelled. A filter is
    counted first, and asks before it does anything.
    """
    filters = _filters(goal, agent, code, label, failed_after, failed_before)
    order = {"reason": reason, "priority": priority.value if priority else None}
    if task_ids:
        bulk.refuse_filters(everything, dry_run, limit, *filters.values())
        with connect(url) as client:
            ids = whole_ids(client, "tasks", task_ids)
            tasks = [client.post(f"/dead-letters/{task_id}/requeue", order) for task_id in ids]
        text = Text("\n".join(f"{task['id']} is {task['state']}" for task in tasks))
        output.present({"items": tasks}, fmt, lambda: text)
        return
    selected = bulk.selection(everything, **filters)
    bulk.run(_REQUEUE, selected, order, Confirmation(yes=yes, dry_run=dry_run, limit=limit), url, fmt)


@app.command(
    epilog=output.examples(
        "convener dead-letters purge --failed-before 30d --dry-run",
        "convener dead-letters purge --goal kepler --code unsafe --yes",
    )
)
def purge(
    goal: Goal = None,
    agent: AgentOption = None,
    code: Code = None,
    label: Labels = None,
    failed_after: FailedAfter = None,
    failed_before: FailedBefore = None,
    everything: Everything = False,
    reason: Reason = "",
    limit: MaxCount = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Forget failed tasks and their attempts for good; an event is left of each. Counts first, and asks."""
    filters = _filters(goal, agent, code, label, failed_after, failed_before)
    selected = bulk.selection(everything, **filters)
    bulk.run(_PURGE, selected, {"reason": reason}, Confirmation(yes=yes, dry_run=dry_run, limit=limit), url, fmt)


def _filters(
    goal: str | None,
    agent: str | None,
    code: str | None,
    label: list[str] | None,
    failed_after: str | None,
    failed_before: str | None,
) -> dict[str, Any]:
    times = {"failed_after": failed_after, "failed_before": failed_before}
    return {"goal_id": goal, "agent_type": agent, "code": code, "label": label, **times}
