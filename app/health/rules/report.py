"""The health report of the specification: healthy, degraded or critical, with figures and reasons."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from app.health.rules import utilisation
from app.health.rules.checks import (
    QUEUE_RELIEF,
    below_minimum,
    database_trouble,
    degradation,
    oldest_seconds,
    oldest_task,
    pressure,
    refused_requests,
    replacement_failing,
    results_delayed,
)
from app.health.rules.duty_checks import is_late, late_duties
from app.health.rules.finding import Finding, Level, Overall, Symptom, critical, degraded, not_measured, note
from app.health.rules.runtime import bottleneck_agent
from app.health.rules.snapshot import WATCH, CheckPolicy, Grade, Snapshot
from app.health.rules.symptoms import level_of
from app.health.rules.utilisation import Measure
from app.kernel.agents import AgentType
from app.kernel.refused_writes import REMEDIES
from app.kernel.text import plural
from app.queue.rules.admission import CapacityPolicy, capacity_level

DATABASE_AWAY = "database_away"
DATABASE_SLOW = "database_slow"
_DIGITS = 2
_DATABASE_ADVICE = (
    "`convener db status` looks at the database itself: does it run, has its disk room, and who holds locks there?"
)
_REMEDIES = {trouble.value: remedy for trouble, remedy in REMEDIES.items()}
_SERVING = (
    "start a worker whose HANDLERS have {agent}: `convener worker --handlers MODULE`, "
    "or the service with them: `convener up --handlers MODULE`"
)
_LOST = "`convener workers ls --gone` shows why each ended, and where its log is"
_NAMES = {Measure.CPU: "the processors", Measure.MEMORY: "the memory"}
# Alerts call these critical at their worst, the report never does: busy processors make all slow and end nothing, and
# the pool, replacements and degradation are being worked on. (When memory is used up, processes are killed.)
_DEGRADED_AT_MOST = frozenset({"cpu_short", "pool_below_minimum", "reduced_capacity", "resources_short"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The specification's figures; percentages from 0 to 100. `at` is when they were taken."""

    at: datetime
    overall: Overall
    total_workers: int = 0
    healthy_workers: int = 0
    utilization_percentage: float = 0.0
    pending_tasks: int = 0
    oldest_task_age_seconds: int = 0
    bottleneck: AgentType | None = None
    cpu_percentage: float = 0.0
    memory_percentage: float = 0.0
    llm_api_usage_percentage: float = 0.0
    reasons: Sequence[Finding] = ()


def make_report(snapshot: Snapshot, policy: CheckPolicy, capacity: CapacityPolicy) -> Report:
    """The report on a snapshot; a figure that was not measured is 0, and a note among the reasons says so."""
    reasons = report_findings(snapshot, policy, capacity)
    return Report(
        at=snapshot.at,
        overall=overall_health(reasons),
        total_workers=snapshot.pool.total,
        healthy_workers=snapshot.pool.healthy,
        utilization_percentage=round(100.0 * (snapshot.pool.busy_share or 0.0), _DIGITS),
        pending_tasks=snapshot.queue.count(),
        oldest_task_age_seconds=int(oldest_seconds(snapshot.queue) or 0),
        bottleneck=bottleneck_agent(snapshot.queue, snapshot.pool, policy.service),
        cpu_percentage=round(_host_percent(snapshot, Measure.CPU, policy) or 0.0, _DIGITS),
        memory_percentage=round(_host_percent(snapshot, Measure.MEMORY, policy) or 0.0, _DIGITS),
        llm_api_usage_percentage=round(100.0 * (snapshot.language_model.usage or 0.0), _DIGITS),
        reasons=reasons,
    )


def outdated_report(last: Report | None, at: datetime, code: str, reason: str) -> Report:
    """The report while the database does not answer: critical, with the figures of the last report.

    The reasons of the last report are left out, as nobody knows whether they still hold.
    """
    cause = critical(code, reason, _REMEDIES.get(code, _DATABASE_ADVICE))
    if last is None:
        never = "nothing has been read from the database yet: all figures are 0 for want of any"
        reasons = [cause, note("not_measured", never)]
        return Report(at=at, overall=Overall.CRITICAL, reasons=reasons)
    ago = max(0, int((at - last.at).total_seconds()))
    old = note("out_of_date", f"all figures are those of {ago:,} s ago")
    return replace(last, at=at, overall=Overall.CRITICAL, reasons=[cause, old])


