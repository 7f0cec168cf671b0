"""What an operator should know of: each rule looks at one snapshot and tells what is wrong.

A rule returns None when it cannot know. A value just below its threshold is a fading symptom: it keeps an alert that
stands, and opens none.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from app.health.rules.observations import GROWTH_SPAN, MINUTE, DatabaseCondition, Observations, Running, WorkerCounts
from app.health.rules.symptoms import AlertKey, AlertRule, Severity, Symptom, SymptomPolicy
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.queue.rules.degradation import MEANINGS, TOP_STEP, DegradationStep
from app.queue.rules.status import QueueSnapshot

Check = Callable[[Observations, SymptomPolicy], Iterable[Symptom] | None]


def examine(seen: Observations, policy: SymptomPolicy) -> tuple[list[Symptom], frozenset[AlertRule]]:
    """Every symptom, and the rules that could not be judged."""
    found = {rule: check(seen, policy) for rule, check in CHECKS.items()}
    unknown = frozenset(rule for rule, symptoms in found.items() if symptoms is None)
    return [symptom for symptoms in found.values() for symptom in symptoms or ()], unknown


def oldest_task(seen: Observations, policy: SymptomPolicy) -> Iterable[Symptom]:
    """A task that may run has been waiting for too long."""
    waits = {p: wait.total_seconds() for p in Priority if (wait := seen.queue.oldest_wait(p)) is not None}
    if not waits:
        return
    priority = max(waits, key=lambda p: waits[p])
    seconds = waits[priority]
    if seconds <= policy.oldest_seconds * policy.fading:
        return
    yield Symptom(
        matter=AlertKey(rule=AlertRule.OLDEST_TASK),
        severity=Severity.CRITICAL if seconds > policy.oldest_critical_seconds else Severity.WARNING,
        summary=f"a task of priority {priority.name.lower()} has been waiting for {_minutes(seconds)}",
        advice="`convener queues status` shows what is paused or served by nobody; add workers, or lower the load",
        facts={"seconds": seconds, "threshold_seconds": policy.oldest_seconds},
        is_fading=seconds <= policy.oldest_seconds,
    )


def stuck_executing(seen: Observations, policy: SymptomPolicy) -> Iterable[Symptom] | None:
    """A task is past its deadline and nobody has ended it, or takes far longer than its kind does."""
    if seen.running is None:
        return None
    return [s for agent, running in seen.running.items() if (s := _stuck(agent, running, seen.queue, policy))]


def _stuck(agent: AgentType, running: Running, queue: QueueSnapshot, policy: SymptomPolicy) -> Symptom | None:
    limit = max(policy.stuck_seconds, policy.stuck_factor * queue.service_times(agent).longest)
    if running.overdue:
        summary = f"{running.overdue:,} of {agent} past the deadline and not ended: the background loops should have"
    elif running.longest_seconds > limit * policy.fading:
        summary = f"a task of {agent} has been executing for {_minutes(running.longest_seconds)}, far longer than usual"
    else:
        return None
    return Symptom(
        matter=AlertKey(rule=AlertRule.STUCK_EXECUTING, subject=agent.value),
        severity=Severity.CRITICAL if running.overdue else Severity.WARNING,
        summary=summary,
        advice="`convener workers ls` shows who has it; look at the worker's log, cancel the task or stop the worker",
        facts={"longest_seconds": running.longest_seconds, "threshold_seconds": limit, "overdue": running.overdue},
        is_fading=not running.overdue and running.longest_seconds <= limit,
    )


def pool_below_minimum(seen: Observations, policy: SymptomPolicy) -> Iterable[Symptom] | None:
    """Fewer workers live than must."""
    if seen.pool is None or seen.pool.minimum is None:
        return None
    alive, minimum = seen.pool.alive, seen.pool.minimum
    if alive >= minimum:
        return ()
    return [
        Symptom(
            matter=AlertKey(rule=AlertRule.POOL_BELOW_MINIMUM),
            severity=Severity.CRITICAL if alive * 2 < minimum else Severity.WARNING,
            summary=f"{alive:,} of at least {minimum:,} workers live",
            advice="look at `convener workers ls --all` and the logs of the loops; do the loops of each host run?",
            facts={"workers": alive, "minimum": minimum},
        )
    ]


def resource_pressure(seen: Observations, policy: SymptomPolicy) -> Iterable[Symptom] | None:
    """Much of something is used up."""
    if seen.resources is None:
        return None
    known = {name: share for name, share in seen.resources.items() if share is not None}
    return [_pressed(name, share, policy) for name, share in known.items() if share > policy.pressure * policy.fading]


def _pressed(name: str, share: float, policy: SymptomPolicy) -> Symptom:
    return Symptom(
        matter=AlertKey(rule=AlertRule.RESOURCE_PRESSURE, subject=name),
        severity=Severity.CRITICAL if share > policy.pressure_critical else Severity.WARNING,
        summary=f"{share:.0%} of {name.replace('_', ' ')} is used",
        advice=_RELIEF.get(name, "add more of it, or submit less"),
        facts={"share": share, "threshold": policy.pressure},
        is_fading=share <= policy.pressure,
    )


_RELIEF = {
    "cpu": "add hosts, lower worker_pool.max_workers, or submit less",
    "memory": "lower worker_pool.max_workers or resource_limits.max_memory_per_worker_gb, or add hosts",
    "llm_permits": "raise resource_limits.max_concurrent_llm_calls if the provider allows it, or submit less",
    "queue": "add workers, cancel what is not needed, or raise CONVENER_MAX_QUEUE_SIZE; submits are refused when full",
}


def queue_growth(seen: Observations, policy: SymptomPolicy) -> Iterable[Symptom] | None:
    """Tasks come faster than they go."""
    if not seen.depths:
        return None
    now, then = seen.depths[-1], seen.depths[0]
    minutes = (now.at - then.at) / MINUTE
    if now.at - then.at < GROWTH_SPAN:
        return None
    growth = (now.tasks - then.tasks) / minutes
    if growth <= policy.growth_per_minute * policy.fading:
        return ()
    return [
        Symptom(
            matter=AlertKey(rule=AlertRule.QUEUE_GROWTH),
            severity=Severity.WARNING,
            summary=f"the queue grows by {growth:,.0f} tasks a minute; {now.tasks:,} wait",
            advice="add workers or raise worker_pool.max_workers, or have the Supervisor submit less",
            facts={"tasks_per_minute": growth, "threshold": policy.growth_per_minute, "depth": now.tasks},
            is_fading=growth <= policy.growth_per_minute,
        )
    ]


def worker_starvation(seen: Observations, policy: SymptomPolicy) -> Iterable[Symptom] | None:
    """Workers idle although work waits that they can run."""
    if seen.pool is None:
        return None
    tasks, idle = _within_reach(seen.queue, seen.pool), starving_workers(seen.queue, seen.pool, policy)
    if not idle:
        return ()
    return [
        Symptom(
            matter=AlertKey(rule=AlertRule.WORKER_STARVATION),
            severity=Severity.WARNING,
            summary=f"{_idle(idle)} although tasks wait that could be run there: {tasks:,}",
            advice="`convener workers ls` shows who is idle: a worker that does not ask for work hangs, so restart it",
            facts={"idle_workers": idle, "waiting_tasks": tasks},
        )
    ]


def starving_workers(queue: QueueSnapshot, pool: WorkerCounts, policy: SymptomPolicy) -> int:
    """How many workers idle although work waits that they can run; 0 while they are as few as there always are."""
    few = pool.idle < policy.starving_share * pool.alive
    return 0 if few or not _within_reach(queue, pool) else pool.idle


def _within_reach(queue: QueueSnapshot, pool: WorkerCounts) -> int:
    """Tasks that may run now, that nobody has paused, and that some idle worker can run."""
    paused = {pause.agent_type for pause in queue.pauses}
    return sum(queue.count(agent=agent, phase="pending") for agent in pool.idle_for - paused)


def breaker_open(seen: Observations, policy: SymptomPolicy) -> Iterable[Symptom] | None:
    """A language model fails so often that nobody calls it."""
    if seen.breakers is None:
        return None
    return [
        Symptom(
            matter=AlertKey(rule=AlertRule.BREAKER_OPEN, subject=model),
            severity=Severity.WARNING,
            summary=f"calls of the language model {model} keep failing, so its circuit breaker is open",
            advice="look at the provider or gateway; other models of the chain and cached answers stand in meanwhile",
        )
        for model, is_open in seen.breakers.items()
        if is_open
    ]


def replacement_failing(seen: Observations, policy: SymptomPolicy) -> Iterable[Symptom] | None:
    """Workers that are started anew die young or never come."""
    if seen.recovery is None:
        return None
    if not seen.recovery.is_reduced:
        return ()
    return [
        Symptom(
            matter=AlertKey(rule=AlertRule.REPLACEMENT_FAILING),
            severity=Severity.CRITICAL if seen.recovery.lost_share > 0.5 else Severity.WARNING,
            summary=seen.recovery.reason,
            advice="look at the logs of the workers: do the handlers load, is there memory, is the API reached?",
            facts={
                "slots": len(seen.recovery.failing),
                "overdue": seen.recovery.overdue,
                "lost_share": seen.recovery.lost_share,
            },
        )
    ]


def database_trouble(seen: Observations, policy: SymptomPolicy) -> Iterable[Symptom] | None:
    """Somebody's old snapshot, dead rows or too many connections slow the database down."""
    return None if seen.database is None else list(_troubles(seen.database, policy))


