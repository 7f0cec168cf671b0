"""Rules for checkpoints of the system: when one is due, which tasks a cut one leaves out, and its invariants."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.kernel.states import TaskState
from app.queue.rules.tasks import LEASED

# Version of the content; a reader refuses any other.
FORMAT = 1
# What is no list of rows.
_PLAIN = frozenset({"format", "taken_at", "revision", "event_cursor", "is_cut", "limits", "counts"})
# Numbers of transactions and of events are bigint, and those of transactions have to have others after them.
_CURSOR = re.compile(r"[0-9]{1,18}-[0-9]{1,19}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPolicy:
    """Seconds, completed tasks or changes after which a checkpoint is due, the least pause, and what one may hold.

    Changes of any kind are a reason too: then completions need not be searched for among an endless number of them.
    The least pause is `pause_factor` times as long as the last one took, too, but no longer than `every_seconds`.
    """

    every_seconds: float = 300.0
    every_completions: int = 50
    every_changes: int = 2000
    min_pause_seconds: float = 30.0
    pause_factor: float = 10.0
    keep: int = 20
    max_tasks: int = 20_000
    # Of goals, and of each other thing that is neither a task nor an entry.
    max_rows: int = 20_000
    max_entries: int = 5_000
    max_bytes: int = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Seconds, completed tasks and changes since the last checkpoint, counted up to the numbers of the policy.

    `last_took` are the seconds that the last one took; `is_behind`: events wait that the sums of goals have to count.
    """

    seconds: float
    completions: int
    changes: int
    last_took: float = 0.0
    is_behind: bool = False


def due_reason(activity: Activity | None, policy: CheckpointPolicy) -> str | None:
    """The reason for which a checkpoint is due now, None when it is not; `activity` is None before the first one."""
    if activity is None:
        return "the first"
    pause_seconds = min(policy.pause_factor * activity.last_took, policy.every_seconds)
    if activity.seconds < max(policy.min_pause_seconds, pause_seconds):
        return None
    # Each event that waits would be counted here as well, which takes seconds of a million: not before it has to be.
    if activity.is_behind and activity.seconds < policy.every_seconds:
        return None
    if activity.completions >= policy.every_completions:
        return f"{policy.every_completions} tasks completed"
    if activity.changes >= policy.every_changes:
        return f"{policy.every_changes} changes"
    if activity.seconds >= policy.every_seconds:
        return f"{policy.every_seconds:g} s passed"
    return None


def unreachable_tasks(included_ids: Collection[str], edges: Iterable[tuple[str, str]]) -> set[str]:
    """Tasks of a cut checkpoint that would wait for ever, because they depend, directly or not, on one outside of it.

    An edge is (task, the task that it waits for).
    """
    dependents: dict[str, list[str]] = {}
    unreachable: set[str] = set()
    for task, dependency in edges:
        dependents.setdefault(dependency, []).append(task)
    # Breadth first from the absent dependencies; those already found are not visited twice, so cycles end as well.
    front = [dependency for dependency in dependents if dependency not in included_ids]
    while front:
        next_tasks = {task for dependency in front for task in dependents.get(dependency, ())} - unreachable
        unreachable |= next_tasks
        front = list(next_tasks)
    return unreachable


def find_violations(content: Mapping[str, Any]) -> list[str]:
    """A sentence for each violated invariant of the content of a checkpoint; none when all hold."""
    if content.get("format") != FORMAT:
        return [f"its format is {content.get('format')!r}, not {FORMAT}"]
    try:
        return [
            *_shape_violations(content),
            *_cursor_violations(content["event_cursor"]),
            *_count_violations(content),
            *_task_violations(content["tasks"]),
            *_dependency_violations(content),
        ]
    # The content may come from any file: a part that is absent or of another shape is a violation, and no crash.
    except (KeyError, TypeError, AttributeError) as error:
        return [f"it is not complete: {type(error).__name__} {error}"]


def _shape_violations(content: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(content["taken_at"], str) or not isinstance(content["is_cut"], bool):
        yield "it does not say when it was taken and whether it is cut"
    for name in content.keys() - _PLAIN:
        if not isinstance(content[name], list) or not all(isinstance(row, dict) for row in content[name]):
            yield f"its {name:.60} are no list of rows"
        elif name == "config_versions" and not all(isinstance(row["version"], int) for row in content[name]):
            yield "a version of its configuration has no number"
        elif name == "goals" and any(map(_lacks_facts, content[name])):
            yield "a goal of it does not say what it is for, who made it, and when it began"


def _lacks_facts(goal: Mapping[str, Any]) -> bool:
    # One that was only given a weight has no state, nor any of them.
    return goal.get("state") is not None and None in (
        goal.get(name, "") for name in ("objective", "created_by", "started_at")
    )


def _cursor_violations(cursor: str) -> Iterator[str]:
    if _CURSOR.fullmatch(cursor) is None:
        yield f"its events end at {cursor!r:.60}, which is no place among events"


def _count_violations(content: Mapping[str, Any]) -> Iterator[str]:
    tasks = content["tasks"]
    counts = {name: len(content[name]) for name in ("tasks", "dependencies", "context")}
    counts["leased"] = sum(task["state"] in LEASED for task in tasks)
    for name, count in counts.items():
        if content["counts"][name] != count:
            yield f"it says that it holds {content['counts'][name]} {name}, but it holds {count}"


def _task_violations(tasks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (f"task {task} is in it {n} times" for task, n in Counter(t["id"] for t in tasks).items() if n > 1)
    holders = Counter(task["worker_id"] for task in tasks if task["worker_id"] is not None)
    yield from (f"worker {worker} holds {n} leases" for worker, n in holders.items() if n > 1)
    for task in tasks:
        if (task["worker_id"] is not None) != (task["state"] in LEASED):
            yield f"task {task['id']} is {task['state']}, which does not agree with its worker"
        if (task["blockers"] > 0) != (task["state"] == TaskState.BLOCKED):
            yield f"task {task['id']} is {task['state']} with {task['blockers']} unmet dependencies"
        # Every lease takes a new token, and every failure or rescue ends one.
        if task["token"] < task["failures"] + task["rescues"]:
            yield f"the token of task {task['id']} is lower than the number of its attempts"


def _dependency_violations(content: Mapping[str, Any]) -> Iterator[str]:
    blockers = {task["id"]: task["blockers"] for task in content["tasks"]}
    unmet = Counter(edge["task_id"] for edge in content["dependencies"])
    for edge in content["dependencies"]:
        if edge["depends_on"] not in blockers or edge["task_id"] not in blockers:
            yield f"task {edge['task_id']} waits for {edge['depends_on']}, and one of them is not in it"
    for task, count in blockers.items():
        if unmet[task] != count:
            yield f"task {task} should have {count} unmet dependencies and has {unmet[task]}"
