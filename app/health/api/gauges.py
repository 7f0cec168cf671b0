"""Gauges of pool, health, hosts and database for Prometheus, set from one snapshot of the system.

No label stands for a task, a goal or a worker: there are too many, and they come and go.
"""

from collections.abc import Sequence
from math import nan

from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy.ext.asyncio import AsyncConnection

from app.agents.service.agents import AgentReport
from app.health.rules import runtime, utilisation
from app.health.rules.checks import starving_workers
from app.health.rules.report import Overall, Report
from app.health.rules.runtime import PoolCounts
from app.health.rules.series import MetricKind
from app.health.rules.snapshot import FOR_ALERTS, Snapshot
from app.health.rules.utilisation import PERCENTAGES, WORKERS, Measure, UtilisationPolicy
from app.kernel.agents import AgentType
from app.llm.rules.models import concurrency_ceiling
from app.llm.store import gate, models
from app.llm.store.models import ModelStatus

_STATES = (Overall.HEALTHY, Overall.DEGRADED, Overall.CRITICAL)
# Gauges without labels: name -> help text.
_POOL_GAUGES = {
    "queue_depth_total": "Tasks that are queued: pending, delayed or blocked",
    "oldest_task_age_seconds": "For how long the longest-waiting task that may run has waited; 0 when none waits",
    "workers_live": "Workers that are starting, ready, busy or draining",
    "workers_healthy": "Live workers that have passed a health report and are not silent",
    "workers_silent": "Live workers that have missed heartbeats for so long that they are about to be lost",
    "workers_failed": "Workers that were lost, or never came up, within the last five minutes",
    "workers_minimum": "The fewest workers that the configuration allows",
    "workers_target": "How many workers the last scaling decision wants; NaN before the first",
    "workers_cores": "Processor cores that all workers use; NaN while none has said",
    "workers_gigabytes": "Memory that all workers use, in GB; NaN while none has said",
    "task_completion_seconds": "Mean time from lease to completion over the last five minutes; NaN without any",
    "llm_latency_seconds": "Mean latency of language-model calls lately; NaN without any",
    "llm_usage_percent": "Percent of the language-model permits in use; NaN when not measured",
    "health_state": "0 healthy, 1 degraded, 2 critical",
    "database_oldest_snapshot_seconds": "Age of the oldest open transaction that keeps dead rows; 0 without one",
    "database_connections_percent": "Percent of the connections that the server allows which are in use",
}

# Callers name models, and what they make up must not fill the memory of whoever scrapes.
_MAX_MODELS = 50
_MODEL_GAUGES = {
    "in_use": "Calls of a language model that are under way",
    "limit": "Calls of a language model that may be under way: what its service was seen to bear",
    "cooldown_seconds": "For so long the service of a language model wants to be left alone",
}
_WARNINGS = {
    "workers_starving": "Workers that idle although tasks wait that they can run",
    "pool_capacity_lost": "Share of the pool that cannot be replaced, from 0 to 1",
    "pool_slots_failing": "Places of the pool whose workers keep dying young",
    "degradation_step": "0: as usual; 1 to 4: what is given up while resources are short",
    "database_oldest_snapshot_transactions": "How many transactions ago the oldest snapshot was taken",
}


