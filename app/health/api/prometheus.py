"""The metrics that Prometheus scrapes: requests, and gauges of this service."""

from datetime import timedelta
from math import nan

from fastapi import APIRouter, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.responses import Response

from app.admin.service.config import CurrentConfig
from app.agents.service.agents import AgentReports
from app.health.api import gauges
from app.health.api.gauges import AgentGauges, ModelGauges, PoolGauges, WarningGauges
from app.health.rules import report
from app.health.service.snapshot_cache import SnapshotCache
from app.http.guard import requires
from app.http.services import Services, ServicesDep
from app.kernel.access import Scope
from app.kernel.errors import DatabaseUnavailable
from app.kernel.lanes import Priority
from app.queue.broker.broker import Broker
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.status import EVENTS_BY_OUTCOME, QueueSnapshot

# Leases and heartbeats come thousands of times a second and often wait on purpose: their latencies would say nothing.
_LEFT_OUT = ["^/lease$", "^/leases/", "^/events", "^/workers/.*/heartbeat$", "^/livez$", "^/readyz$", "^/metrics$"]
_MINUTE = timedelta(minutes=1)
_SHARES = (0.5, 0.95, 0.99, 1.0)


class Gauges:
    """Gauges that are set whenever they are scraped.

    Every replica serves the same figures of the queue, so take the maximum over them, not the sum. Waits are quantiles
    over the last five minutes: true histograms would have to count from a beginning that no replica remembers.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._with_labels: list[Gauge] = []
        self._tasks = self._gauge("convener_tasks", "Live tasks", "agent", "priority", "phase")
        self._limit = self._gauge("convener_queue_limit", "How many tasks may wait", "priority")
        self._waits = self._gauge(
            "convener_lease_wait_seconds",
            "Quantiles of how long tasks leased in the last five minutes had waited",
            "priority",
            "quantile",
        )
        self._oldest = self._gauge("convener_oldest_wait_seconds", "Age of the oldest task that may run", "priority")
        self._rates = self._gauge("convener_tasks_per_second", "Over the last minute", "what")
        self._paused_agents = self._gauge("convener_paused", "Agent types whose tasks are not leased", "agent")
        self._dead = Gauge("convener_dead_letters_last_hour", "Tasks given up in the last hour", registry=registry)
        self._miscounted_tasks = Gauge(
            "convener_miscounted_tasks", "By how many the counters were off when last checked", registry=registry
        )
        self._waiting = Gauge("convener_waiting_leases", "Lease calls that wait for a task", registry=registry)
        self._database = Gauge("convener_database_up", "Whether the database answers in time", registry=registry)
        self._pool = PoolGauges(registry)
        self._warnings = WarningGauges(registry)
        self._models = ModelGauges(registry)
        self._agents = AgentGauges(registry)

    async def render(self, services: Services) -> bytes:
        """The text that Prometheus reads; while the database is away it says that, and no old figures."""
        self._waiting.set(services[Broker].waiting_count)
        try:
            snapshot = await services[SnapshotCache].read()
            agents = await services[AgentReports].read_in_transaction(services.database, services[CurrentConfig])
            async with services.database.transaction() as connection:
                models, total_limit = await gauges.read_models(connection)
        except DatabaseUnavailable:
            self._clear()
            self._database.set(0)
        else:
            # Nothing is awaited from here to the end, so a scrape at the same time never sees half of the gauges.
            self._clear()
            settings = services[SnapshotCache].settings
            self._set_queue(snapshot.queue, settings.capacity)
            health_report = report.make_report(snapshot, settings.report, settings.capacity)
            self._pool.update(snapshot, health_report, settings.report.utilisation)
            self._warnings.update(snapshot)
            self._agents.update(agents)
            self._models.update(models, total_limit)
            self._database.set(1)
        return generate_latest(self._registry)

    def _clear(self) -> None:
        """Drop all values, lest one that is over or unknown stays in sight."""
        for gauge in self._with_labels:
            gauge.clear()
        self._pool.clear()
        self._warnings.clear()
        self._agents.clear()
        self._models.clear()
        self._dead.set(nan)
        self._miscounted_tasks.set(nan)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        self._with_labels.append(Gauge(name, text, labels, registry=self._registry))
        return self._with_labels[-1]

    def _set_queue(self, queue: QueueSnapshot, policy: CapacityPolicy) -> None:
        for lane, phases in queue.tasks.items():
            for phase, count in phases.items():
                self._tasks.labels(lane.agent_type.value, lane.priority.name.lower(), phase).set(count)
        for outcome in EVENTS_BY_OUTCOME:
            self._rates.labels(outcome).set(queue.per_second(outcome, _MINUTE))
        for pause in queue.pauses:
            self._paused_agents.labels(pause.agent_type.value).set(1)
        self._dead.set(queue.dead_letters)
        self._miscounted_tasks.set(queue.count_error)
        self._limit.labels("all").set(policy.max_queue_size)
        for priority in Priority:
            self._set_priority(queue, policy, priority)

    def _set_priority(self, queue: QueueSnapshot, policy: CapacityPolicy, priority: Priority) -> None:
        name, waits, oldest = priority.name.lower(), queue.wait_times(priority), queue.oldest_wait(priority)
        self._limit.labels(name).set(policy.quota(priority))
        for share in _SHARES:
            seconds = waits.percentile(share)
            if seconds is not None:
                self._waits.labels(name, f"{share:g}").set(seconds)
        if oldest is not None:
            self._oldest.labels(name).set(oldest.total_seconds())


def install(app: FastAPI) -> None:
    """Instrument the requests and serve `/metrics`."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    gauges = Gauges(registry)
    Instrumentator(excluded_handlers=_LEFT_OUT, registry=registry).instrument(app)
    router = APIRouter(tags=["health"])

    @router.get("/metrics", summary="For Prometheus", dependencies=[requires(Scope.PUBLIC)], response_class=Response)
    async def metrics(services: ServicesDep) -> Response:
        """Requests by route and status, and gauges of the queue, the workers and the lease calls that wait."""
        return Response(await gauges.render(services), media_type=CONTENT_TYPE_LATEST)

    app.include_router(router)