def overall_health(reasons: Sequence[Finding]) -> Overall:
    """Health by the worst finding; notes do not count."""
    levels = {reason.level for reason in reasons}
    if Level.CRITICAL in levels:
        return Overall.CRITICAL
    return Overall.DEGRADED if Level.DEGRADED in levels else Overall.HEALTHY


def _host_percent(snapshot: Snapshot, measure: Measure, policy: CheckPolicy) -> float | None:
    return utilisation.fullest_host_percent(snapshot.spans, measure, snapshot.at, policy.utilisation)


def report_findings(snapshot: Snapshot, policy: CheckPolicy, capacity: CapacityPolicy) -> list[Finding]:
    """All findings of the health report, the worst first.

    Stuck tasks, growth, starvation and open breakers are left to the alerts, as are used-up permits.
    """
    findings: list[Finding] = [
        *_never_run(snapshot),
        *(late_duties(snapshot, policy) or ()),
        *_unwatched(snapshot, policy),
        *_pool(snapshot, policy),
        *(oldest_task(snapshot, policy) or ()),
        *_queue(snapshot, capacity),
        *_hosts(snapshot, policy),
        *(database_trouble(snapshot, policy) or ()),
        *(replacement_failing(snapshot, policy) or ()),
        *(degradation(snapshot, policy) or ()),
        *(results_delayed(snapshot, policy) or ()),
        *_refusals(snapshot, policy),
        *_certificate(snapshot, policy),
        *_unmeasured_notes(snapshot, policy),
    ]
    # Sorting is stable, so findings of one level keep the order above.
    order = [Level.CRITICAL, Level.DEGRADED, Level.NOTE]
    return sorted(filter(None, map(_for_report, findings)), key=lambda finding: order.index(finding.level))


def _for_report(finding: Finding) -> Finding | None:
    if isinstance(finding, Symptom) and finding.is_fading:
        return None
    return replace(finding, level=Level.DEGRADED) if finding.code in _DEGRADED_AT_MOST else finding


def _never_run(snapshot: Snapshot) -> Iterator[Finding]:
    if not snapshot.duty_turns:
        yield critical("loops_never_ran", "no background duty has ever run", "`convener loops` runs them")


def _unwatched(snapshot: Snapshot, policy: CheckPolicy) -> Iterator[Finding]:
    """Of this no alert can tell: the API takes over where no loop watches, and nobody where each turn fails."""
    for turn in snapshot.duty_turns:
        if turn.duty == WATCH and is_late(turn, policy):
            message = f"nobody has watched for alerts for {turn.seconds_ago:,.0f} s, so none opens and none ends"
            yield degraded("alerts_unwatched", message, "the logs of the loops and of the API say why each turn fails")


def _pool(snapshot: Snapshot, policy: CheckPolicy) -> Iterator[Finding]:
    pool, minimum = snapshot.pool, snapshot.min_workers
    if minimum and pool.healthy <= 0:
        message = f"no worker is healthy, and there should be {minimum:,} at least"
        advice = f"{_LOST}; `convener workers start` starts one where loops run, `convener worker` one by hand"
        yield critical("no_healthy_worker", message, advice)
    else:
        # Looks ahead where the alert waits: workers that start count already, those that drain no more.
        yield from below_minimum(pool.total - pool.draining, minimum, "are there to stay")
    lost_share = pool.failed / (pool.total + pool.failed) if pool.failed else 0.0
    grade = policy.grade(lost_share, policy.workers_lost)
    if grade >= Grade.DEGRADED:
        message = f"{_workers(pool.failed)} lost, or never up, in the last five minutes; {pool.total:,} are live now"
        yield Finding(code="workers_lost", level=level_of(grade), message=message, advice=_LOST)
    if pool.not_ready:
        message = f"{_workers(pool.not_ready)} starting and cannot work yet, such as {pool.not_ready_example}"
        yield degraded("workers_not_ready", message, "mend what it lacks; `convener workers ls` shows each and why")
    if pool.silent:
        message = f"{_workers(pool.silent)} missing heartbeats, and about to be given up"
        yield note(
            "workers_silent", message, "`convener workers ls` shows since when: do their hosts and network work?"
        )


