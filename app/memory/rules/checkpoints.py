"""When to take a checkpoint of the system, what may be left out of one, and what must hold for its content."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.kernel.states import TaskState
from app.queue.rules.tasks import LEASED

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPolicy:
    """Every so many seconds or completed tasks, whichever comes first, but with a pause in between.

    So many changes of other kinds call for one as well: then completions need not be looked for among them.
    """

    every_seconds: float = 300.0
    every_completed: int = 50
    every_changes: int = 2000
    apart_seconds: float = 30.0
    keep: int = 20
    most_tasks: int = 20_000
    most_entries: int = 5_000
    most_bytes: int = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """What has happened since the last checkpoint; the numbers are exact up to those of the policy."""

    seconds: float
    completed: int
    changes: int


def due(since: Since | None, policy: CheckpointPolicy) -> str | None:
    """Why a checkpoint is due now, None when it is not; `since` is None when there is none at all."""
    if since is None:
        return "the first"
    if since.seconds < policy.apart_seconds:
        return None
    if since.completed >= policy.every_completed:
        return f"{policy.every_completed} tasks completed"
    if since.changes >= policy.every_changes:
        return f"{policy.every_changes} changes"
    if since.seconds >= policy.every_seconds:
        return f"{policy.every_seconds:g} s passed"
    return None


def hopeless(included: Collection[str], edges: Iterable[tuple[str, str]]) -> set[str]:
    """The tasks of a cut checkpoint that would wait for ever: they wait, directly or not, for one that is not in it.

    An edge is (task, the task that it waits for).
    """
    waiting: dict[str, list[str]] = {}
    lost: set[str] = set()
    for task, awaited in edges:
        waiting.setdefault(awaited, []).append(task)
    front = [awaited for awaited in waiting if awaited not in included]
    while front:
        reached = {task for awaited in front for task in waiting.get(awaited, ())} - lost
        lost |= reached
        front = list(reached)
    return lost


def violations(content: Mapping[str, Any]) -> list[str]:
    """What is wrong with the content of a checkpoint, in sentences; nothing when all invariants hold."""
    if content.get("format") != FORMAT:
        return [f"its format is {content.get('format')!r}, not {FORMAT}"]
    try:
        return [*_wrong_counts(content), *_wrong_tasks(content["tasks"]), *_wrong_edges(content)]
    except (KeyError, TypeError, AttributeError) as error:
        return [f"it is not complete: {type(error).__name__} {error}"]


def _wrong_counts(content: Mapping[str, Any]) -> Iterator[str]:
    tasks = content["tasks"]
    found = {name: len(content[name]) for name in ("tasks", "dependencies", "context")}
    found["leased"] = sum(task["state"] in LEASED for task in tasks)
    for name, count in found.items():
        if content["counts"][name] != count:
            yield f"it says that it holds {content['counts'][name]} {name}, but it holds {count}"


def _wrong_tasks(tasks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (f"task {task} is in it {n} times" for task, n in Counter(t["id"] for t in tasks).items() if n > 1)
    holders = Counter(task["worker_id"] for task in tasks if task["worker_id"] is not None)
    yield from (f"worker {worker} holds {n} leases" for worker, n in holders.items() if n > 1)
    for task in tasks:
        if (task["worker_id"] is not None) != (task["state"] in LEASED):
            yield f"task {task['id']} is {task['state']}, which does not agree with its worker"
        if (task["blockers"] > 0) != (task["state"] == TaskState.BLOCKED):
            yield f"task {task['id']} is {task['state']} with {task['blockers']} unmet dependencies"
        if task["token"] < task["failures"] + task["rescues"]:
            yield f"the token of task {task['id']} is lower than the number of its attempts"


def _wrong_edges(content: Mapping[str, Any]) -> Iterator[str]:
    blockers = {task["id"]: task["blockers"] for task in content["tasks"]}
    unmet = Counter(edge["task_id"] for edge in content["dependencies"])
    for edge in content["dependencies"]:
        if edge["depends_on"] not in blockers or edge["task_id"] not in blockers:
            yield f"task {edge['task_id']} waits for {edge['depends_on']}, and one of them is not in it"
    for task, count in blockers.items():
        if unmet[task] != count:
            yield f"task {task} should have {count} unmet dependencies and has {unmet[task]}"
