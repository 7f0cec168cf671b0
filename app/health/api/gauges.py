"""Gauges of queue, pool, health, hosts, database, agents and language models for Prometheus.

No label stands for a task, a goal or a worker: there are too many, and they come and go.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import islice
from math import nan

from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy.ext.asyncio import AsyncConnection

from app.agents.service.agents import AgentReport
from app.health.rules import runtime, utilisation
from app.health.rules.checks import starving_workers
from app.health.rules.finding import Overall
from app.health.rules.report import Report
from app.health.rules.series import MetricKind
from app.health.rules.snapshot import FOR_ALERTS, Snapshot
from app.health.rules.utilisation import PERCENTAGES, WORKERS, Measure, UtilisationPolicy
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.llm.rules.models import concurrency_ceiling
from app.llm.store import gate, models
from app.llm.store.models import ModelStatus
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.status import EVENTS_BY_OUTCOME, QueueSnapshot

_STATES = (Overall.HEALTHY, Overall.DEGRADED, Overall.CRITICAL)
_MINUTE = timedelta(minutes=1)
_SHARES = (0.5, 0.95, 0.99, 1.0)
# Callers name models, and what they make up must not fill the memory of whoever scrapes.
_MAX_MODELS = 50
_MAX_ALERTS = 200
_PUSHED_GAUGES = {MetricKind.GAUGE: "pushed_gauge", MetricKind.COUNTER: "pushed_per_second"}
# Name without the prefix -> help text, then the labels.
_GAUGES: Mapping[str, tuple[str, ...]] = {
    "tasks": ("Live tasks", "agent", "priority", "phase"),
    "queue_limit": ("How many tasks may wait", "priority"),
    "lease_wait_seconds": (
        "Quantiles of how long tasks leased in the last five minutes had waited",
        "priority",
        "quantile",
    ),
    "oldest_wait_seconds": ("Age of the oldest task that may run", "priority"),
    "tasks_per_second": ("Over the last minute", "what"),
    "paused": ("Agent types whose tasks are not leased", "agent"),
    "dead_letters_last_hour": ("Tasks given up in the last hour",),
    "miscounted_tasks": ("By how many the counters were off when last checked",),
    "waiting_leases": ("Lease calls that wait for a task",),
    "database_up": ("Whether the database answers in time",),
    "queue_depth_total": ("Tasks that are queued: pending, delayed, held or blocked",),
    "oldest_task_age_seconds": ("For how long the longest-waiting task that may run has waited; 0 when none waits",),
    "workers_live": ("Workers that are starting, ready, busy or draining",),
    "workers_healthy": ("Live workers that have passed a health report and are not silent",),
    "workers_silent": ("Live workers that have missed heartbeats for so long that they are about to be lost",),
    "workers_failed": ("Workers that were lost, or never came up, within the last five minutes",),
    "workers_minimum": ("The fewest workers that the configuration allows",),
    "workers_target": ("How many workers the last scaling decision wants; NaN before the first",),
    "workers_cores": ("Processor cores that all workers use; NaN while none has said",),
    "workers_gigabytes": ("Memory that all workers use, in GB; NaN while none has said",),
    "task_completion_seconds": ("Mean time from lease to completion over the last five minutes; NaN without any",),
    "llm_latency_seconds": ("Mean latency of language-model calls lately; NaN without any",),
    "llm_usage_percent": ("Percent of the language-model permits in use; NaN when not measured",),
    "health_state": ("0 healthy, 1 degraded, 2 critical",),
    "database_oldest_snapshot_seconds": ("Age of the oldest open transaction that keeps dead rows; 0 without one",),
    "database_connections_percent": ("Percent of the connections that the server allows which are in use",),
    "queue_depth": ("Tasks that are queued: pending, delayed, held or blocked", "agent"),
    "arrivals_per_second": ("Tasks submitted, over the last five minutes", "agent"),
    "service_seconds": ("Mean time from lease to completion lately", "agent"),
    "workers": ("Live workers", "state"),
    "workers_assigned": ("Live workers that are to prefer an agent type", "agent"),
    "utilisation_percent": ("Last sample of cpu, memory or busy", "subject", "measure"),
    "health_findings": ("What the health report finds", "code", "level"),
    "duty_age_seconds": ("Since the last turn of a background duty", "duty"),
    "database_dead_rows": ("Dead rows of a busy table", "table"),
    "pushed_gauge": ("Mean of the gauges that were pushed lately", "name", "agent"),
    "pushed_per_second": ("How fast the counters that are pushed grew in the last minute", "name", "agent"),
    "workers_starving": ("Workers that idle although tasks wait that they can run",),
    "pool_capacity_lost": ("Share of the pool that cannot be replaced, from 0 to 1",),
    "pool_slots_failing": ("Places of the pool whose workers keep dying young",),
    "degradation_step": ("0: as usual; 1 to 4: what is given up while resources are short",),
    "database_oldest_snapshot_transactions": ("How many transactions ago the oldest snapshot was taken",),
    "tasks_overdue": ("Tasks past their deadline that nobody has ended", "agent"),
    "task_longest_seconds": ("How long the longest task has been executing", "agent"),
    "llm_breaker_open": ("1 for a model that is not called for now", "model"),
    "llm_state": ("1 for the state of a model whose service answers nobody", "model", "state"),
    "llm_key_seconds_left": ("Seconds until the key of a model expires, where that is known", "model"),
    "alerts": ("Alerts that are not resolved", "rule", "subject", "severity"),
    "llm_in_use": ("Calls of a language model that are under way", "model"),
    "llm_limit": (
        "Calls of a language model that may be under way: what its service was seen to bear",
        "model",
    ),
    "llm_cooldown_seconds": ("For so long the service of a language model wants to be left alone", "model"),
    "agent_weight": ("Share of the leases in force", "agent"),
    "agent_target_weight": ("Where the share is headed", "agent"),
    "agent_effectiveness": ("Lower bound of success times quality of the last results", "agent"),
    "agent_quality": ("Mean quality of the last results that were judged", "agent"),
    "agent_quality_gain": ("Quality by each doubling of a task's time", "agent"),
}


class Gauges:
    """All gauges by name; what is not known is NaN, or has no line where the gauge has labels.

    Every replica serves the same figures of the queue, so take the maximum over them, not the sum. Waits are quantiles
    over the last five minutes: true histograms would have to count from a beginning that no replica remembers.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauges = {
            name: Gauge(f"convener_{name}", text, labels, registry=registry)
            for name, (text, *labels) in _GAUGES.items()
        }

    def clear(self) -> None:
        """Drop all values, lest one that is over or unknown stays in sight."""
        for name, gauge in self._gauges.items():
            if len(_GAUGES[name]) > 1:
                gauge.clear()
            else:
                gauge.set(nan)

    def set(self, name: str, value: float | None, *labels: str) -> None:
        """Set a gauge that has been cleared; None, for what is not known, leaves it so."""
        if value is not None:
            gauge = self._gauges[name]
            (gauge.labels(*labels) if labels else gauge).set(value)

    def set_queue(self, queue: QueueSnapshot, policy: CapacityPolicy) -> None:
        """Set the gauges of tasks by lane, and of each priority."""
        for lane, phases in queue.tasks.items():
            for phase, count in phases.items():
                self.set("tasks", count, lane.agent_type.value, lane.priority.name.lower(), phase)
        for outcome in EVENTS_BY_OUTCOME:
            self.set("tasks_per_second", queue.per_second(outcome, _MINUTE), outcome)
        for pause in queue.pauses:
            self.set("paused", 1, pause.agent_type.value)
        self.set("dead_letters_last_hour", queue.dead_letters)
        self.set("miscounted_tasks", queue.count_error)
        self.set("queue_limit", policy.max_queue_size, "all")
        for priority in Priority:
            name, waits, oldest = priority.name.lower(), queue.wait_times(priority), queue.oldest_wait(priority)
            self.set("queue_limit", policy.quota(priority), name)
            for share in _SHARES:
                self.set("lease_wait_seconds", waits.percentile(share), name, f"{share:g}")
            self.set("oldest_wait_seconds", None if oldest is None else oldest.total_seconds(), name)

    def set_report(self, snapshot: Snapshot, report: Report) -> None:
        """Set the gauges of the health report, and of times and use behind it."""
        self.set("queue_depth_total", report.pending_tasks)
        self.set("oldest_task_age_seconds", report.oldest_task_age_seconds)
        self.set("health_state", _STATES.index(report.overall))
        # Counted, because findings may share a code: each full host is one.
        for (code, level), count in Counter((reason.code, reason.level) for reason in report.reasons).items():
            self.set("health_findings", count, code, level.value)
        self.set("task_completion_seconds", runtime.completion_seconds(snapshot.queue))
        latency, usage = snapshot.language_model.latency_ms, snapshot.language_model.usage
        self.set("llm_latency_seconds", None if latency is None else latency / 1000)
        self.set("llm_usage_percent", None if usage is None else 100.0 * usage)
        for value in snapshot.pushed_values:
            self.set(_PUSHED_GAUGES[value.kind], value.value, value.name, value.agent.value if value.agent else "")
        for turn in snapshot.duty_turns:
            self.set("duty_age_seconds", abs(turn.seconds_ago), turn.duty)

    def set_pool(self, snapshot: Snapshot) -> None:
        """Set the gauges of workers, and of the work of each agent type."""
        pool, queue = snapshot.pool, snapshot.queue
        states = {"starting": pool.starting, "ready": pool.idle, "busy": pool.busy, "draining": pool.draining}
        for state, count in states.items():
            self.set("workers", count, state)
        self.set("workers_live", pool.total)
        self.set("workers_healthy", pool.healthy)
        self.set("workers_silent", pool.silent)
        self.set("workers_failed", pool.failed)
        self.set("workers_minimum", snapshot.min_workers)
        self.set("workers_target", snapshot.target_workers)
        for agent in AgentType:
            running = snapshot.running.get(agent)
            self.set("workers_assigned", pool.assigned_workers.get(agent, 0), agent.value)
            self.set("queue_depth", queue.count(agent=agent), agent.value)
            self.set("arrivals_per_second", runtime.arrivals_per_second(queue, agent), agent.value)
            self.set("service_seconds", queue.service_times(agent).mean, agent.value)
            self.set("tasks_overdue", running.overdue if running else 0, agent.value)
            self.set("task_longest_seconds", running.longest_seconds if running else 0, agent.value)

    def set_utilisation(self, snapshot: Snapshot, policy: UtilisationPolicy) -> None:
        """Set the gauges of hosts, and of what all workers use."""
        for measure in PERCENTAGES:
            for subject, span in utilisation.latest_spans(snapshot.spans, measure, snapshot.at, policy).items():
                self.set("utilisation_percent", span.last, subject, measure.value)
        for name, measure in (("workers_cores", Measure.CORES), ("workers_gigabytes", Measure.GIGABYTES)):
            amount = utilisation.latest_spans(snapshot.spans, measure, snapshot.at, policy).get(WORKERS)
            self.set(name, amount.last if amount else None)

    def set_alerts(self, snapshot: Snapshot) -> None:
        """Set the gauges of what alerts watch, and of the alerts themselves."""
        condition = snapshot.database
        self.set("database_oldest_snapshot_seconds", condition.snapshot_seconds)
        self.set("database_oldest_snapshot_transactions", condition.snapshot_transactions)
        self.set("database_connections_percent", 100.0 * condition.connections)
        for table, rows in condition.dead_rows.items():
            self.set("database_dead_rows", rows, table)
        # By the thresholds of the alerts, so that the rules of Prometheus agree with them.
        self.set("workers_starving", starving_workers(snapshot.queue, snapshot.workers, FOR_ALERTS))
        self.set("pool_capacity_lost", snapshot.recovery.lost_share)
        self.set("pool_slots_failing", len(snapshot.recovery.failing))
        self.set("degradation_step", snapshot.step)
        for model, trouble in islice(snapshot.models.items(), _MAX_MODELS):
            if trouble.is_out_of_order:
                self.set("llm_breaker_open", 1, model)
                self.set("llm_state", 1, model, trouble.state.value)
            if trouble.key_seconds_left is not None:
                self.set("llm_key_seconds_left", trouble.key_seconds_left, model)
        for alert in islice(snapshot.alerts, _MAX_ALERTS):
            self.set("alerts", 1, alert.key.rule.value, alert.key.subject, alert.severity.name.lower())

    def set_agents(self, agents: Sequence[AgentReport]) -> None:
        """Set the gauges of all agents."""
        for agent in agents:
            name, summary = agent.agent_type.value, agent.summary
            self.set("agent_weight", agent.weight, name)
            self.set("agent_target_weight", agent.target_weight, name)
            self.set("agent_effectiveness", summary.effectiveness if summary else None, name)
            self.set("agent_quality", summary.quality if summary else None, name)
            self.set("agent_quality_gain", agent.quality_gain, name)

    def set_models(self, statuses: Sequence[ModelStatus], total_limit: int) -> None:
        """Set the gauges of these language models; `total_limit` bounds the calls of all together."""
        for status in statuses:
            name, concurrency = status.model.name, status.model.concurrency
            self.set("llm_in_use", status.permits, name)
            self.set("llm_limit", concurrency.allowed_calls(concurrency_ceiling(status.model, total_limit)), name)
            self.set("llm_cooldown_seconds", concurrency.cooldown_seconds(status.at), name)


async def read_models(connection: AsyncConnection) -> tuple[list[ModelStatus], int]:
    """Status of the models to show, called within a day or with limits, and how many calls of all there may be."""
    statuses = await models.status_page(connection, after_name="", limit=_MAX_MODELS)
    return list(statuses.items), (await gate.read_load(connection)).total_limit
