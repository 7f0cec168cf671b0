"""What is wrong, and what is merely not known: one small rule for each thing that can go wrong.

Only what is wrong makes a report worse. What nobody has measured is noted, so that no zero is taken for a figure.
"""

from collections.abc import Iterator

from app.health.rules import utilisation
from app.health.rules.finding import Level, Reason, critical, degraded, not_measured, note
from app.health.rules.snapshot import ReportPolicy, Snapshot
from app.health.rules.utilisation import Measure
from app.kernel.agents import AgentType
from app.queue.rules.admission import CapacityPolicy, capacity_level
from app.queue.rules.degradation import MEANINGS
from app.queue.rules.status import QueueSnapshot

_NAMES = {Measure.CPU: "the processors", Measure.MEMORY: "the memory"}


def findings(snapshot: Snapshot, policy: ReportPolicy, capacity: CapacityPolicy) -> list[Reason]:
    """Everything that somebody should know, the worst first."""
    found = [
        *_loops(snapshot, policy),
        *_pool(snapshot, policy),
        *_queue(snapshot, policy, capacity),
        *_resources(snapshot, policy),
        *_database(snapshot, policy),
        *_trouble(snapshot),
        *_unknown(snapshot, policy),
    ]
    order = [Level.CRITICAL, Level.DEGRADED, Level.NOTE]
    return sorted(found, key=lambda reason: order.index(reason.level))


def oldest_seconds(queue: QueueSnapshot) -> float | None:
    """For how long the longest-waiting task has waited; None when nothing waits, or nobody has looked."""
    if not any(queue.count(agent=agent, phase="pending") for agent in AgentType):
        return None
    ages = [age.total_seconds() for priority in queue.oldest if (age := queue.oldest_wait(priority)) is not None]
    return max(ages, default=None)


def resource(snapshot: Snapshot, measure: Measure, policy: ReportPolicy) -> float | None:
    """Percent in use on the host that has the least left; of all workers where no host is measured; None unknown."""
    return utilisation.fullest(snapshot.spans, measure, snapshot.at, policy.utilisation)


def _loops(snapshot: Snapshot, policy: ReportPolicy) -> Iterator[Reason]:
    if not snapshot.turns:
        yield critical("loops_never_ran", "no background duty has ever run; `convener loops` runs them")
        return
    ago = min(turn.seconds_ago for turn in snapshot.turns)
    if ago > policy.loops_silent_seconds:
        silent = f"no background duty has run for {ago:,.0f} s: lost workers and expired leases go unnoticed"
        yield critical("loops_silent", silent)
        return
    for turn in snapshot.turns:
        every = turn.every_seconds
        if every is not None and turn.seconds_ago > policy.missed_turns * every + policy.loops_silent_seconds:
            late = f"the duty `{turn.duty}` is due every {every:g} s and has not run for {turn.seconds_ago:,.0f} s"
            yield degraded("duty_late", f"{late}; the log of the loops says why")


def _pool(snapshot: Snapshot, policy: ReportPolicy) -> Iterator[Reason]:
    pool, least = snapshot.pool, snapshot.min_workers
    staying = pool.total - pool.draining
    if least and pool.healthy <= 0:
        yield critical("no_healthy_worker", f"no worker is healthy, and there should be {least:,} at least")
    elif staying < least:
        yield degraded("pool_below_minimum", f"{staying:,} workers are there to stay, and {least:,} is the least")
    lost = 100.0 * pool.failed / (pool.total + pool.failed) if pool.failed else 0.0
    if (bad := policy.lost.level(lost)) is not None:
        message = f"{_workers(pool.failed)} lost, or never up, in the last five minutes; {pool.total:,} are live now"
        yield Reason(code="workers_lost", level=bad, message=message)
    if pool.silent:
        yield note("workers_silent", f"{_workers(pool.silent)} missing heartbeats, and about to be given up")


