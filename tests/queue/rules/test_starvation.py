"""The bound on the wait: simulated floods of every priority, mixture and goal, by the rules of aging and of tags."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count, cycle

import pytest

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.queue.rules.aging import STEPS
from app.queue.rules.fair_queueing import FairQueue, assign_tags

_TYPE = AgentType.RANKING
_BACKLOG = 120
_CRITICAL_AFTER = 1800


@dataclass(slots=True)
class _Task:
    seq: int
    goal: str
    lane: Lane
    since: int
    tag: float = 0.0
    has_risen: bool = False


@dataclass(slots=True)
class _Queue:
    """The queue as store and broker keep it: lanes in the order of tags, and a lease every second."""

    tasks: list[_Task] = field(default_factory=list)
    times: Counter[Lane] = field(default_factory=Counter)
    shares: FairQueue = field(default_factory=FairQueue)
    seq: Iterable[int] = field(default_factory=count)

    def submit(self, goal: str, lane: Lane, now: int) -> _Task:
        task = _Task(next(iter(self.seq)), goal, lane, now)
        self._place(task)
        self.tasks.append(task)
        return task

    def age(self, now: int) -> None:
        for step in STEPS:
            for task in self.tasks:
                if task.lane.priority is step.priority and timedelta(seconds=now - task.since) >= step.wait:
                    task.lane = Lane(agent_type=task.lane.agent_type, priority=Priority(step.priority + 1))
                    task.has_risen = True
                    self._place(task)

    def lease(self) -> _Task:
        urgent = max(task.lane.priority for task in self.tasks)
        agents = {task.lane.agent_type for task in self.tasks}
        agent = self.shares.next_agent(agents, {t.lane.agent_type for t in self.tasks if t.lane.priority is urgent})
        assert agent is not None
        self.shares.charge(agent)
        task = min(
            (task for task in self.tasks if task.lane.agent_type is agent),
            key=lambda task: (-task.lane.priority, task.tag, task.seq),
        )
        self.times[task.lane] = max(self.times[task.lane], task.tag)  # type: ignore[assignment]  # tags are floats
        self.tasks.remove(task)
        return task

    def _place(self, task: _Task) -> None:
        own = [
            other.tag
            for other in self.tasks
            if other is not task and (other.lane, other.goal, other.has_risen) == (task.lane, task.goal, task.has_risen)
        ]
        run = assign_tags(virtual_time=self.times[task.lane], last_tag=max(own, default=0.0), count=1)
        task.tag = run.first


_MIXTURES: list[list[Priority]] = [
    *([priority] for priority in Priority),
    [Priority.CRITICAL, Priority.LOW],
    [Priority.CRITICAL, Priority.HIGH],
    [Priority.HIGH, Priority.MEDIUM],
    sorted(Priority),
]
_GOALS = {"its own": ["patient"], "another": ["flood"], "many": [f"goal-{n}" for n in range(1000)]}


@pytest.mark.parametrize("types", [[_TYPE], list(AgentType)], ids=["its type", "all types"])
@pytest.mark.parametrize("goals", _GOALS)
@pytest.mark.parametrize("mixture", _MIXTURES, ids=lambda mixture: "+".join(p.name.lower() for p in mixture))
def test_a_task_is_leased_within_thirty_minutes_and_its_turn(
    mixture: list[Priority], goals: str, types: list[AgentType]
) -> None:
    """Its turn comes once each goal with work of its type has had one lease, or two where its own goal floods."""
    queue = _Queue()
    floods = zip(cycle(_GOALS[goals]), cycle(mixture), cycle(types * 7 + types[:1]), strict=False)
    for _ in range(_BACKLOG):
        goal, priority, agent = next(floods)
        queue.submit(goal, Lane(agent_type=agent, priority=priority), 0)
    patient = queue.submit("patient", Lane(agent_type=_TYPE, priority=Priority.LOW), 0)
    now = 0
    while patient in queue.tasks:
        now += 1
        goal, priority, agent = next(floods)
        queue.submit(goal, Lane(agent_type=agent, priority=priority), now)
        queue.age(now)
        queue.lease()
        assert now <= _CRITICAL_AFTER + 2 * _BACKLOG
    if goals != "many":
        assert now <= _CRITICAL_AFTER + 4 * len(types)
