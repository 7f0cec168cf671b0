"""Namespaces share a lane by their weights, however many goals each has."""

from collections import Counter, defaultdict
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from app.queue.rules.sharing import WaitingTask, share


def _tasks(namespace: str, goals: int, each: int, *, step: float = 1.0, first_seq: int = 0) -> list[WaitingTask]:
    """Tasks with the tags that their submits gave them: those of each goal a step apart."""
    return [
        WaitingTask(
            id=uuid4(),
            seq=first_seq + goal * each + number,
            namespace=namespace,
            flow=f"{namespace}/{goal}",
            tag=(number + 1) * step,
        )
        for goal in range(goals)
        for number in range(each)
    ]


def _in_order(tasks: list[WaitingTask], tags: dict[UUID, float]) -> list[WaitingTask]:
    return sorted(tasks, key=lambda task: (tags.get(task.id, task.tag), task.seq))


def test_one_namespace_stays_as_it_is() -> None:
    assert share(_tasks("a", 50, 20), {"a": 1}) == {}


@pytest.mark.parametrize(("weights", "expected"), [({"a": 1, "b": 1}, 0.5), ({"a": 3, "b": 1}, 0.75)])
def test_fifty_goals_get_no_more_than_one(weights: dict[str, float], expected: float) -> None:
    tasks = _in_order(_tasks("a", 50, 20) + _tasks("b", 1, 1000, first_seq=5000), {})
    order = _in_order(tasks, share(tasks, weights))
    served = Counter(task.namespace for task in order[:1000])
    assert served["a"] / 1000 == pytest.approx(expected, abs=0.01)


def test_goals_still_share_what_their_namespace_gets() -> None:
    tasks = _in_order(_tasks("a", 10, 100) + _tasks("b", 1, 1000, first_seq=5000), {})
    order = _in_order(tasks, share(tasks, {"a": 1, "b": 1}))
    served = Counter(task.flow for task in order[:400] if task.namespace == "a")
    assert set(served.values()) == {20}


def test_tasks_of_a_goal_keep_their_order() -> None:
    tasks = _in_order(_tasks("a", 10, 50) + _tasks("b", 3, 50, first_seq=5000), {})
    order = defaultdict(list)
    for task in _in_order(tasks, share(tasks, {"a": 1, "b": 1})):
        order[task.flow].append(task.seq)
    assert all(seqs == sorted(seqs) for seqs in order.values())


def test_who_is_far_ahead_from_before_is_brought_back() -> None:
    tasks = _in_order(_tasks("a", 1, 100) + _tasks("b", 1, 100, step=40, first_seq=5000), {})
    served = Counter(task.namespace for task in _in_order(tasks, share(tasks, {"a": 1, "b": 1}))[:100])
    assert served["b"] == pytest.approx(50, abs=1)


def test_tags_that_are_right_stay() -> None:
    tasks = _in_order(_tasks("a", 5, 50) + _tasks("b", 1, 250, first_seq=5000), {})
    tags = share(tasks, {"a": 1, "b": 1})
    settled = [replace(task, tag=tags.get(task.id, task.tag)) for task in tasks]
    assert share(_in_order(settled, {}), {"a": 1, "b": 1}) == {}
