"""Who sees and changes whose: every route, asked by every kind of key, about what is its own, another's, and nobody's.

The table has a row for every route of the application, and each cell of the matrix is really asked for.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest

from app import application
from app.db.database import Database, now
from app.http.guard import is_namespaced
from app.kernel.access import NAMESPACED_ROLES, SCOPES, Role
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.kernel.namespaces import split_name, stored_name
from app.kernel.states import TaskState
from app.llm.rules.permits import PermitRequest, RequestId, answer_key
from app.llm.store import permits as permit_store
from app.llm.store.permits import NewPermit
from app.queue.store import tasks as task_store
from tests.http.access_table import TABLE, Named, Page, Public, Row, Shared, Within
from tests.support.routes import routes
from tests.support.service import Service
from tests.support.sql import execute, fetch

_ROUTES = routes(application.build())
OURS, THEIRS, NOBODYS = "lab-a", "lab-b", "nobody"


def _secret(namespace: str) -> str:
    return f"secret of {namespace}"


class World:
    """A service with things of two namespaces; everything in it says whose it is."""

    def __init__(self, service: Service, database: Database) -> None:
        self._service = service
        self._database = database

    async def thing(self, kind: str, namespace: str) -> dict[str, str]:
        """Names of a new thing for a path; of `nobody` those of a thing that does not exist."""
        if namespace == NOBODYS:
            return {}
        make: Callable[[str], Awaitable[dict[str, str]]] = getattr(self, kind)
        return await make(namespace)

    async def task(self, namespace: str) -> dict[str, str]:
        """A task that waits."""
        words = {"payload": {"text": _secret(namespace)}, "labels": {"whose": _secret(namespace)}}
        body = {"agent_type": "generation", "goal_id": _secret(namespace), **words}
        task = await self._service.post(f"/tasks?namespace={namespace}", body)
        return {"task_id": task["id"]}

    async def letter(self, namespace: str) -> dict[str, str]:
        """A task that failed."""
        names = await self.task(namespace)
        error = json.dumps({"code": "x", "message": _secret(namespace)})
        async with self._database.transaction() as connection:
            task_id = UUID(names["task_id"])
            await task_store.finish(connection, task_id, TaskState.FAILED, failures=1, rescues=0, error=error)
        return names

    async def result(self, namespace: str) -> dict[str, str]:
        """A task that completed."""
        names = await self.task(namespace)
        async with self._database.transaction() as connection:
            await task_store.finish(connection, UUID(names["task_id"]), TaskState.COMPLETED, failures=0, rescues=0)
        return names

    async def goal(self, namespace: str) -> dict[str, str]:
        """A goal with an iteration."""
        body = {"id": f"{namespace}-{uuid4().hex[:8]}", "objective": _secret(namespace)}
        goal = await self._service.post(f"/goals?namespace={namespace}", body)
        report = {"iteration": 1, "quality": 1}
        await self._service.post(f"/goals/{goal['id']}/iterations?namespace={namespace}", report)
        return {"goal_id": goal["id"], "number": "1"}

    async def entry(self, namespace: str) -> dict[str, str]:
        """An entry of the context."""
        names = {"namespace": f"{namespace}-{uuid4().hex[:8]}", "key": "k"}
        path = f"/context/{names['namespace']}/{names['key']}?namespace={namespace}"
        answer = await self._service.ask("PUT", path, _secret(namespace), headers={"If-None-Match": "*"})
        assert answer.status_code == 201, answer.text
        return names

    async def permit(self, namespace: str) -> dict[str, str]:
        """A live permit."""
        request = PermitRequest(
            id=RequestId("test", uuid4()),
            model="m",
            agent_type=AgentType.RANKING,
            priority=Priority.MEDIUM,
            tokens=1,
            goal_id=stored_name(namespace, _secret(namespace)),
        )
        new = NewPermit(id=uuid4(), token=uuid4().hex, request=request, is_probe=False)
        async with self._database.transaction() as connection:
            await permit_store.insert(connection, [new], await now(connection), 600)
        return {"permit_id": str(new.id), "token": new.token}

    async def answer(self, namespace: str) -> dict[str, str]:
        """A cached answer of a model, in a goal."""
        goal_id, question = f"{namespace}-{uuid4().hex[:8]}", bytes(range(32))
        key = answer_key("m", question, goal_id=stored_name(namespace, goal_id), holder="test")
        query = """INSERT INTO llm_cache (key, model, answer, written_by, size_bytes, stored_at, expires_at)
                   VALUES ($1, 'm', $2, 'test', 1, now(), now() + interval '1 hour')"""
        await execute(self._database, query, key, json.dumps({"text": _secret(namespace)}))
        return {"key": question.hex(), "goal_id": goal_id}

    async def complete_tasks(self) -> None:
        """Complete a task of each namespace, with a result."""
        worker, left = await self._service.worker(), {OURS, THEIRS}
        for namespace in left:
            await self.task(namespace)
        while left:
            lease = await worker.lease()
            assert (await worker.on_lease(lease, "complete", result=lease["payload"])).status_code == 200
            left.discard(split_name(lease["goal_id"])[0])

    async def state(self, namespace: str) -> Any:
        """Digests of all rows of a namespace."""
        own, digests = f"{stored_name(namespace, '')}%", []
        for table, column in _OWNED.items():
            query = f"SELECT md5(t::text) FROM {table} t WHERE {column} LIKE $1 ORDER BY 1"
            digests.append((table, await fetch(self._database, query, own)))
        assert all(rows for _, rows in digests), "there is nothing that could have been changed"
        return digests


# Tables with what namespaces own, and the column with the stored name.
_OWNED = {
    "tasks": "goal_id",
    "task_history": "goal_id",
    "events": "goal_id",
    "goals": "id",
    "goal_iterations": "goal_id",
    "context_entries": "namespace",
    "llm_permits": "goal_id",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """A kind of key, and the namespace that it is confined to."""

    role: Role
    namespace: str | None = None

    async def key(self, service: Service) -> str:
        """A key of this kind."""
        if self.role is Role.WORKER:
            return (await service.worker()).key
        body: dict[str, Any] = {"role": self.role, "label": "test", "namespace": self.namespace}
        body["all_namespaces"] = self.role is Role.READER and self.namespace is None
        return str((await service.post("/keys", body))["key"])


_ASKERS = {
    **{f"{role} of {OURS}": Asker(role=role, namespace=OURS) for role in sorted(NAMESPACED_ROLES)},
    **{f"{role} of default": Asker(role=role, namespace="default") for role in sorted(NAMESPACED_ROLES)},
    "reader of all": Asker(role=Role.READER),
    **{str(role): Asker(role=role) for role in Role if role not in NAMESPACED_ROLES},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A request, and the status that must answer it; None: anything but a refusal."""

    method: str
    path: str
    body: Any
    headers: Mapping[str, str]
    expected: int | None


