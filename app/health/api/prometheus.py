"""The metrics that Prometheus scrapes: requests, and gauges of this service."""

from fastapi import APIRouter, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.responses import Response

from app.admin.service.config import CurrentConfig
from app.agents.service.agents import AgentReports
from app.health.api.gauges import Gauges, read_models
from app.health.rules import report
from app.health.service.snapshot_cache import SnapshotCache
from app.http.guard import requires
from app.http.services import Services, ServicesDep
from app.kernel.access import Scope
from app.kernel.errors import DatabaseUnavailable
from app.queue.broker.broker import Broker

# Leases and heartbeats come thousands of times a second and often wait on purpose: their latencies would say nothing.
_LEFT_OUT = ["^/lease$", "^/leases/", "^/events", "^/workers/.*/heartbeat$", "^/livez$", "^/readyz$", "^/metrics$"]


async def _update(gauges: Gauges, services: Services) -> None:
    """Set all gauges anew; while the database is away they say that, and show no old figures."""
    try:
        snapshot = await services[SnapshotCache].read()
        agents = await services[AgentReports].read_in_transaction(services.database, services[CurrentConfig])
        async with services.database.transaction() as connection:
            models, total_limit = await read_models(connection)
    except DatabaseUnavailable:
        gauges.clear()
        gauges.set("database_up", 0)
    else:
        # Nothing is awaited from here to the end, so a scrape at the same time never sees half of the gauges.
        gauges.clear()
        settings = services[SnapshotCache].settings
        gauges.set_queue(snapshot.queue, settings.capacity)
        gauges.set_report(snapshot, report.make_report(snapshot, settings.report, settings.capacity))
        gauges.set_pool(snapshot)
        gauges.set_utilisation(snapshot, settings.report.utilisation)
        gauges.set_alerts(snapshot)
        gauges.set_agents(agents)
        gauges.set_models(models, total_limit)
        gauges.set("database_up", 1)
    gauges.set("waiting_leases", services[Broker].waiting_count)


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
        await _update(gauges, services)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    app.include_router(router)
