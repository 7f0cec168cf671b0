"""The real application in this process, with its lifespan, and callers for it."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
from fastapi import FastAPI

from app.admin.service.access import create_key
from app.admin.store.keys import NewKey
from app.db.database import Database
from app.health.service.snapshot_cache import CachePolicy, SnapshotCache
from app.http.refusals import RefusalPolicy, Refusals
from app.kernel.access import Role
from app.kernel.agents import AgentType
from app.main import create_app
from app.settings import Settings

# Those of which people make keys; a worker gets its own when it registers.
KEY_ROLES: tuple[Role, ...] = tuple(role for role in Role if role is not Role.WORKER)
_idle: defaultdict[Settings, list[FastAPI]] = defaultdict(list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The application and keys for it."""

    app: FastAPI
    client: httpx.AsyncClient
    keys: dict[Role, str]

    async def ask(
        self, method: str, path: str, body: object = None, *, key: Role | str | None = Role.ADMIN, **options: Any
    ) -> httpx.Response:
        """Send a request as a holder of this role or key; None sends no key."""
        text = self.keys[key] if isinstance(key, Role) else key
        headers = dict(options.pop("headers", {})) | ({"Authorization": f"Bearer {text}"} if text else {})
        if body is not None:
            options["json"] = body
        return await self.client.request(method, path, headers=headers, **options)

    async def get(self, path: str, **query: Any) -> Any:
        """What the service shows; it must be 200."""
        answer = await self.ask("GET", path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: object = None, *, key: Role | str = Role.ADMIN) -> Any:
        """What the service answers; it must be a success."""
        answer = await self.ask("POST", path, {} if body is None else body, key=key)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    async def submitted(self, **fields: Any) -> str:
        """The id of a task that was just submitted."""
        task = await self.post("/tasks", {"agent_type": "generation", "retry": {"delays_seconds": [0]}} | fields)
        return str(task["id"])

    async def worker(self, name: str | None = None, *, ready: bool = True, **fields: Any) -> "Worker":
        """A worker that has registered and, unless told otherwise, sent its first heartbeat."""
        said = registration(name, **fields)
        registered = await self.post("/workers", said, key=Role.POOL)
        worker = Worker(service=self, id=registered["worker_id"], key=registered["key"])
        if ready:
            await worker.beat()
        return worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A registered worker."""

    service: Service
    id: str
    key: str

    async def ask(self, path: str, body: object) -> httpx.Response:
        """Send a request with the worker's own key."""
        return await self.service.ask("POST", path, body, key=self.key)

    async def beat(self, **fields: Any) -> Any:
        """Report health; the answer."""
        return await self.service.post(f"/workers/{self.id}/heartbeat", {"state": "ready"} | fields, key=self.key)

    async def lease(self, **fields: Any) -> Any:
        """The lease received, or None."""
        wanted = {"request_id": str(uuid4()), "acknowledge": True} | fields
        return await self.service.post("/lease", wanted, key=self.key)

    async def on_lease(self, lease: Any, verb: str, **fields: Any) -> httpx.Response:
        """A call on a lease."""
        return await self.ask(f"/leases/{lease['task_id']}/{verb}", {"token": lease["token"]} | fields)


def registration(name: str | None = None, **fields: Any) -> dict[str, Any]:
    """What a worker says of itself."""
    usual: dict[str, Any] = {
        "name": f"worker-{uuid4().hex[:8]}" if name is None else name,
        "host": "test",
        "pid": 1,
        "capabilities": list(AgentType),
        "memory_gb": 1,
        "cpu_cores": 1,
    }
    return usual | fields


async def make_keys(database: Database, roles: Sequence[Role] = KEY_ROLES) -> dict[Role, str]:
    """A key for every role of which people make keys."""
    async with database.transaction() as connection:
        return {role: (await create_key(connection, NewKey(role=role, label="test"))).text for role in roles}


@asynccontextmanager
async def serving(url: str, keys: dict[Role, str] | None = None, **settings: Any) -> AsyncIterator[Service]:
    """The application over a database, from the start of its lifespan to the end."""
    with _application(Settings(database_url=url, **settings)) as app:
        async with _started(app, keys or {}) as service:
            yield service


@contextmanager
def _application(settings: Settings) -> Iterator[FastAPI]:
    """One that no other test uses now: its first request takes a tenth of a second, as routes are built only then."""
    idle = _idle[settings]
    app = idle.pop() if idle else create_app(settings)
    yield app
    idle.append(app)


@asynccontextmanager
async def _started(app: FastAPI, keys: dict[Role, str]) -> AsyncIterator[Service]:
    """The application during its lifespan, which makes everything anew that routes work with."""
    # The last resort of the application answers and raises again for the server's log; only the answer is wanted here.
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://convener", timeout=60) as client,
    ):
        # Whoever has changed something in a test wants to see it at once, however slow the machine is.
        app.state.services[SnapshotCache].policy = CachePolicy(
            fresh_seconds=0, statement_seconds=20, wait_seconds=30, silence_seconds=40
        )
        # All requests come from one address, and tests of keys fail often.
        app.state.services[Refusals].policy = RefusalPolicy(failures=1_000_000)
        yield Service(app=app, client=client, keys=keys)
