"""Snapshots for decisions: the queue by its counters, and the pool by its live workers, hosts and estimates."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from statistics import fmean

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import duties
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.kernel.lanes import Lane, Priority
from app.kernel.states import WorkerState
from app.queue.service import counters as counter_service
from app.queue.store import counters
from app.queue.store.counters import EventTotal
from app.scaling.rules import estimates
from app.scaling.rules.blocks import Blocks, WorkerGroup
from app.scaling.rules.demand import WaitingGroup, group_by_age, in_dispatch_order
from app.scaling.rules.estimates import ClassHistory, CounterReading, Estimates, TaskTotals
from app.scaling.rules.target import ScalingPolicy, ScalingSnapshot
from app.scaling.service import needs
from app.scaling.service.needs import Needs
from app.workers.rules.classes import WorkerClass
from app.workers.rules.hosts import Host, HostPolicy, room, spread
from app.workers.service.roster import DRAINING, Pool
from app.workers.store.roster import Worker

# As the text that rows have: looked at for every worker at every decision.
_STARTING = WorkerState.STARTING.value
_READY = WorkerState.READY.value
_ALL = frozenset(AgentType)

_ENDS = (TaskEvent.COMPLETED, TaskEvent.FAILED)
# So old that it changes no decision, and short enough to be a number.
_VERY_OLD_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """The queue by its counters: `pending` tasks may run now, `leases` and `totals` count since ever.

    `needs` has those that are no need of the usual pool, none of them pending; `on_hold` tasks wait for their goal;
    `oldest` is an upper bound on the seconds that any task of a priority has been waiting; `pauses` are the reasons why
    agent types are paused.
    """

    pending: Mapping[Lane, int]
    needs: Needs
    on_hold: Mapping[AgentType, int]
    running: Mapping[AgentType, int]
    leases: Mapping[Lane, int]
    totals: Mapping[AgentType, TaskTotals]
    oldest: Mapping[Priority, float]
    pauses: Mapping[AgentType, str]

    @property
    def waits(self) -> Mapping[Lane, int]:
        """Tasks that wait for a worker and for nothing else, by lane."""
        return {lane: tasks for lane, tasks in self.pending.items() if lane.agent_type not in self.pauses}


async def queue(connection: AsyncConnection, moment: datetime, classes: Mapping[str, WorkerClass]) -> Queue:
    """The queue by its counters; beyond a bound the cost does not depend on the number of tasks."""
    overview = await counters.overview(connection, [TaskEvent.ASSIGNED, *_ENDS])
    pending: dict[Lane, int] = {}
    running: Counter[AgentType] = Counter()
    on_hold: Counter[AgentType] = Counter()
    for count in overview.counts:
        if count.phase == "pending":
            pending[count.lane] = count.tasks
        elif count.phase == "held":
            on_hold[count.lane.agent_type] += count.tasks
        elif count.phase in ("assigned", "executing"):
            running[count.lane.agent_type] += count.tasks
    leases, totals = _totals(overview.totals)
    needs_found = await needs.find(connection, pending, classes)
    return Queue(
        pending={lane: max(0, tasks - needs_found.elsewhere(lane)) for lane, tasks in pending.items()},
        needs=needs_found,
        on_hold=on_hold,
        running=running,
        leases=leases,
        totals=totals,
        oldest=await _oldest(connection, moment),
        pauses=overview.pause_reasons,
    )


@lru_cache(maxsize=256)
def agent_types(names: str) -> frozenset[AgentType]:
    """The agent types of a comma-separated text; cached, since many workers can run the same."""
    return frozenset(map(AgentType, names.split(",") if names else ()))


def agents_of_new_workers(pool: Pool) -> frozenset[AgentType]:
    """Agent types that workers which hosts have started can run; all while nobody knows.

    Of a host without any, those of its last one. Without hosts of ours, those of all workers, as others start more.
    """
    present = {w.capabilities for w in pool.staying if w.provisioner is not None or not pool.hosts} - {None}
    by_host = {pool.next_capabilities(host) for host in pool.hosts}
    # A host of which nothing is known may run anything, but while others have workers theirs are waited for.
    if not present and None in by_host:
        return _ALL
    capabilities = [names for names in present | by_host if names is not None]
    return frozenset[AgentType]().union(*map(agent_types, capabilities)) if capabilities else _ALL


def hosts_that_help(queue: Queue, pool: Pool) -> Sequence[Host]:
    """The hosts whose next worker can run a task that waits; all where no such host is, as where nothing waits."""
    waiting = {lane.agent_type for lane, tasks in queue.waits.items() if tasks}
    return [
        host for host in pool.hosts if not waiting.isdisjoint(_next_agents(pool.next_capabilities(host)))
    ] or pool.hosts


def spread_starts(queue: Queue, pool: Pool, count: int, policy: HostPolicy) -> Mapping[Host, int]:
    """Number of the new workers that each host takes, of those that help where these have room for them."""
    able_hosts = hosts_that_help(queue, pool)
    return spread(able_hosts if count <= room(able_hosts, policy) else pool.hosts, count, policy)


def _next_agents(names: str | None) -> frozenset[AgentType]:
    """Agent types that a worker can run, by their names; all while nobody knows."""
    return _ALL if names is None else agent_types(names)


def reading(
    queue: Queue, workers: Sequence[Worker], size: int, moment: datetime, agents: Collection[AgentType]
) -> CounterReading:
    """The counters as the estimates take them; nobody counts as idle while a task of these agent types waits."""
    # An idle worker beside waiting tasks is about to lease one, or shows that one more would idle as well. Tasks that
    # no worker of this pool can run keep nobody: they may wait for ever.
    waits = any(tasks and lane.agent_type in agents for lane, tasks in queue.waits.items())
    return CounterReading(
        at=moment,
        pending=queue.pending,
        leases=queue.leases,
        totals=queue.totals,
        starts=starts(workers),
        idle=0 if waits else sum(w.state == _READY and not w.busy for w in workers),
        workers=size,
    )


def starts(workers: Sequence[Worker]) -> list[float]:
    """Seconds that each worker took which has become ready since the last decision."""
    # Never negative, also when the clock of the database was set back.
    return [max(0.0, w.took_seconds) for w in workers if w.took_seconds is not None]


def waiting_groups(
    queue: Queue, current: Estimates, weights: Mapping[AgentType, float], agents: Collection[AgentType]
) -> list[WaitingGroup]:
    """The tasks of these agent types that wait for a worker, in the order in which they will be served."""
    groups: list[WaitingGroup] = []
    for priority in sorted(Priority, reverse=True):
        queues = {}
        for agent in sorted(agents):
            lane = Lane(agent_type=agent, priority=priority)
            if tasks := queue.waits.get(lane, 0):
                seconds = estimates.task_seconds(current, agent)
                oldest = queue.oldest.get(priority, _VERY_OLD_SECONDS)
                queues[agent] = group_by_age(current.arrivals, lane, tasks, seconds, oldest)
        groups += in_dispatch_order(queues, weights)
    return groups


def class_groups(
    queue: Queue, tasks: Mapping[Lane, int], current: Estimates, weights: Mapping[AgentType, float]
) -> list[WaitingGroup]:
    """The tasks that belong to a class, in the order in which they will be served.

    No arrivals are counted by class, so each is taken to be as old as any of its priority.
    """
    groups: list[WaitingGroup] = []
    for priority in sorted(Priority, reverse=True):
        queues = {}
        for lane, count in sorted(tasks.items()):
            if lane.priority is priority and lane.agent_type not in queue.pauses:
                work = count * estimates.task_seconds(current, lane.agent_type)
                oldest = queue.oldest.get(priority, 0.0)
                queues[lane.agent_type] = [WaitingGroup(tasks=count, work_seconds=work, oldest_age_seconds=oldest)]
        groups += in_dispatch_order(queues, weights)
    return groups


def running_mean_seconds(queue: Queue, current: Estimates) -> float | None:
    """Estimated mean run time of the tasks that workers hold; None when they hold none."""
    tasks = sum(queue.running.values())
    seconds = sum(count * estimates.task_seconds(current, agent) for agent, count in queue.running.items())
    return seconds / tasks if tasks else None


def pool_snapshot(
    pool: Pool,
    current: Estimates,
    groups: Sequence[WaitingGroup],
    policy: ScalingPolicy,
    due_starts: int,
    *,
    waiting_agents: Collection[AgentType] = (),
    of_class: ClassHistory | None = None,
) -> ScalingSnapshot:
    """The pool as the rule takes it, with workers that hosts are due to start as starting ones.

    `waiting_agents` are those of the groups, where not all workers may be able to run them; `of_class` is what is known
    of the class that it is. Limits and `running_mean_seconds` are added later.
    """
    ready = [w for w in pool.workers if w.state == _READY]
    unready = [w for w in pool.workers if w.state != _READY]
    busy = sum([w.busy for w in ready])
    start_seconds = estimates.start_seconds(current, of_class)
    starting = [max(0.0, start_seconds - max(0.0, w.age_seconds or 0.0)) for w in unready if w.state == _STARTING]
    return ScalingSnapshot(
        idle=len(ready) - busy,
        busy=busy,
        idle_unable=_unable(pool, ready, frozenset(waiting_agents)),
        # Without hosts of ours, others act on the target, so all may go.
        idle_elsewhere=sum(w.provisioner is None and not w.busy for w in ready) if pool.hosts else 0,
        blocks=_blocks(pool) if pool.has_blocks else None,
        starting=[*starting, *([start_seconds] * due_starts)],
        draining=sum(w.state == DRAINING for w in unready),
        waiting=groups,
        idle_history=current.idle_history,
        cpu=cpu(pool, ready),
        start_seconds=start_seconds,
        fixed_size=_fixed_size(pool) if policy.is_fixed else None,
    )


def _unable(pool: Pool, ready: Sequence[Worker], agents: frozenset[AgentType]) -> int:
    """Number of idle workers that can run none of these agent types; 0 where the next worker could run none either."""
    # Or each that came, and idled, would call for one more that idles.
    last = next((w.capabilities for w in reversed(pool.staying) if w.capabilities is not None), None)
    kinds = [_next_agents(names) for names in map(pool.next_capabilities, pool.hosts)] or [_next_agents(last)]
    if all(agents.isdisjoint(kind) for kind in kinds):
        return 0
    counts = Counter(w.capabilities for w in ready if not w.busy)
    return sum(n for names, n in counts.items() if names is not None and agent_types(names).isdisjoint(agents))


def _blocks(pool: Pool) -> Blocks:
    return Blocks(removable=worker_groups(pool.removable_groups), smallest=min(map(len, pool.groups)))


def worker_groups(workers: Sequence[Sequence[Worker]]) -> list[WorkerGroup]:
    """These groups of workers as the rule takes them."""
    return [WorkerGroup(len(group), sum(w.state == _READY and not w.busy for w in group)) for group in workers]


def cpu(pool: Pool, ready: Sequence[Worker]) -> float | None:
    """CPU use as a share of 1: the mean of the hosts or that of the workers, whichever is more; None: not measured."""
    # Hosts see other programs too; workers elsewhere have no host that reports.
    host_shares = [host.cpu_share for host in pool.hosts if host.cpu_share is not None]
    shares = [min(1.0, w.cpu_percent / 100 / w.cpu_cores) for w in ready if w.cpu_percent is not None and w.cpu_cores]
    means = [fmean(values) for values in (host_shares, shares) if values]
    return max(means, default=None)


def _fixed_size(pool: Pool) -> int | None:
    """Size of a pool that does not scale: the settings of hosts, manual starts, and workers that others started."""
    if not pool.hosts:
        return None
    hosts = {(host.provisioner, host.host) for host in pool.hosts}
    elsewhere = sum((w.provisioner, w.host) not in hosts for w in pool.staying)
    return elsewhere + sum(host.usual_size + host.extra for host in pool.hosts)


def _totals(totals: Iterable[EventTotal]) -> tuple[dict[Lane, int], dict[AgentType, TaskTotals]]:
    # Leases by lane, as arrivals are; ends by agent type, as service times are.
    leases: dict[Lane, int] = {}
    by_agent: dict[AgentType, TaskTotals] = defaultdict(TaskTotals)
    for total in totals:
        if total.kind == TaskEvent.ASSIGNED:
            leases[total.lane] = total.tasks
        else:
            agent = total.lane.agent_type
            so_far = by_agent[agent]
            by_agent[agent] = TaskTotals(tasks=so_far.tasks + total.tasks, seconds=so_far.seconds + total.seconds)
    return leases, by_agent


async def _oldest(connection: AsyncConnection, moment: datetime) -> dict[Priority, float]:
    """Upper bounds on the age of waiting tasks by priority, from the last search for the oldest; empty before it.

    A task waits since after that search, unless it was found by it. It brings its age along from a lower priority, so
    the bound of a priority holds for those above it too.
    """
    turn = (await duties.last_turns(connection, [counter_service.FIND_OLDEST])).get(counter_service.FIND_OLDEST)
    if turn is None:
        return {}
    looked_at = datetime.fromisoformat(turn.result["looked_at"])
    oldest, bounds, since = counter_service.oldest_by_priority(turn), {}, looked_at
    for priority in sorted(Priority):
        since = min(since, oldest.get(priority, looked_at))
        bounds[priority] = max(0.0, (moment - since).total_seconds())
    return bounds
