"""Gauges of what goes wrong: stuck tasks, starving workers, failing replacements, breakers, degradation, and alerts."""

from math import nan

from prometheus_client import CollectorRegistry, Gauge

from app.domain.agents import AgentType
from app.domain.diagnosis import starving_workers
from app.domain.symptoms import SymptomPolicy
from app.domain.vitals import Snapshot

_PLAIN = {
    "workers_starving": "Workers that idle although tasks wait that they can run",
    "pool_capacity_lost": "Share of the pool that cannot be replaced, from 0 to 1",
    "pool_slots_failing": "Places of the pool whose workers keep dying young",
    "degradation_step": "0: as usual; 1 to 4: what is given up while resources are short",
    "database_oldest_snapshot_transactions": "How many transactions ago the oldest snapshot was taken",
}


class TroubleGauges:
    """What the look tells; NaN, or no line, where it tells nothing."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._plain = {name: Gauge(f"convener_{name}", meaning, registry=registry) for name, meaning in _PLAIN.items()}
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

    def forget(self) -> None:
        """What is over, or unknown, is not told."""
        for labelled in (self._overdue, self._longest, self._breakers, self._alerts):
            labelled.clear()
        for gauge in self._plain.values():
            gauge.set(nan)

    def show(self, seen: Snapshot) -> None:
        """Everything of a look that may be trouble."""
        trouble = seen.trouble
        self._plain["workers_starving"].set(starving_workers(seen.queue, trouble.crew, SymptomPolicy()))
        self._plain["pool_capacity_lost"].set(trouble.recovery.lost_share)
        self._plain["pool_slots_failing"].set(len(trouble.recovery.failing))
        self._plain["degradation_step"].set(trouble.step)
        self._plain["database_oldest_snapshot_transactions"].set(seen.database.snapshot_transactions)
        for agent in AgentType:
            running = trouble.running.get(agent)
            self._overdue.labels(agent.value).set(running.overdue if running else 0)
            self._longest.labels(agent.value).set(running.longest_seconds if running else 0)
        for model, is_open in trouble.breakers.items():
            self._breakers.labels(model).set(is_open)
        for alert in trouble.alerts:
            labels = (alert.matter.rule.value, alert.matter.subject, alert.severity.name.lower())
            self._alerts.labels(*labels).set(1)