def _queue(snapshot: Snapshot, policy: ReportPolicy, capacity: CapacityPolicy) -> Iterator[Reason]:
    queue, age = snapshot.queue, oldest_seconds(snapshot.queue)
    if age is not None and (bad := policy.oldest_task.level(age)) is not None:
        yield Reason(code="oldest_task", level=bad, message=f"a task has been waiting for {age / 60:,.0f} min")
    fullness = capacity_level(capacity, queue.depth)
    if fullness != "normal":
        bad = Level.CRITICAL if fullness == "critical" else Level.DEGRADED
        message = f"{queue.count():,} tasks are queued and {capacity.max_queue_size:,} may be, by priority less"
        yield Reason(code="queue_nearly_full", level=bad, message=message)
    yield from _standstills(queue)


def _standstills(queue: QueueSnapshot) -> Iterator[Reason]:
    paused = {pause.agent_type for pause in queue.pauses}
    for agent in AgentType:
        waiting = queue.count(agent=agent, phase="pending")
        if waiting and agent in paused:
            yield note("agent_paused", f"{agent} is paused, and {waiting:,} of its tasks wait")
        elif waiting and agent not in queue.served_agents:
            yield degraded("agent_unserved", f"{waiting:,} tasks of {agent} wait, and no live worker can run them")


def _resources(snapshot: Snapshot, policy: ReportPolicy) -> Iterator[Reason]:
    subjects = sorted({span.subject for span in snapshot.spans if utilisation.is_host(span.subject)})
    bounds = {Measure.CPU: policy.processors, Measure.MEMORY: policy.memory}
    for subject in subjects:
        for measure, name in _NAMES.items():
            percent = utilisation.mean_of(snapshot.spans, subject, measure, least_samples=policy.least_samples)
            if percent is not None and (bad := bounds[measure].level(percent)) is not None:
                message = f"{name} of {subject} are" if measure is Measure.CPU else f"{name} of {subject} is"
                message += f" {percent:.0f} % in use, on the mean of the last minutes"
                yield Reason(code=f"{measure.value}_short", level=bad, message=message)


def _database(snapshot: Snapshot, policy: ReportPolicy) -> Iterator[Reason]:
    condition, age = snapshot.database, snapshot.database.snapshot_seconds
    if (bad := policy.oldest_snapshot.level(age)) is not None:
        message = f"a transaction has been open for {age / 60:,.0f} min, so dead rows cannot be cleaned up"
        yield Reason(code="old_snapshot", level=bad, message=message)
    for table, dead in condition.dead_rows.items():
        if dead >= policy.dead_rows:
            yield degraded("dead_rows", f"the table {table} has {dead:,} dead rows; is autovacuum held up?")
    if (bad := policy.connections.level(100.0 * condition.connections)) is not None:
        message = f"{condition.connections:.0%} of the connections that the database allows are in use"
        yield Reason(code="connections_short", level=bad, message=message)


def _trouble(snapshot: Snapshot) -> Iterator[Reason]:
    recovery, step = snapshot.trouble.recovery, snapshot.trouble.step
    if recovery.is_reduced:
        yield degraded("reduced_capacity", f"the pool works at reduced capacity: {recovery.reason}")
    if step:
        yield degraded("resources_short", f"step {step.value} of degradation: {MEANINGS[step]}")


def _unknown(snapshot: Snapshot, policy: ReportPolicy) -> Iterator[Reason]:
    """Figures that are 0 because nobody has measured them."""
    for measure, name in _NAMES.items():
        if resource(snapshot, measure, policy) is None:
            yield not_measured(f"{measure.value}_percentage", f"nobody has measured {name} in the last minute")
    if snapshot.pool.busy_share is None:
        yield not_measured("utilization_percentage", "there is no worker that may be leased to")
    if snapshot.language_model.usage is None:
        yield not_measured("llm_api_usage_percentage", "no use of language models has been measured")
    waiting = any(snapshot.queue.count(agent=agent, phase="pending") for agent in AgentType)
    if waiting and oldest_seconds(snapshot.queue) is None:
        yield not_measured("oldest_task_age_seconds", "nobody has looked for the oldest task yet")


def _workers(count: int) -> str:
    return "1 worker is" if count == 1 else f"{count:,} workers are"
