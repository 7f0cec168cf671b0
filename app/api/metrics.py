"""What Prometheus scrapes: the requests, and gauges of our own."""

from fastapi import APIRouter, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.responses import Response

from app.api.access import requires
from app.api.services import Services, ServicesDep
from app.domain.access import Scope
from app.domain.errors import DatabaseUnavailable
from app.store import status

# Leases and heartbeats come thousands of times a second and often wait on purpose: their latencies would say nothing.
_LEFT_OUT = ["^/lease$", "^/leases/", "^/workers/.*/heartbeat$", "^/livez$", "^/readyz$", "^/metrics$"]


class Gauges:
    """Numbers that are read when somebody asks for them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._tasks = Gauge("convener_tasks", "Live tasks", ["agent", "state"], registry=registry)
        self._workers = Gauge("convener_workers", "Live workers", ["state"], registry=registry)
        self._waiting = Gauge("convener_waiting_leases", "Lease calls that wait for a task", registry=registry)
        self._database = Gauge("convener_database_up", "Whether the database answers", registry=registry)

    async def render(self, services: Services) -> bytes:
        """The text that Prometheus reads; without a database it still says so."""
        self._waiting.set(services.broker.waiting)
        self._tasks.clear()
        self._workers.clear()
        try:
            await self._count(services)
            self._database.set(1)
        except DatabaseUnavailable:
            self._database.set(0)
        return generate_latest(self._registry)

    async def _count(self, services: Services) -> None:
        async with services.database.transaction() as connection:
            tasks = await status.tasks_by_agent(connection)
            workers = await status.workers_by_state(connection)
        for agent, states in tasks.items():
            for state, count in states.items():
                self._tasks.labels(agent, state).set(count)
        for state, count in workers.items():
            self._workers.labels(state).set(count)


def install(app: FastAPI) -> None:
    """Instrument the requests and serve `/metrics`."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    gauges = Gauges(registry)
    Instrumentator(excluded_handlers=_LEFT_OUT, registry=registry).instrument(app)
    router = APIRouter(tags=["health"])

    @router.get("/metrics", summary="For Prometheus", dependencies=[requires(Scope.PUBLIC)], response_class=Response)
    async def metrics(services: ServicesDep) -> Response:
        """Requests by route and status, and gauges of tasks, workers and waiting lease calls."""
        return Response(await gauges.render(services), media_type=CONTENT_TYPE_LATEST)

    app.include_router(router)
