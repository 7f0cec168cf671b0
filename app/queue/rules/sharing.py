"""Shares of namespaces in a lane: each gets its own by weight, however many goals it divides that among.

Tags give the goals of a lane their shares. Where tasks of several namespaces wait in it, the tasks at its head get
tags anew: the n-th of each namespace the n-th place of its namespace, places being `1 / weight` apart.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

# Tags that are off by less are left alone: a task's turn, or a part of its place.
_TOLERANCE = 1.0
_RELATIVE_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingTask:
    """A task at the head of a lane; `flow` is the stored name of its goal."""

    id: UUID
    seq: int
    namespace: str
    flow: str | None
    tag: float


def share(head: Sequence[WaitingTask], weights: Mapping[str, float]) -> dict[UUID, float]:
    """New tags of those tasks, in the order of their tags, that are not in their places; nothing for one namespace."""
    by_namespace: dict[str, list[WaitingTask]] = defaultdict(list)
    for task in head:
        by_namespace[task.namespace].append(task)
    if len(by_namespace) < 2:
        return {}
    base = min(task.tag for task in head)
    tags: dict[UUID, float] = {}
    for namespace, tasks in by_namespace.items():
        tags |= _places(_in_order(tasks), base, 1 / weights[namespace])
    return tags


def _places(tasks: Sequence[WaitingTask], base: float, step: float) -> dict[UUID, float]:
    """Places of the tasks of one namespace; none while all of them are about where they should be."""
    places = {task.id: base + index * step for index, task in enumerate(tasks)}
    is_right = all(
        abs(places[task.id] - task.tag) <= max(_TOLERANCE, _RELATIVE_TOLERANCE * index) * step
        for index, task in enumerate(tasks)
    )
    return {} if is_right else places


def _in_order(tasks: Sequence[WaitingTask]) -> list[WaitingTask]:
    """The tasks by their tags, but those of each goal in the order of their submits."""
    flows: dict[str | None, list[WaitingTask]] = defaultdict(list)
    for task in sorted(tasks, key=lambda task: task.seq, reverse=True):
        flows[task.flow].append(task)
    return [flows[task.flow].pop() for task in tasks]