def _troubles(found: DatabaseCondition, policy: SymptomPolicy) -> Iterator[Symptom]:
    seconds, transactions = found.snapshot_seconds, found.snapshot_transactions
    age = max(seconds / policy.snapshot_seconds, transactions / policy.snapshot_transactions)
    if age > policy.fading:
        yield Symptom(
            matter=AlertKey(rule=AlertRule.DATABASE_TROUBLE, subject="old_snapshot"),
            severity=Severity.CRITICAL if seconds > policy.snapshot_critical_seconds else Severity.WARNING,
            summary=f"a snapshot is {_minutes(seconds)} and {transactions:,} transactions old, so dead rows pile up",
            advice="find it in pg_stat_activity (backend_xmin), pg_prepared_xacts or pg_replication_slots, and end it",
            facts={"seconds": seconds, "transactions": transactions},
            is_fading=age <= 1,
        )
    table = max(found.dead_rows, key=lambda name: found.dead_rows[name], default="")
    rows = found.dead_rows.get(table, 0)
    if rows > policy.dead_rows * policy.fading:
        yield Symptom(
            matter=AlertKey(rule=AlertRule.DATABASE_TROUBLE, subject="dead_rows"),
            severity=Severity.WARNING,
            summary=f"the table {table} holds {rows:,} dead rows that nobody has cleaned up",
            advice="does autovacuum run (pg_stat_user_tables)? an old snapshot keeps it from cleaning; `VACUUM` helps",
            facts={"dead_rows": rows, "threshold": policy.dead_rows},
            is_fading=rows <= policy.dead_rows,
        )
    if found.connections > policy.pressure * policy.fading:
        yield Symptom(
            matter=AlertKey(rule=AlertRule.DATABASE_TROUBLE, subject="connections"),
            severity=Severity.CRITICAL if found.connections > policy.pressure_critical else Severity.WARNING,
            summary=f"{found.connections:.0%} of the connections that PostgreSQL allows are in use",
            advice="raise max_connections, run fewer replicas, or look for clients that do not close theirs",
            facts={"share": found.connections, "threshold": policy.pressure},
            is_fading=found.connections <= policy.pressure,
        )