class PoolGauges:
    """Gauges of queue, pool, hosts and the health report; NaN, or no line, where nothing is known."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._plain = {name: Gauge(f"convener_{name}", text, registry=registry) for name, text in _POOL_GAUGES.items()}
        self._with_labels: list[Gauge] = []
        self._registry = registry
        self._depth = self._gauge("queue_depth", "Tasks that are queued: pending, delayed or blocked", "agent")
        self._arrivals = self._gauge("arrivals_per_second", "Tasks submitted, over the last five minutes", "agent")
        self._service = self._gauge("service_seconds", "Mean time from lease to completion lately", "agent")
        self._workers = self._gauge("workers", "Live workers", "state")
        self._assigned_workers = self._gauge(
            "workers_assigned", "Live workers that are to prefer an agent type", "agent"
        )
        self._utilisation = self._gauge(
            "utilisation_percent", "Last sample of cpu, memory or busy", "subject", "measure"
        )
        self._findings = self._gauge("health_findings", "What the health report finds", "code", "level")
        self._duties = self._gauge("duty_age_seconds", "Since the last turn of a background duty", "duty")
        self._dead = self._gauge("database_dead_rows", "Dead rows of a busy table", "table")
        self._pushed_values = {
            MetricKind.GAUGE: self._gauge(
                "pushed_gauge", "Mean of the gauges that were pushed lately", "name", "agent"
            ),
            MetricKind.COUNTER: self._gauge(
                "pushed_per_second", "How fast the counters that are pushed grew in the last minute", "name", "agent"
            ),
        }

    def clear(self) -> None:
        """Drop all values, lest one that is over or unknown stays in sight."""
        for gauge in self._with_labels:
            gauge.clear()
        for gauge in self._plain.values():
            gauge.set(nan)

    def update(self, snapshot: Snapshot, report: Report, policy: UtilisationPolicy) -> None:
        """Set all from a snapshot and the report on it."""
        self._set_queue(snapshot, report)
        self._set_pool(snapshot.pool)
        self._set_utilisation(snapshot, policy)
        self._set_database(snapshot)
        self._set_plain("workers_minimum", snapshot.min_workers)
        self._set_plain("workers_target", snapshot.target_workers)
        self._set_plain("health_state", _STATES.index(report.overall))
        for reason in report.reasons:
            # Counted, because findings may share a code: each full host is one.
            self._findings.labels(reason.code, reason.level.value).inc()
        for value in snapshot.pushed_values:
            agent = value.agent.value if value.agent else ""
            self._pushed_values[value.kind].labels(value.name, agent).set(value.value)
        for turn in snapshot.duty_turns:
            self._duties.labels(turn.duty).set(turn.seconds_ago)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        self._with_labels.append(Gauge(f"convener_{name}", text, labels, registry=self._registry))
        return self._with_labels[-1]

    def _set_plain(self, name: str, value: float | None) -> None:
        self._plain[name].set(nan if value is None else value)

    def _set_queue(self, snapshot: Snapshot, report: Report) -> None:
        self._set_plain("queue_depth_total", report.pending_tasks)
        self._set_plain("oldest_task_age_seconds", report.oldest_task_age_seconds)
        self._set_plain("task_completion_seconds", runtime.completion_seconds(snapshot.queue))
        latency = snapshot.language_model.latency_ms
        self._set_plain("llm_latency_seconds", None if latency is None else latency / 1000)
        self._set_plain("llm_usage_percent", _percent(snapshot.language_model.usage))
        for agent in AgentType:
            self._depth.labels(agent.value).set(snapshot.queue.count(agent=agent))
            self._arrivals.labels(agent.value).set(runtime.arrivals_per_second(snapshot.queue, agent))
            if (mean := snapshot.queue.service_times(agent).mean) is not None:
                self._service.labels(agent.value).set(mean)

    def _set_pool(self, pool: PoolCounts) -> None:
        for state, count in (("starting", pool.starting), ("ready", pool.idle), ("busy", pool.busy)):
            self._workers.labels(state).set(count)
        self._workers.labels("draining").set(pool.draining)
        for agent in AgentType:
            self._assigned_workers.labels(agent.value).set(pool.assigned_workers.get(agent, 0))
        self._set_plain("workers_live", pool.total)
        self._set_plain("workers_healthy", pool.healthy)
        self._set_plain("workers_silent", pool.silent)
        self._set_plain("workers_failed", pool.failed)

    def _set_utilisation(self, snapshot: Snapshot, policy: UtilisationPolicy) -> None:
        for measure in PERCENTAGES:
            for subject, span in utilisation.latest_spans(snapshot.spans, measure, snapshot.at, policy).items():
                self._utilisation.labels(subject, measure.value).set(span.last)
        for name, measure in (("workers_cores", Measure.CORES), ("workers_gigabytes", Measure.GIGABYTES)):
            amount = utilisation.latest_spans(snapshot.spans, measure, snapshot.at, policy).get(WORKERS)
            self._set_plain(name, amount.last if amount else None)

    def _set_database(self, snapshot: Snapshot) -> None:
        condition = snapshot.database
        self._set_plain("database_oldest_snapshot_seconds", condition.snapshot_seconds)
        self._set_plain("database_connections_percent", 100.0 * condition.connections)
        for table, dead in condition.dead_rows.items():
            self._dead.labels(table).set(dead)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


class AgentGauges:
    """Gauges of each agent; a figure that is not known has no line."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"convener_agent_{name}", text, ["agent"], registry=registry)

        self._weight = gauge("weight", "Share of the leases in force")
        self._target = gauge("target_weight", "Where the share is headed")
        self._effectiveness = gauge("effectiveness", "Lower bound of success times quality of the last results")
        self._quality = gauge("quality", "Mean quality of the last results that were judged")
        self._gain = gauge("quality_gain", "Quality by each doubling of a task's time")

    def clear(self) -> None:
        """Drop all values."""
        for gauge in (self._weight, self._target, self._effectiveness, self._quality, self._gain):
            gauge.clear()

    def update(self, agents: Sequence[AgentReport]) -> None:
        """Set the gauges of all agents."""
        for agent in agents:
            summary = agent.summary
            self._weight.labels(agent.agent_type.value).set(agent.weight)
            self._target.labels(agent.agent_type.value).set(agent.target_weight)
            figures = (
                (self._effectiveness, summary.effectiveness if summary else None),
                (self._quality, summary.quality if summary else None),
                (self._gain, agent.quality_gain),
            )
            for gauge, value in figures:
                if value is not None:
                    gauge.labels(agent.agent_type.value).set(value)


