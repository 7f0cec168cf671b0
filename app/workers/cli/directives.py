"""Commands that start workers, and drain, stop or restart them: by name, or all of a filter, counted first."""

from collections.abc import Callable
from typing import Annotated
from uuid import UUID, uuid4

import typer
from rich.text import Text

from app.terminal import bulk, output
from app.terminal.bulk import Action, Confirmation, DryRun, Everything, MaxCount, Yes
from app.terminal.client import Client, Json, Url, connect
from app.terminal.failures import ExitCode, Failure
from app.terminal.ids import id_or_prefix, whole_id
from app.terminal.options import AgentOption, Labels, Reason
from app.terminal.output import Format, Output

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME...]", help="names of workers, ids or their first digits")
]
_SUMMARIES = {
    Action(path="/workers/drain", verb="drain", participle="drained", thing="worker"): (
        "Let workers finish their task and end. The pool starts others in their place."
    ),
    Action(path="/workers/stop", verb="stop", participle="stopped", thing="worker"): (
        "End workers after a grace period; an unfinished task goes back to the queue without burning an attempt."
    ),
    Action(path="/workers/restart", verb="restart", participle="restarted", thing="worker"): (
        "Stop workers, and start new processes in their places: neither a loss nor a crash."
    ),
}
_FILTERS = "--agent selects those that are assigned to it. A filter is counted first, and asks before it does anything."


def add_to(app: typer.Typer) -> None:
    """Make these commands of `convener workers`."""
    app.command(epilog=output.examples("convener workers start", "convener workers start 4 --reason 'long run'"))(start)
    app.command(epilog=output.examples("convener workers evict host-1 --reason 'reports forged results'"))(evict)
    for action, summary in _SUMMARIES.items():
        lines = (
            f"convener workers {action.verb} host-1 host-2 --reason 'new handlers'",
            f"convener workers {action.verb} --agent ranking --dry-run",
            f"convener workers {action.verb} --label site=lab1 --yes",
        )
        command = app.command(action.verb, help=f"{summary}\n\n{_FILTERS}", epilog=output.examples(*lines))
        command(_directive(action))


def start(
    count: Annotated[int, typer.Argument(help="how many workers more", min=1, max=1000)] = 1,
    reason: Reason = "",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Start workers on the hosts that have them started, within the maximum of the configuration: all, or none.

    They stay until they idle for long, or where the size of the pool is fixed until the loops of their host end.
    """
    with connect(url) as client:
        answer = client.post("/workers/start", {"count": count, "reason": reason, "request_id": str(uuid4())})
    workers = ", ".join(worker["name"] for worker in answer["workers"])
    output.present(answer, fmt, lambda: Text(output.plain(f"started {answer['started']:,}: {workers}")))


def evict(
    workers: Annotated[list[str], typer.Argument(metavar="NAME...", help="names of live workers, or ids of any")],
    reason: Reason = "",
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """End workers that are not trusted any more, at once and without asking them.

    Their keys are revoked, their tasks go back to the queue, and their processes are killed where the service has
    started them. The pool starts others in their place. What they registered with is good further on: see `convener
    key revoke --evict-workers`.
    """
    with connect(url) as client:
        ids = ids_of(client, workers)
        evicted = [client.post(f"/workers/{worker_id}/evict", {"reason": reason}) for worker_id in ids]
    lines = [f"evicted {worker['name']} ({worker['worker_id']})" for worker in evicted]
    output.present({"items": evicted}, fmt, lambda: Text("\n".join(map(output.plain, lines))))


def _directive(action: Action) -> Callable[..., None]:
    """A command that gives this directive to workers by name, or to all that a filter selects."""

    def command(
        workers: Names = None,
        agent: AgentOption = None,
        label: Labels = None,
        everything: Everything = False,
        reason: Reason = "",
        limit: MaxCount = None,
        dry_run: DryRun = False,
        yes: Yes = False,
        url: Url = None,
        fmt: Output = Format.TABLE,
    ) -> None:
        if workers:
            bulk.refuse_filters(everything, dry_run, limit, agent, label)
            _direct_each(action.verb, workers, reason, url, fmt)
            return
        selected = bulk.selection(everything, agent_type=agent, label=label)
        bulk.run(action, selected, {"reason": reason}, Confirmation(yes=yes, dry_run=dry_run, limit=limit), url, fmt)

    return command


def all_workers(client: Client, *, with_ended: bool) -> list[Json]:
    """The live workers, or also those that have ended."""
    return client.pages("/workers", None, all="true" if with_ended else None)[0]


def ids_of(client: Client, workers: list[str]) -> list[str]:
    """Ids of workers given by id, its first digits or a name, looked up among the live ones first. Raises Failure."""
    if all(_is_id(worker) for worker in workers):
        return workers
    # All names are resolved before the first call, so that a wrong one stops the command before it did anything.
    ids_by_name = {worker["name"]: worker["worker_id"] for worker in all_workers(client, with_ended=False)}
    strangers = [worker for worker in workers if not _is_id(worker) and worker not in ids_by_name]
    ids_by_prefix = {worker: _by_prefix(client, worker) for worker in strangers}
    unknown = [worker for worker, worker_id in ids_by_prefix.items() if worker_id is None]
    if unknown:
        raise Failure(
            f"no living worker is named {', '.join(unknown)}",
            ExitCode.NOT_FOUND,
            hint="`convener workers ls` lists the workers",
        )
    return [ids_by_name.get(worker) or ids_by_prefix.get(worker) or worker for worker in workers]


def _by_prefix(client: Client, text: str) -> str | None:
    """The id that begins with these digits; None for what is no such beginning, or that of none. Raises Failure."""
    try:
        return whole_id(client, "workers", id_or_prefix(text))
    except typer.BadParameter:
        return None
    except Failure as failure:
        if failure.code is ExitCode.NOT_FOUND:
            return None
        raise


def _direct_each(verb: str, workers: list[str], reason: str, url: str | None, fmt: Format) -> None:
    with connect(url) as client:
        directed_workers = [
            client.post(f"/workers/{worker_id}/{verb}", {"reason": reason}) for worker_id in ids_of(client, workers)
        ]
    lines = [
        f"{worker['name']} ({worker['worker_id']}) is told to {worker['directive']}" for worker in directed_workers
    ]
    output.present({"items": directed_workers}, fmt, lambda: Text("\n".join(map(output.plain, lines))))


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
