"""Workloads of the simulation: jobs with their times of arrival and their durations."""

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from app.kernel.agents import AgentType


class Job(NamedTuple):
    """One task: seconds since the start of the trace, seconds of work, and for whom."""

    arrival: float
    seconds: float
    agent: AgentType


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Tasks by arrival, held as columns: a day may hold millions. `assumption` says what was not measured."""

    name: str
    arrivals: "array[float]"
    seconds: "array[float]"
    agents: "array[int]"
    assumption: str = ""

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def work_seconds(self) -> float:
        """The work of all tasks: what a pool would cost that is never idle."""
        return sum(self.seconds)

    @property
    def span_seconds(self) -> float:
        """When the last task arrives."""
        return self.arrivals[-1] if self.arrivals else 0.0

    @property
    def agent_types(self) -> list[AgentType]:
        """The types that occur."""
        return [AGENTS[place] for place in sorted(set(self.agents))]


AGENTS = tuple(AgentType)
_MONTH = 31 * 86_400.0
_PLACE = {agent: place for place, agent in enumerate(AGENTS)}


def workload(name: str, jobs: Iterable[Job], *, assumption: str = "") -> Workload:
    """The jobs in order of arrival, the first at 0. Raises ValueError for times or durations that make no sense."""
    by_arrival = sorted(jobs)
    for job in by_arrival:
        if not (0 < job.seconds < _MONTH and math.isfinite(job.arrival)):
            raise ValueError(f"{name}: a task that takes {job.seconds} s and arrives at {job.arrival} makes no sense")
    first = by_arrival[0].arrival if by_arrival else 0.0
    if by_arrival and by_arrival[-1].arrival - first > _MONTH:
        raise ValueError(f"{name}: the tasks arrive over more than 31 days; are the times in one unit?")
    return Workload(
        name=name,
        arrivals=array("d", (job.arrival - first for job in by_arrival)),
        seconds=array("d", (job.seconds for job in by_arrival)),
        agents=array("b", (_PLACE[job.agent] for job in by_arrival)),
        assumption=assumption,
    )


def repeat_workload(once: Workload, times: int) -> Workload:
    """The workload again and again, to fill a day with an hour's trace."""
    # Between two rounds lies the mean gap between two arrivals.
    span = once.span_seconds + (once.span_seconds / max(1, len(once) - 1))
    arrivals = (arrival + span * time for time in range(times) for arrival in once.arrivals)
    seconds, agents = once.seconds * times, once.agents * times
    return replace(once, name=f"{once.name} x {times}", arrivals=array("d", arrivals), seconds=seconds, agents=agents)


def speed_up(once: Workload, factor: float) -> Workload:
    """The workload with its arrivals closer together: `factor` times the load."""
    arrivals = array("d", (arrival / factor for arrival in once.arrivals))
    return replace(once, name=f"{once.name}, {factor:g} times as fast", arrivals=arrivals)