class ModelGauges:
    """Gauges of the language models that were called within a day, or have limits of their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauges = {
            name: Gauge(f"convener_llm_{name}", text, ["model"], registry=registry)
            for name, text in _MODEL_GAUGES.items()
        }

    def clear(self) -> None:
        """Drop all values, lest one that is over or unknown stays in sight."""
        for gauge in self._gauges.values():
            gauge.clear()

    def update(self, statuses: Sequence[ModelStatus], total_limit: int) -> None:
        """Set the gauges of all models; `total_limit` bounds the calls of all together."""
        for status in statuses:
            concurrency = status.model.concurrency
            self._gauges["in_use"].labels(status.model.name).set(status.permits)
            self._gauges["limit"].labels(status.model.name).set(
                concurrency.allowed_calls(concurrency_ceiling(status.model, total_limit))
            )
            self._gauges["cooldown_seconds"].labels(status.model.name).set(concurrency.cooldown_seconds(status.at))


async def read_models(connection: AsyncConnection) -> tuple[list[ModelStatus], int]:
    """Status of the models to show, and how many calls of all models there may be."""
    statuses = await models.status_page(connection, after_name="", limit=_MAX_MODELS)
    return statuses, (await gate.read_load(connection)).total_limit


class WarningGauges:
    """Gauges of what alerts watch; NaN, or no line, where nothing is known."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._plain = {name: Gauge(f"convener_{name}", text, registry=registry) for name, text in _WARNINGS.items()}
        self._overdue = Gauge(
            "convener_tasks_overdue", "Tasks past their deadline that nobody has ended", ["agent"], registry=registry
        )
        self._longest = Gauge(
            "convener_task_longest_seconds",
            "How long the longest task has been executing",
            ["agent"],
            registry=registry,
        )
        self._breakers = Gauge(
            "convener_llm_breaker_open", "1 for a model that is not called for now", ["model"], registry=registry
        )
        self._alerts = Gauge(
            "convener_alerts", "Alerts that are not resolved", ["rule", "subject", "severity"], registry=registry
        )

    def clear(self) -> None:
        """Drop all values, lest one that is over or unknown stays in sight."""
        for gauge_by_label in (self._overdue, self._longest, self._breakers, self._alerts):
            gauge_by_label.clear()
        for gauge in self._plain.values():
            gauge.set(nan)

    def update(self, snapshot: Snapshot) -> None:
        """Set all from a snapshot."""
        # By the thresholds of the alerts, so that the rules of Prometheus agree with them.
        self._plain["workers_starving"].set(starving_workers(snapshot.queue, snapshot.workers, FOR_ALERTS))
        self._plain["pool_capacity_lost"].set(snapshot.recovery.lost_share)
        self._plain["pool_slots_failing"].set(len(snapshot.recovery.failing))
        self._plain["degradation_step"].set(snapshot.step)
        self._plain["database_oldest_snapshot_transactions"].set(snapshot.database.snapshot_transactions)
        for agent in AgentType:
            running = snapshot.running.get(agent)
            self._overdue.labels(agent.value).set(running.overdue if running else 0)
            self._longest.labels(agent.value).set(running.longest_seconds if running else 0)
        for model, is_open in snapshot.breakers.items():
            self._breakers.labels(model).set(is_open)
        for alert in snapshot.alerts:
            labels = (alert.key.rule.value, alert.key.subject, alert.severity.name.lower())
            self._alerts.labels(*labels).set(1)
