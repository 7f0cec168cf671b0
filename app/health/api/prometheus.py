"""The metrics that Prometheus scrapes: requests, and gauges of this service."""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector
from prometheus_fastapi_instrumentator import Instrumentator, metrics
from starlette.requests import Request
from starlette.responses import Response

from app.admin.service.config import CurrentConfig
from app.agents.service.agents import AgentReport, AgentReports
from app.health.api.gauges import Gauges, read_models
from app.health.rules import report
from app.health.rules.snapshot import Snapshot
from app.health.service.snapshot_cache import SnapshotCache
from app.http.guard import requires
from app.http.refusals import Refusals, method_label
from app.http.routing import Router
from app.http.services import Services, ServicesDep
from app.kernel.access import RefusalReason, Scope
from app.kernel.errors import DatabaseUnavailable
from app.llm.store.models import ModelStatus
from app.queue.broker.broker import Broker

# Leases and heartbeats come thousands of times a second and often wait on purpose: their latencies would say nothing.
_LEFT_OUT = ["^/lease$", "^/leases/", "^/events", "^/workers/.*/heartbeat$", "^/livez$", "^/readyz$", "^/metrics$"]


class MetricsPage:
    """The page of all metrics as bytes: made one at a time, in a thread, and shared by all scrapers for a second."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._gauges = Gauges(registry)
        self._refused = _RefusalCounter(registry)
        self._lock = asyncio.Lock()
        self._page = b""
        self._began_at = -math.inf

    async def read(self, services: Services) -> bytes:
        """A page that was begun less than a second ago, or is made now."""
        async with self._lock:
            if time.monotonic() - self._began_at >= services[SnapshotCache].policy.fresh_seconds:
                began_at, figures = time.monotonic(), await _read_figures(services)
                # Gauges are set where they are read, by one thread at a time, so no page shows half of them.
                self._page = await asyncio.to_thread(self._render, figures, services)
                self._began_at = began_at
            return self._page

    def _render(self, figures: "_Figures | None", services: Services) -> bytes:
        gauges, settings = self._gauges, services[SnapshotCache].settings
        # While the database is away they say that, and show no old figures.
        gauges.clear()
        gauges.set("database_up", figures is not None)
        gauges.set("waiting_leases", services[Broker].waiting_count)
        self._refused.refusals = services[Refusals]
        if figures is not None:
            snapshot = figures.snapshot
            gauges.set_queue(snapshot.queue, settings.capacity)
            gauges.set_report(snapshot, report.make_report(snapshot, settings.report, settings.capacity))
            gauges.set_pool(snapshot)
            gauges.set_utilisation(snapshot, settings.report.utilisation)
            gauges.set_alerts(snapshot)
            gauges.set_agents(figures.agents)
            gauges.set_models(figures.models, figures.total_limit)
        return generate_latest(self._registry)


class _RefusalCounter(Collector):
    """Requests that this process has refused, as they are counted where they are refused."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.refusals = Refusals()
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One family of counters, a label for each reason."""
        family = CounterMetricFamily("convener_refused_requests", "Requests refused by this process", labels=["reason"])
        for reason in RefusalReason:
            family.add_metric([reason], self.refusals.totals[reason])
        yield family


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """All that is read from the database for a page."""

    snapshot: Snapshot
    agents: Sequence[AgentReport]
    models: Sequence[ModelStatus]
    total_limit: int


async def _read_figures(services: Services) -> _Figures | None:
    """The figures of this moment; None while the database is away."""
    try:
        snapshot = await services[SnapshotCache].read()
        agents = await services[AgentReports].read_in_transaction(services.database, services[CurrentConfig])
        async with services.database.reading() as connection:
            models, total_limit = await read_models(connection)
    except DatabaseUnavailable:
        return None
    return _Figures(snapshot=snapshot, agents=agents, models=models, total_limit=total_limit)


def install(app: FastAPI, *, is_open: bool = False) -> None:
    """Instrument the requests and serve `/metrics`; an open page needs no key."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    count = metrics.default(registry=registry)
    assert count is not None

    def count_request(info: metrics.Info) -> None:
        info.method = method_label(info.method)
        count(info)

    Instrumentator(excluded_handlers=_LEFT_OUT, registry=registry).add(count_request).instrument(app)

    def count_plain_request(request: Request, response: Response, seconds: float) -> None:
        status, path = f"{response.status_code // 100}xx", request.scope["route"].path
        count_request(metrics.Info(request, response, request.method, path, status, seconds, seconds))

    app.state.count_request = count_plain_request
    page = MetricsPage(registry)
    router = Router(tags=["health"])

    @router.get(
        "/metrics",
        operation_id="get_prometheus_metrics",
        summary="For Prometheus",
        dependencies=[requires(Scope.PUBLIC if is_open else Scope.MONITOR)],
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}},
    )
    async def show_metrics(services: ServicesDep) -> Response:
        """Requests by route and status, and gauges of the queue, the workers and the lease calls that wait.

        It is made at most once a second. CONVENER_METRICS_OPEN lets scrapers in without a key.
        """
        return Response(await page.read(services), media_type=CONTENT_TYPE_LATEST)

    app.include_router(router)
