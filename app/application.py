"""The FastAPI application: routes, problems, metrics, and what surrounds them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.admin.api import audit, config, keys, whoami
from app.agents.api import agents, performance, weights
from app.dashboard import routes as dashboard
from app.diagnosis.api import why
from app.goals.api import goals
from app.health.api import alerts, degradation, probes, prometheus, report, runtime, series, utilisation
from app.http import openapi, problems, swagger
from app.http.addresses import AddressCheck
from app.http.bodies import Uploads
from app.http.fast_routes import FastLane, LeanRoute
from app.http.refusals import RefusalWatch
from app.http.security import SecureAnswers
from app.llm.api import budgets, models, permits
from app.memory.api import checkpoints, context
from app.queue.api import dead_letters, events, leases, logs, namespaces, outputs, queues, submits, tasks, upcoming
from app.scaling.api import decisions
from app.workers.api import directives, exchange, heartbeats, pool, workers

# In the order in which the published document lists their routes.
_PARTS = (
    submits,
    tasks,
    why,
    logs,
    queues,
    upcoming,
    namespaces,
    goals,
    dead_letters,
    directives,
    workers,
    pool,
    events,
    context,
    outputs,
    checkpoints,
    config,
    weights,
    agents,
    decisions,
    performance,
    permits,
    budgets,
    models,
    audit,
    alerts,
    degradation,
    keys,
    whoami,
    probes,
    report,
    runtime,
    series,
    utilisation,
)
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
_DESCRIPTION = """
The deployment control plane of an AI co-scientist. A Supervisor submits tasks, workers lease them one at a time,
operators watch the pool. Press **Authorize** and paste a key: it is checked at once, and kept until the tab is closed.
The example of each body can be sent as it is, and every error is an RFC 9457 problem with a stable code.
"""
_SERVERS = [{"url": "/", "description": "the address that serves this document: http://127.0.0.1:8765 by default"}]
_TAGS = [
    {"name": "tasks", "description": "What the Supervisor wants done"},
    {"name": "queues", "description": "How much waits, for how long, and what is paused"},
    {"name": "goals", "description": "Research goals: limits, iterations, and how they share the queue"},
    {"name": "dead letters", "description": "Tasks that failed for good"},
    {"name": "leases", "description": "One task, one worker, fenced by a token"},
    {"name": "workers", "description": "Who works, and how they are"},
    {"name": "events", "description": "Every change of state, each exactly once"},
    {"name": "context", "description": "What outlives a task: entries, outputs and checkpoints"},
    {"name": "config", "description": "What people decide about pool, limits, weights and iterations"},
    {"name": "agents", "description": "What agents achieve, and what share of the leases follows from it"},
    {"name": "language models", "description": "Who may call one now, what its service bears, and what it costs"},
    {"name": "scaling", "description": "How many workers there should be, on what, and why"},
    {"name": "audit", "description": "Who did what, in a chain that shows whether it was changed"},
    {"name": "alerts", "description": "What is wrong, since when, and who knows of it"},
    {"name": "degradation", "description": "What is given up while resources are short, and until when"},
    {"name": "keys", "description": "Who may do what"},
    {"name": "health", "description": "Whether all is well"},
]


class Application(FastAPI):
    """FastAPI, but that requests go by its middleware at once, as nothing that it looks at before is used here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and self.middleware_stack is not None:
            scope["app"] = self
            await self.middleware_stack(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def build(lifespan: Lifespan | None = None, *, uploads: Uploads | None = None, metrics_open: bool = False) -> FastAPI:
    """The application; its lifespan must set `app.state.services`."""
    app = Application(
        title="Convener",
        version="0.1.0",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        servers=_SERVERS,
        license_info={"name": "MIT", "identifier": "MIT"},
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # A redirect would lead wherever the Host header says.
        redirect_slashes=False,
        # Of the framework's own, which would ask before each request whether anybody has set it up.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.uploads = uploads or Uploads()
    hot_parts = (leases, heartbeats, exchange)
    lean = [route for part in hot_parts for route in part.router.routes if isinstance(route, LeanRoute)]
    others = [route for part in _PARTS for route in part.router.routes]
    # In the router for the document and for 405; their requests are served before it, by the fast lane.
    app.router.routes.extend(lean)
    for part in _PARTS:
        app.include_router(part.router)
    app.include_router(dashboard.router)
    app.add_middleware(AddressCheck, routes=[*lean, *others, *dashboard.router.routes])
    problems.install(app)
    openapi.install(app)
    swagger.install(app)
    prometheus.install(app, is_open=metrics_open)
    _surround(app, [*lean, *others])
    return app


def _surround(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Put the fast lane around everything, also around the middleware of the framework."""
    # `add_middleware` cannot do that: the framework's own error handling stays outermost.
    inner = app.build_middleware_stack

    def stack() -> ASGIApp:
        return RefusalWatch(FastLane(SecureAnswers(inner()), routes))

    app.build_middleware_stack = stack  # type: ignore[method-assign]  # the place where Starlette asks for it