def degraded(seen: Observations, policy: SymptomPolicy) -> Iterable[Symptom] | None:
    """Something is given up because resources are short, or because an operator wants it so."""
    if seen.step is None:
        return None
    if seen.step is DegradationStep.NONE:
        return ()
    return [
        Symptom(
            matter=AlertKey(rule=AlertRule.DEGRADED),
            severity=Severity.CRITICAL if seen.step is TOP_STEP else Severity.WARNING,
            summary=f"step {seen.step.value} of degradation: {MEANINGS[seen.step]}",
            advice="`convener degradation get` says why; add what is short, or submit less",
            facts={"step": seen.step.value},
        )
    ]


CHECKS: Mapping[AlertRule, Check] = {
    AlertRule.OLDEST_TASK: oldest_task,
    AlertRule.STUCK_EXECUTING: stuck_executing,
    AlertRule.POOL_BELOW_MINIMUM: pool_below_minimum,
    AlertRule.RESOURCE_PRESSURE: resource_pressure,
    AlertRule.QUEUE_GROWTH: queue_growth,
    AlertRule.WORKER_STARVATION: worker_starvation,
    AlertRule.BREAKER_OPEN: breaker_open,
    AlertRule.REPLACEMENT_FAILING: replacement_failing,
    AlertRule.DATABASE_TROUBLE: database_trouble,
    AlertRule.DEGRADED: degraded,
}


def _idle(workers: int) -> str:
    return "1 worker idles" if workers == 1 else f"{workers:,} workers idle"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min"
