"""The checks of what can be wrong, each defined once: alerts and the health report are both made from these.

A check returns None when what it looks at was not measured. A figure just below its threshold is a fading symptom: it
keeps an open alert and opens none, and the report, which remembers nothing, leaves it out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from app.health.rules.duty_checks import late_duties
from app.health.rules.finding import AlertKey, AlertRule, Symptom
from app.health.rules.model_checks import breaker_open, goal_budget, key_expiring, llm_budget
from app.health.rules.snapshot import (
    GROWTH_SPAN,
    MINUTE,
    BlockingSession,
    Bounds,
    CheckPolicy,
    DatabaseCondition,
    Grade,
    Observations,
    Running,
    WorkerCounts,
)
from app.health.rules.symptoms import symptom_of
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.refused_writes import REMEDIES
from app.kernel.sessions import session_end
from app.kernel.text import plural, printable
from app.queue.rules.degradation import MEANINGS, TOP_STEP, DegradationStep
from app.queue.rules.status import QueueSnapshot
from app.workers.rules.recovery import Recovery

Check = Callable[[Observations, CheckPolicy], Iterable[Symptom] | None]

_FEWER = "allow fewer workers (`convener config set worker_pool.max_workers=COUNT`)"
QUEUE_RELIEF = (
    "add workers with `convener workers start`, cancel what is not needed with `convener tasks cancel --goal GOAL`, "
    "or raise CONVENER_MAX_QUEUE_SIZE; submits are refused when full"
)
# The report tells of means of minutes, which differ.
_SAMPLES = dict.fromkeys(("cpu", "memory"), " on the fullest host, by its last sample")
_RELIEF = {
    "cpu": f"add hosts, {_FEWER}, or submit less",
    "memory": f"{_FEWER}, or resource_limits.max_memory_per_worker_gb, or add hosts",
    "llm_permits": "raise resource_limits.max_concurrent_llm_calls if the provider allows it, or submit less",
    "queue": QUEUE_RELIEF,
}


def alert_symptoms(observations: Observations, policy: CheckPolicy) -> tuple[list[Symptom], frozenset[AlertRule]]:
    """The symptoms that alerts watch, one for each key, and the rules that could not be judged."""
    results = {rule: check(observations, policy) for rule, check in ALERT_CHECKS.items()}
    by_key: dict[AlertKey, Symptom] = {}
    # Several symptoms may share a key, as tables with dead rows do; the worst comes first and is the one to tell.
    for symptom in (symptom for symptoms in results.values() for symptom in symptoms or ()):
        by_key.setdefault(symptom.key, symptom)
    return list(by_key.values()), frozenset(rule for rule, symptoms in results.items() if symptoms is None)


def oldest_seconds(queue: QueueSnapshot) -> float | None:
    """Seconds that the longest-waiting task has waited; None when none waits, or no duty has looked for it."""
    waits = _waits(queue)
    return max(waits.values(), default=None)


def oldest_task(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """A task that may run has been waiting for too long."""
    waits = _waits(observations.queue)
    if not waits:
        return ()
    # One alert for all priorities, which tells of the longest wait.
    priority = max(waits, key=lambda p: waits[p])
    seconds = waits[priority]
    return symptom_of(
        policy.grade(seconds, policy.oldest_task),
        AlertKey(rule=AlertRule.OLDEST_TASK),
        message=f"a task of priority {priority.name.lower()} has been waiting for {_minutes(seconds)}",
        advice="`convener queues status` shows what is paused or served by nobody; add workers, or lower the load",
        facts={"seconds": seconds, "threshold_seconds": policy.oldest_task.degraded},
    )


def stuck_executing(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """A task is past its deadline and nobody has ended it, or takes far longer than its kind does."""
    if observations.running is None:
        return None
    return [
        symptom
        for agent, running in observations.running.items()
        for symptom in _stuck_symptom(agent, running, _longest(observations, agent), policy)
    ]


def _longest(observations: Observations, agent: AgentType) -> float:
    """Seconds of the longest task of its type that has completed within a day; 0 where none has."""
    lately, earlier = observations.queue.service_times(agent).longest, observations.longest.get(agent)
    return max(lately, earlier.seconds if earlier else 0.0)


def _stuck_symptom(agent: AgentType, running: Running, longest: float, policy: CheckPolicy) -> Iterator[Symptom]:
    # Kinds of tasks differ widely in length, so each is measured by its own longest.
    limit = max(policy.stuck_seconds, policy.stuck_factor * longest)
    # The sweep ends overdue tasks within seconds, so a single one left means that it does not run.
    if running.overdue:
        grade = Grade.CRITICAL
        message = f"{running.overdue:,} of {agent} past the deadline and not ended: the background loops should have"
    else:
        grade = policy.grade(running.longest_seconds, Bounds(degraded=limit))
        usual = "far longer than usual" if longest else "and none has completed within a day"
        message = f"a task of {agent} has been executing for {_minutes(running.longest_seconds)}, {usual}"
    return symptom_of(
        grade,
        AlertKey(rule=AlertRule.STUCK_EXECUTING, subject=agent.value),
        message=message,
        advice="`convener workers ls` shows who has it; look at the worker's log, cancel the task or stop the worker",
        facts={"longest_seconds": running.longest_seconds, "threshold_seconds": limit, "overdue": running.overdue},
    )


def pool_below_minimum(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """Fewer workers are past their start than there must be."""
    workers = observations.workers
    if workers is None or workers.minimum is None:
        return None
    # Starting workers do not count yet; the Prometheus rule ConvenerPoolBelowMinimum leaves them out as well.
    return below_minimum(workers.alive, workers.minimum, "live")


def below_minimum(workers: int, minimum: int, verb: str) -> Iterator[Symptom]:
    grade = Grade.CRITICAL if workers * 2 < minimum else Grade.DEGRADED
    return symptom_of(
        grade if workers < minimum else Grade.WELL,
        AlertKey(rule=AlertRule.POOL_BELOW_MINIMUM),
        message=f"{workers:,} of at least {minimum:,} workers {verb}",
        advice="look at `convener workers ls --gone` and the logs of the loops; do the loops of each host run?",
        facts={"workers": workers, "minimum": minimum},
    )


def resource_pressure(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """Much of a resource is used up."""
    if observations.resources is None:
        return None
    return [
        symptom
        for name, share in observations.resources.items()
        if share is not None
        for symptom in pressure(
            name, share, policy, f"{share:.0%} of {name.replace('_', ' ')} is used{_SAMPLES.get(name, '')}"
        )
    ]


def pressure(name: str, share: float, policy: CheckPolicy, message: str) -> Iterator[Symptom]:
    return symptom_of(
        policy.grade(share, policy.pressure),
        AlertKey(rule=AlertRule.RESOURCE_PRESSURE, subject=name),
        # The report knows the codes of cpu and memory; all other resources are told by alerts alone.
        code=f"{name}_short",
        message=message,
        advice=_RELIEF.get(name, "add more of it, or submit less"),
        facts={"share": share, "threshold": policy.pressure.degraded},
    )


def queue_growth(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """Tasks come faster than they go."""
    if not observations.depths:
        return None
    latest, earliest = observations.depths[-1], observations.depths[0]
    if latest.at - earliest.at < GROWTH_SPAN:
        return None
    growth = (latest.tasks - earliest.tasks) / ((latest.at - earliest.at) / MINUTE)
    return symptom_of(
        policy.grade(growth, Bounds(degraded=policy.growth_per_minute)),
        AlertKey(rule=AlertRule.QUEUE_GROWTH),
        message=f"the queue grows by {growth:,.0f} tasks a minute; {latest.tasks:,} wait",
        advice="add workers or raise worker_pool.max_workers, or have the Supervisor submit less",
        facts={"tasks_per_minute": growth, "threshold": policy.growth_per_minute, "depth": latest.tasks},
    )


def worker_starvation(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """Workers idle although work waits that they can run."""
    queue, workers = observations.queue, observations.workers
    if workers is None:
        return None
    tasks, idle = _runnable_tasks(queue, workers), starving_workers(queue, workers, policy)
    subject = plural(idle, "worker idles", "workers idle")
    return symptom_of(
        Grade.DEGRADED if idle else Grade.WELL,
        AlertKey(rule=AlertRule.WORKER_STARVATION),
        message=f"{subject} although tasks wait that could be run there: {tasks:,}",
        advice="`convener workers ls` shows who is idle: a worker that does not ask for work hangs, so restart it",
        facts={"idle_workers": idle, "waiting_tasks": tasks},
    )


def starving_workers(queue: QueueSnapshot, workers: WorkerCounts, policy: CheckPolicy) -> int:
    """Number of workers that idle although work waits that they can run; 0 while that is an ordinary few."""
    are_few = workers.idle < policy.starving_share * workers.alive
    return 0 if are_few or not _runnable_tasks(queue, workers) else workers.idle


def _runnable_tasks(queue: QueueSnapshot, workers: WorkerCounts) -> int:
    """Tasks that may run now, that nobody has paused, and that some idle worker can run."""
    if workers.runnable is not None:
        return workers.runnable
    paused_agents = {pause.agent_type for pause in queue.pauses}
    return sum(queue.count(agent=agent, phase="pending") for agent in workers.idle_for - paused_agents)


def replacement_failing(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """Workers that are started anew die young or never come."""
    recovery = observations.recovery
    if recovery is None:
        return None
    # Half of the pool at once is the specification's mass failure.
    grade = Grade.CRITICAL if recovery.lost_share > 0.5 else Grade.DEGRADED
    return symptom_of(
        grade if recovery.is_reduced else Grade.WELL,
        AlertKey(rule=AlertRule.REPLACEMENT_FAILING),
        code="reduced_capacity",
        message=recovery.reason,
        advice="; ".join(_advice_on_replacements(recovery)),
        facts={"slots": len(recovery.failing), "overdue": recovery.overdue, "lost_share": recovery.lost_share},
    )


def _advice_on_replacements(recovery: Recovery) -> Iterator[str]:
    if recovery.silent_hosts:
        yield (
            f"start the loops of {', '.join(recovery.silent_hosts)} again (`convener loops` there), or look why they "
            "do not reach the database; a host that is gone for good is told of for an hour"
        )
    if recovery.shared_hosts:
        yield "set CONVENER_HOST_NAME on each of these machines to a name of its own, and start its loops again"
    if recovery.missing_members:
        yield "the engine that starts the workers says why it cannot: look at its options, quotas and nodes"
    is_explained = recovery.silent_hosts or recovery.shared_hosts or recovery.missing_members
    if recovery.failing or recovery.overdue or not is_explained:
        yield "look at the logs of the workers: do the handlers load, is there memory, is the API reached?"


def database_trouble(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """The database refuses writes; or locks, an old snapshot, dead rows or too many connections slow it down."""
    condition = observations.database
    if condition is None:
        return None
    locks = [*_refused_write(condition), *locks_held(condition.blocking, policy)]
    return [*locks, *_old_snapshot(condition, policy), *_dead_rows(condition, policy), *_connections(condition, policy)]


def _refused_write(condition: DatabaseCondition) -> Iterator[Symptom]:
    if (refused := condition.refused) is not None:
        yield from symptom_of(
            Grade.CRITICAL,
            AlertKey(rule=AlertRule.DATABASE_TROUBLE, subject="writes"),
            code=refused.trouble.value,
            message=printable(refused.sentence),
            advice=REMEDIES[refused.trouble],
        )


def locks_held(session: BlockingSession | None, policy: CheckPolicy) -> Iterator[Symptom]:
    if session is None:
        return
    name = f" ({printable(session.application)})" if session.application else ""
    yield from symptom_of(
        policy.grade(session.seconds, policy.lock_seconds),
        AlertKey(rule=AlertRule.DATABASE_TROUBLE, subject="locks"),
        code="locks_held",
        message=f"session {session.pid}{name} of the database has held locks for {session.seconds:,.0f} s, "
        "which others wait for or pass over",
        advice=session_end(session.pid, awaits_standby=session.awaits_standby),
        facts={"seconds": session.seconds, "pid": session.pid},
    )


def _old_snapshot(condition: DatabaseCondition, policy: CheckPolicy) -> Iterator[Symptom]:
    seconds, transactions = condition.snapshot_seconds, condition.snapshot_transactions
    by_age = policy.grade(seconds, policy.snapshot_seconds)
    return symptom_of(
        max(by_age, policy.grade(transactions, Bounds(degraded=policy.snapshot_transactions))),
        AlertKey(rule=AlertRule.DATABASE_TROUBLE, subject="old_snapshot"),
        code="old_snapshot",
        message=f"a snapshot is {_minutes(seconds)} and {transactions:,} transactions old, so dead rows pile up",
        advice="find it in pg_stat_activity (backend_xmin), pg_prepared_xacts or pg_replication_slots, and end it",
        facts={"seconds": seconds, "transactions": transactions},
    )


def _dead_rows(condition: DatabaseCondition, policy: CheckPolicy) -> Iterator[Symptom]:
    # All tables share one alert, which tells of the first; the report lists each.
    for table, rows in sorted(condition.dead_rows.items(), key=lambda item: item[1], reverse=True):
        yield from symptom_of(
            policy.grade(rows, Bounds(degraded=policy.dead_rows)),
            AlertKey(rule=AlertRule.DATABASE_TROUBLE, subject="dead_rows"),
            code="dead_rows",
            message=f"the table {table} holds {rows:,} dead rows that nobody has cleaned up",
            advice="does autovacuum run (pg_stat_user_tables)? an old snapshot keeps it from cleaning; `VACUUM` helps",
            facts={"dead_rows": rows, "threshold": policy.dead_rows},
        )


def _connections(condition: DatabaseCondition, policy: CheckPolicy) -> Iterator[Symptom]:
    share = condition.connections
    return symptom_of(
        policy.grade(share, policy.pressure),
        AlertKey(rule=AlertRule.DATABASE_TROUBLE, subject="connections"),
        code="connections_short",
        message=f"{share:.0%} of the connections that PostgreSQL allows are in use",
        advice="raise max_connections, run fewer replicas, or look for clients that do not close theirs",
        facts={"share": share, "threshold": policy.pressure.degraded},
    )


def degradation(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """Something is given up because resources are short, or because an operator wants it so."""
    step = observations.step
    if step is None:
        return None
    grade = Grade.CRITICAL if step is TOP_STEP else Grade.DEGRADED
    return symptom_of(
        Grade.WELL if step is DegradationStep.NONE else grade,
        AlertKey(rule=AlertRule.DEGRADED),
        code="resources_short",
        message=f"step {step.value} of degradation: {MEANINGS[step]}",
        advice="`convener degradation get` says why; add what is short, or submit less",
        facts={"step": step.value},
    )


def refused_requests(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """Many requests are refused: somebody guesses keys, or goes on with one that is revoked."""
    refusals = observations.refusals
    if refusals is None:
        return None
    total = sum(refusals.values())
    parts = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in sorted(refusals.items()))
    return symptom_of(
        policy.grade(total, policy.refusals),
        AlertKey(rule=AlertRule.REFUSED_REQUESTS),
        message=f"{plural(total, 'request was', 'requests were')} refused in the last five minutes: {parts}",
        advice="the log of the API names addresses and ids of keys: block the address, or mend the client's key",
        facts={reason.value: count for reason, count in sorted(refusals.items())},
    )


def results_delayed(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """An open transaction keeps events and results from their readers."""
    writers = observations.queue.open_writers
    oldest = writers[0] if writers else None
    return symptom_of(
        Grade.WELL if oldest is None else Grade.DEGRADED,
        AlertKey(rule=AlertRule.RESULTS_DELAYED),
        message=oldest.sentence if oldest else "",
        advice="look at who has it open (`convener queues status`), and do what is said there",
        facts={"seconds": oldest.seconds if oldest else 0, "transactions": len(writers)},
    )


ALERT_CHECKS: Mapping[AlertRule, Check] = {
    AlertRule.OLDEST_TASK: oldest_task,
    AlertRule.STUCK_EXECUTING: stuck_executing,
    AlertRule.POOL_BELOW_MINIMUM: pool_below_minimum,
    AlertRule.RESOURCE_PRESSURE: resource_pressure,
    AlertRule.QUEUE_GROWTH: queue_growth,
    AlertRule.WORKER_STARVATION: worker_starvation,
    AlertRule.BREAKER_OPEN: breaker_open,
    AlertRule.KEY_EXPIRING: key_expiring,
    AlertRule.GOAL_BUDGET: goal_budget,
    AlertRule.LLM_BUDGET: llm_budget,
    AlertRule.REPLACEMENT_FAILING: replacement_failing,
    AlertRule.DATABASE_TROUBLE: database_trouble,
    AlertRule.DUTY_LATE: late_duties,
    AlertRule.DEGRADED: degradation,
    AlertRule.REFUSED_REQUESTS: refused_requests,
    AlertRule.RESULTS_DELAYED: results_delayed,
}


def _waits(queue: QueueSnapshot) -> dict[Priority, float]:
    """Seconds that the longest-waiting task of each priority has waited.

    Empty while none may run: the duty that looks for the oldest comes every few seconds, and what it found may be gone.
    """
    if not queue.count(phase="pending"):
        return {}
    return {p: wait.total_seconds() for p in Priority if (wait := queue.oldest_wait(p)) is not None}


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min"
