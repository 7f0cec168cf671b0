"""What a decision on the pool sees: counters, live workers, hosts, and what was learned before."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.kernel.states import WorkerState
from app.queue.rules.events import TaskEvent
from app.queue.service import counters as counter_service
from app.queue.store import counters
from app.queue.store.counters import Total
from app.scaling.rules import estimates as learning
from app.scaling.rules.demand import Waiting, by_age, in_dispatch_order
from app.scaling.rules.estimates import Ended, Experience, Look, ServicePolicy
from app.scaling.rules.target import USUAL_START_SECONDS, ScalingPolicy, ScalingSnapshot
from app.workers.service.roster import DRAINING, Pool
from app.workers.store.roster import Worker

SERVICE = ServicePolicy()
# As the text that rows have: looked at for every worker at every decision.
_STARTING = WorkerState.STARTING.value
_READY = WorkerState.READY.value


_ENDS = (TaskEvent.COMPLETED, TaskEvent.FAILED)
# So old that it changes no decision, and short enough to be a number.
_VERY_OLD_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The counters: tasks that may run by lane, tasks with workers by type, and what has become of tasks since ever.

    `held` are tasks whose goal is on hold; `oldest` is an upper bound on the seconds that any task of a priority has
    been waiting.
    """

    pending: Mapping[Lane, int]
    held: Mapping[AgentType, int]
    running: Mapping[AgentType, int]
    leased: Mapping[Lane, int]
    ended: Mapping[AgentType, Ended]
    oldest: Mapping[Priority, float]
    paused: Mapping[AgentType, str]

    @property
    def waits(self) -> Mapping[Lane, int]:
        """Tasks that wait for a worker and for nothing else."""
        return {lane: tasks for lane, tasks in self.pending.items() if lane.agent_type not in self.paused}


async def queue(connection: AsyncConnection, moment: datetime) -> Queue:
    """Look at the counters. Costs the same however many tasks there are."""
    seen = await counters.overview(connection, [TaskEvent.ASSIGNED, *_ENDS])
    pending: dict[Lane, int] = {}
    running: Counter[AgentType] = Counter()
    held: Counter[AgentType] = Counter()
    for count in seen.counts:
        if count.phase == "pending":
            pending[count.lane] = count.tasks
        elif count.phase == "held":
            held[count.lane.agent_type] += count.tasks
        elif count.phase in ("assigned", "executing"):
            running[count.lane.agent_type] += count.tasks
    leased, ended = _totals(seen.totals)
    return Queue(
        pending=pending,
        held=held,
        running=running,
        leased=leased,
        ended=ended,
        oldest=await _oldest(connection, moment),
        paused=seen.paused,
    )


def look(seen: Queue, workers: Sequence[Worker], size: int, moment: datetime) -> Look:
    """What there is to learn from this look."""
    waits = any(seen.waits.values())
    return Look(
        at=moment,
        pending=seen.pending,
        leased=seen.leased,
        ended=seen.ended,
        starts=[w.took_seconds for w in workers if w.took_seconds is not None],
        idle=0 if waits else sum(w.state == _READY and not w.busy for w in workers),
        workers=size,
    )


def waiting(
    seen: Queue, known: Experience, weights: Mapping[AgentType, float], agents: Collection[AgentType]
) -> list[Waiting]:
    """What waits for a worker that can run these types, in the order in which it will be served."""
    groups: list[Waiting] = []
    for priority in sorted(Priority, reverse=True):
        queues = {}
        for agent in sorted(agents):
            lane = Lane(agent_type=agent, priority=priority)
            if tasks := seen.waits.get(lane, 0):
                one = learning.estimate(known, agent, SERVICE)
                queues[agent] = by_age(known.arrivals, lane, tasks, one, seen.oldest.get(priority, _VERY_OLD_SECONDS))
        groups += in_dispatch_order(queues, weights)
    return groups


def running_mean_seconds(seen: Queue, known: Experience) -> float | None:
    """What a task that a worker has is estimated to take in all, on average; None when nobody has any."""
    tasks = sum(seen.running.values())
    seconds = sum(count * learning.estimate(known, agent, SERVICE) for agent, count in seen.running.items())
    return seconds / tasks if tasks else None


def snapshot(
    seen: Pool, known: Experience, groups: Sequence[Waiting], policy: ScalingPolicy, owed: int
) -> ScalingSnapshot:
    """The pool as the rule takes it; workers that hosts owe are as good as starting. Caps and the mean come later."""
    ready = [w for w in seen.workers if w.state == _READY]
    others = [w for w in seen.workers if w.state != _READY]
    busy = sum([w.busy for w in ready])
    takes = learning.start_seconds(known, USUAL_START_SECONDS)
    starting = [max(0.0, takes - (w.age_seconds or 0.0)) for w in others if w.state == _STARTING]
    return ScalingSnapshot(
        idle=len(ready) - busy,
        busy=busy,
        starting=[*starting, *([takes] * owed)],
        draining=sum(w.state == DRAINING for w in others),
        waiting=groups,
        spare=known.spare,
        cpu=cpu(seen, ready),
        start_seconds=takes,
        usual=_usual(seen) if policy.fixed else None,
    )


def cpu(seen: Pool, ready: Sequence[Worker]) -> float | None:
    """How busy processors are, as a share of 1: the hosts' or the workers' own, whichever is more; None: not known."""
    hosts_share = [host.cpu_share for host in seen.hosts if host.cpu_share is not None]
    shares = [min(1.0, w.cpu_percent / 100 / w.cpu_cores) for w in ready if w.cpu_percent is not None and w.cpu_cores]
    means = [fmean(known) for known in (hosts_share, shares) if known]
    return max(means, default=None)


def _usual(seen: Pool) -> int | None:
    """The size of a pool that does not scale: what hosts are set to, and whoever was started beside, or elsewhere."""
    if not seen.hosts:
        return None
    ours = {(host.provisioner, host.host) for host in seen.hosts}
    elsewhere = sum((w.provisioner, w.host) not in ours for w in seen.staying)
    return elsewhere + sum(host.usual_size + host.extra for host in seen.hosts)


def _totals(totals: Iterable[Total]) -> tuple[dict[Lane, int], dict[AgentType, Ended]]:
    leased: dict[Lane, int] = {}
    ended: dict[AgentType, Ended] = defaultdict(Ended)
    for total in totals:
        if total.kind == TaskEvent.ASSIGNED:
            leased[total.lane] = total.tasks
        else:
            agent = total.lane.agent_type
            so_far = ended[agent]
            ended[agent] = Ended(tasks=so_far.tasks + total.tasks, seconds=so_far.seconds + total.seconds)
    return leased, ended


async def _oldest(connection: AsyncConnection, moment: datetime) -> dict[Priority, float]:
    """From the last look for the oldest: what waits came after it, unless it is what was found then.

    A task brings its age along from a lower priority, so the bound of a priority holds for those above it too.
    """
    turn = (await duties.turns(connection, [counter_service.FIND_OLDEST])).get(counter_service.FIND_OLDEST)
    if turn is None:
        return {}
    looked_at = datetime.fromisoformat(turn.result["looked_at"])
    found, bounds, since = counter_service.oldest_by_priority(turn), {}, looked_at
    for priority in sorted(Priority):
        since = min(since, found.get(priority, looked_at))
        bounds[priority] = max(0.0, (moment - since).total_seconds())
    return bounds
