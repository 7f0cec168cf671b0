"""The queue of the simulation: first come, first served inside an agent type, shares between types by the real rule."""

from collections import deque

from app.queue.rules.fair_queueing import EQUAL_WEIGHTS, FairQueue
from app.scaling.rules.demand import WaitingGroup, in_dispatch_order
from app.scaling.rules.estimates import ServiceTimes
from app.scaling.simulation.workloads import AGENTS

# Ages that differ by less than a second do not matter where a task may wait half a minute.
_GROUP_SECONDS = 1.0


class Backlog:
    """Waiting jobs by agent type, with counts by second of arrival, so that a decision need not look at every task."""

    def __init__(self, shares: FairQueue | None) -> None:
        """Without `shares` there must be one agent type only."""
        self.tasks = 0
        self._shares = shares
        self._latest_kind = 0
        self._jobs: list[deque[tuple[float, int]]] = [deque() for _ in AGENTS]
        # (since, tasks) of each second
        self._seconds: list[deque[tuple[float, int]]] = [deque() for _ in AGENTS]

    def push(self, kind: int, since: float, job: int) -> None:
        """The job waits from now on."""
        self.tasks += 1
        self._latest_kind = kind
        self._jobs[kind].append((since, job))
        seconds = self._seconds[kind]
        if seconds and since < seconds[-1][0] + _GROUP_SECONDS:
            first, tasks = seconds[-1]
            seconds[-1] = (first, tasks + 1)
        else:
            seconds.append((since, 1))

    def pop(self) -> tuple[float, int, int]:
        """Take the next job; return since when it waited, the job, and its type."""
        kind = self._next_kind()
        since, job = self._jobs[kind].popleft()
        self.tasks -= 1
        seconds = self._seconds[kind]
        first, tasks = seconds[0]
        if tasks > 1:
            seconds[0] = (first, tasks - 1)
        else:
            seconds.popleft()
        return since, job, kind

    def work_seconds(self, service: ServiceTimes) -> float:
        """Estimated seconds of work that wait."""
        return sum(len(jobs) * service.estimate(AGENTS[kind]) for kind, jobs in enumerate(self._jobs) if jobs)

    def groups(self, now: float, budget: float, service: ServiceTimes) -> list[WaitingGroup]:
        """The waiting jobs as groups, in the order of dispatch."""
        queues = {}
        for kind, agent in enumerate(AGENTS):
            if self._jobs[kind]:
                seconds = service.estimate(agent)
                queues[agent] = [
                    WaitingGroup(tasks=tasks, work_seconds=tasks * seconds, oldest_age_seconds=now - since)
                    for since, tasks in self._by_age(kind, now - budget)
                ]
        return in_dispatch_order(queues, EQUAL_WEIGHTS)

    def _by_age(self, kind: int, late_since: float) -> list[tuple[float, int]]:
        """Groups of one type, oldest first. All that is over its budget is one group: it is equally late."""
        fresh: list[tuple[float, int]] = []
        for since, tasks in reversed(self._seconds[kind]):
            if since <= late_since:
                late = len(self._jobs[kind]) - sum(count for _, count in fresh)
                fresh.append((self._seconds[kind][0][0], late))
                break
            fresh.append((since, tasks))
        return fresh[::-1]

    def _next_kind(self) -> int:
        if self._shares is None:
            return self._latest_kind
        agent = self._shares.next_agent([AGENTS[kind] for kind, jobs in enumerate(self._jobs) if jobs])
        kind = next(kind for kind, candidate in enumerate(AGENTS) if candidate is agent)
        self._shares.charge(AGENTS[kind])
        if len(self._jobs[kind]) == 1:
            self._shares.mark_idle(AGENTS[kind])
        return kind