def _queue(snapshot: Snapshot, capacity: CapacityPolicy) -> Iterator[Finding]:
    """The alert goes by the whole queue, as the contract has it; the report by each priority's quota too."""
    queue = snapshot.queue
    fullness = capacity_level(capacity, queue.depth)
    if fullness != "normal":
        message = f"{queue.count():,} tasks are queued and {capacity.max_queue_size:,} may be, by priority less"
        make = critical if fullness == "critical" else degraded
        yield make("queue_nearly_full", message, QUEUE_RELIEF)
    paused_agents = {pause.agent_type for pause in queue.pauses}
    for agent in AgentType:
        waiting = queue.count(agent=agent, phase="pending")
        if waiting and agent in paused_agents:
            message = f"{agent} is paused, and {waiting:,} of its tasks {'waits' if waiting == 1 else 'wait'}"
            yield note("agent_paused", message, f"`convener queues resume {agent}` lets them go on")
        elif waiting and agent not in queue.served_agents:
            tasks = plural(waiting, f"task of {agent} waits", f"tasks of {agent} wait")
            message = f"{tasks}, and no live worker can run {'it' if waiting == 1 else 'them'}"
            yield degraded("agent_unserved", message, _SERVING.format(agent=agent))


def _hosts(snapshot: Snapshot, policy: CheckPolicy) -> Iterator[Finding]:
    """The alert lets the last sample of the fullest host last; the report, without a memory, takes means of each."""
    hosts = sorted({span.subject for span in snapshot.spans if utilisation.is_host(span.subject)})
    for host in hosts:
        for measure, name in _NAMES.items():
            percent = utilisation.sample_mean(snapshot.spans, host, measure, least_samples=policy.least_samples)
            if percent is not None:
                message = f"{name} of {host} {'are' if measure is Measure.CPU else 'is'} {percent:.0f} % in use"
                message += ", on the mean of the last minutes"
                yield from pressure(measure.value, percent / 100, policy, message)


def _refusals(snapshot: Snapshot, policy: CheckPolicy) -> Iterator[Finding]:
    """A note only: strangers must not be able to make the system look degraded."""
    for symptom in refused_requests(snapshot, policy) or ():
        yield replace(symptom, level=Level.NOTE)


def _certificate(snapshot: Snapshot, policy: CheckPolicy) -> Iterator[Finding]:
    """Once it has expired, nobody who verifies it connects any more."""
    expires_at = snapshot.certificate_expires_at
    days = math.inf if expires_at is None else (expires_at - snapshot.at) / timedelta(days=1)
    if expires_at is None or days > policy.certificate_days:
        return
    when = f"the TLS certificate of the API {'has expired' if days <= 0 else 'expires'} at {expires_at.isoformat()}"
    advice = "renew the file (`convener tls create NAME` does its own), which is taken over without a restart"
    if days <= 0:
        yield critical("certificate_expired", when, advice)
    elif days <= policy.certificate_short_days:
        yield degraded("certificate_expiring", when, advice)
    else:
        yield note("certificate_expiring", when, advice)


def _unmeasured_notes(snapshot: Snapshot, policy: CheckPolicy) -> Iterator[Finding]:
    """Notes on the figures that are 0 because nobody has measured them."""
    for measure, name in _NAMES.items():
        if _host_percent(snapshot, measure, policy) is None:
            yield not_measured(f"{measure.value}_percentage", f"nobody has measured {name} in the last minute")
    if snapshot.pool.busy_share is None:
        yield not_measured("utilization_percentage", "there is no worker that may be leased to")
    if snapshot.language_model.usage is None:
        yield not_measured("llm_api_usage_percentage", "no use of language models has been measured")
    if snapshot.queue.count(phase="pending") and oldest_seconds(snapshot.queue) is None:
        yield not_measured("oldest_task_age_seconds", "nobody has looked for the oldest task yet")


def _workers(count: int) -> str:
    return plural(count, "worker is", "workers are")