async def _cells(world: World, asker: Asker) -> list[Cell]:
    return [cell for name, row in TABLE.items() async for cell in _cells_of(world, asker, name, row)]


async def _cells_of(world: World, asker: Asker, name: str, row: Row) -> AsyncIterator[Cell]:
    match row.subject:
        case Named() as named:
            for owner in (OURS, THEIRS, NOBODYS):
                names = await world.thing(named.thing, owner)
                is_there = owner == asker.namespace if asker.namespace else owner != NOBODYS
                answer = named.there if is_there else named.absent
                space = "" if asker.namespace else owner
                yield _cell(asker, name, row, names, space, answer)
                if asker.namespace:
                    yield _cell(asker, name, row, names, THEIRS, 403)
        case Within() as within:
            for space in ("", OURS, THEIRS, NOBODYS):
                is_refused = asker.namespace and space not in ("", asker.namespace)
                yield _cell(asker, name, row, {}, space, 403 if is_refused else within.answer)
        case Shared():
            yield _cell(asker, name, row, {}, "", 403 if asker.namespace else None)
        case Public() | Page():
            pass


# Of things that nobody owns, and that are not there.
_UNKNOWN = {
    **dict.fromkeys(("task_id", "goal_id", "namespace", "permit_id", "worker_id"), str(UUID(int=7))),
    **dict.fromkeys(("checkpoint_id", "version", "decision_id", "alert_id"), "999"),
    "number": "1",
    "prefix": "0190",
    "agent_type": "ranking",
    "key_id": "000000000000",
    "model:path": "none",
    "token": "none",
    "key": "0" * 64,
}


def _cell(asker: Asker, name: str, row: Row, names: Mapping[str, str], space: str, expected: int | None) -> Cell:
    method, _, path = name.partition(" ")
    names = _UNKNOWN | dict(names)
    body = getattr(row.subject, "body", {} if method == "POST" else None)
    query = [f"namespace={space}"] if space else []
    query += [row.subject.query] if isinstance(row.subject, Named | Within) and row.subject.query else []
    path += f"?{'&'.join(query)}"
    for part, text in names.items():
        path = path.replace(f"{{{part}}}", text)
    may = set(row.scopes) <= SCOPES[asker.role]
    if asker.role is Role.WORKER and getattr(row.subject, "to_worker", None):
        may = False
    return Cell(
        method=method,
        path=path,
        body=body(names) if callable(body) else body,
        headers=getattr(row.subject, "headers", {}),
        expected=expected if may else 403,
    )


def test_every_route_has_a_row() -> None:
    names = {f"{next(iter(route.methods or ()))} {route.path}": route for route in _ROUTES}
    assert names.keys() == TABLE.keys()
    for name, route in names.items():
        is_owned = isinstance(TABLE[name].subject, Named | Within)
        assert is_namespaced(route.dependant) == is_owned, f"{name} confines keys to their namespace, or does not"


@pytest.mark.parametrize("asker", _ASKERS.values(), ids=_ASKERS)
async def test_each_sees_and_changes_what_is_its_own(service: Service, database: Database, asker: Asker) -> None:
    # There are other namespaces from here on, so keys of `default` are confined, too.
    for namespace in (OURS, THEIRS):
        await service.post("/keys", {"role": "supervisor", "label": "test", "namespace": namespace})
    key, world = await asker.key(service), World(service, database)
    await service.ask("PUT", "/llm/models/m", {"max_concurrency": 1000}, headers={"If-Match": '"0"'})
    await execute(database, "UPDATE llm_models SET concurrency = 1000")
    config = await service.ask("GET", "/config")
    more = {"resource_limits": {"max_concurrent_llm_calls": 100}}
    await service.ask("PATCH", "/config", more, headers={"If-Match": config.headers["etag"]})
    cells = await _cells(world, asker)
    await world.complete_tasks()
    foreign = [name for name in (OURS, THEIRS) if asker.namespace not in (None, name)]
    before = [await world.state(name) for name in foreign]
    for cell in cells:
        answer = await service.ask(cell.method, cell.path, cell.body, key=key, headers=cell.headers)
        shown = f"{cell.method} {cell.path}: {answer.status_code} {answer.text[:200]}"
        assert answer.status_code < 500, shown
        if cell.expected is None:
            assert answer.status_code not in (401, 403), shown
        else:
            assert answer.status_code == cell.expected, shown
        assert not any(_secret(name) in answer.text for name in foreign), shown
    assert [await world.state(name) for name in foreign] == before
