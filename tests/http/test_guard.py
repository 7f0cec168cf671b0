"""Who may do what: every route declares it, and every role gets exactly what it may have."""

from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from app import application
from app.db.database import Database
from app.http.guard import declared_scopes
from app.kernel.access import SCOPES, Role, Scope
from tests.http.access_table import TABLE, Page
from tests.support.description import DESCRIPTION
from tests.support.routes import DOCUMENTATION, others, routes
from tests.support.service import KEY_ROLES, Service, registration
from tests.support.sql import PATIENCE, execute, until, value

_APP: FastAPI = application.build()
_ROUTES = routes(_APP)
_EXPECTED = {name: row.scopes for name, row in TABLE.items()}
_PUBLIC = (Scope.PUBLIC,)


def _name(route: APIRoute) -> str:
    (method,) = route.methods or {"NONE"}
    return f"{method} {route.path}"


def test_every_route_declares_what_it_needs() -> None:
    assert {_name(route): declared_scopes(route.dependencies) for route in _ROUTES} == _EXPECTED


def test_nothing_else_is_served_than_routes_and_their_documentation() -> None:
    assert others(_APP) <= DOCUMENTATION


def test_the_documentation_says_which_routes_need_a_key() -> None:
    described = DESCRIPTION["paths"]
    for name, scopes in _EXPECTED.items():
        if isinstance(TABLE[name].subject, Page):
            continue
        # The kind of a part of the path is known to the routes alone.
        method, _, path = name.replace(":path", "").partition(" ")
        assert bool(described[path][method.lower()].get("security")) == (scopes != _PUBLIC), name


_PROTECTED = [name for name, scopes in _EXPECTED.items() if scopes != _PUBLIC]


def _request(name: str) -> tuple[str, str, Any]:
    """An empty request for the route, at the address of nothing that exists."""
    method, _, path = name.partition(" ")
    for part in ("{task_id}", "{worker_id}", "{key_id}"):
        path = path.replace(part, str(uuid4()))
    if path.endswith("/stream"):
        # A stream would not end.
        path += "?after=nonsense"
    return method, path, {} if method == "POST" else None


async def _state(database: Database) -> Any:
    tables = ("tasks", "task_history", "events", "workers", "keys")
    counts = ", ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    return await value(database, f"SELECT ARRAY[{counts}]")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Bearer cvn_",
        "Bearer cvn_a_b",
        "Bearer cvn_a\udcff_b",
        "Basic cvn_a_b",
        "Bearer cvn_000000000000_" + "x" * 5000,
    ],
)
async def test_without_a_key_nothing_but_the_public_is_open(
    service: Service, database: Database, header: str | None
) -> None:
    before = await _state(database)
    for name in _PROTECTED:
        method, path, body = _request(name)
        headers = {} if header is None else {b"Authorization": header.encode("utf-8", "surrogateescape")}
        answer = await service.client.request(method, path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), name
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert await _state(database) == before


def test_pages_for_browsers_are_not_in_the_document() -> None:
    assert not [path for path in DESCRIPTION["paths"] if path == "/" or path.startswith("/dashboard")]


async def test_a_page_shows_nothing_without_a_session(service: Service, database: Database) -> None:
    before = await _state(database)
    for name, row in TABLE.items():
        if not isinstance(row.subject, Page):
            continue
        method, _, path = name.partition(" ")
        for headers in ({}, {"Cookie": "convener_session_default=cvs_000000000000_guess"}):
            # A key is no session: programs use the API.
            answer = await service.ask(method, path, headers=headers)
            assert answer.status_code == row.subject.answer, name
    assert await _state(database) == before


async def test_the_public_needs_no_key(service: Service) -> None:
    for path in ("/livez", "/readyz", "/problems", "/openapi.json", "/docs"):
        assert (await service.ask("GET", path, key=None)).status_code == 200, path


@pytest.mark.parametrize("role", Role)
async def test_each_role_passes_exactly_where_it_may(service: Service, role: Role) -> None:
    key = (await service.worker()).key if role is Role.WORKER else service.keys[role]
    for name in _PROTECTED:
        await _passes_exactly_where_it_may(service, name, key, SCOPES[role])


async def _passes_exactly_where_it_may(service: Service, name: str, key: str, scopes: frozenset[Scope]) -> None:
    method, path, body = _request(name)
    answer = await service.ask(method, path, body, key=key)
    if missing := [scope for scope in _EXPECTED[name] if scope not in scopes]:
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), name
        assert missing[0] in answer.json()["detail"]
    else:
        assert answer.status_code not in (401, 403), name
        assert answer.status_code < 500, name


@pytest.mark.parametrize("role", [Role.READER, Role.SUPERVISOR, Role.ADMIN])
async def test_a_key_may_have_less_than_its_role(service: Service, role: Role) -> None:
    made = await service.post("/keys", {"role": role, "label": "dashboard", "withheld": ["content:read"]})
    assert made["withheld"] == ["content:read"]
    listed = {key["id"]: key["withheld"] for key in (await service.get("/keys"))["items"]}
    assert listed[made["id"]] == ["content:read"]
    for name in _PROTECTED:
        await _passes_exactly_where_it_may(service, name, made["key"], SCOPES[role] - {Scope.CONTENT})


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ({"role": "worker"}, "role"),
        ({"role": "reader", "withheld": ["tasks:submit"]}, "withheld"),
        ({"role": "pool", "withheld": ["workers:register"]}, "withheld"),
    ],
)
async def test_no_key_is_made_that_is_of_no_use_or_somebody_elses(
    service: Service, key: dict[str, Any], field: str
) -> None:
    answer = await service.ask("POST", "/keys", {"label": "x"} | key)
    assert (answer.status_code, answer.json()["code"]) == (422, "key_refused")
    assert [error["path"] for error in answer.json()["errors"]] == [field]


async def test_what_workers_could_not_do_is_hidden_with_the_rest_of_the_content(service: Service) -> None:
    worker = await service.worker()
    await worker.beat(errors=[{"at": "2026-01-31T12:00:00Z", "message": "a prompt"}])
    blind = await service.post("/keys", {"role": "reader", "label": "x", "withheld": ["content:read"]})
    for path in ("/workers", f"/workers/{worker.id}"):
        assert "a prompt" in (await service.ask("GET", path, key=Role.READER)).text
        answer = await service.ask("GET", path, key=blind["key"])
        assert answer.status_code == 200
        assert "a prompt" not in answer.text


@pytest.mark.parametrize("role", KEY_ROLES)
async def test_only_workers_hold_leases(service: Service, role: Role) -> None:
    answer = await service.ask("POST", "/lease", {"request_id": str(uuid4())}, key=role)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_the_key_of_a_pool_registers_but_holds_nothing(service: Service) -> None:
    answer = await service.ask("POST", "/lease", {"request_id": str(uuid4())}, key=Role.POOL)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert (await service.ask("POST", "/workers", registration(), key=Role.POOL)).status_code == 201


@pytest.mark.parametrize("role", [role for role in KEY_ROLES if role is not Role.POOL])
async def test_nobody_but_a_pool_registers_workers(service: Service, role: Role) -> None:
    answer = await service.ask("POST", "/workers", registration(), key=role)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_the_secret_counts_not_the_id(service: Service) -> None:
    key = service.keys[Role.ADMIN]
    assert (await service.ask("GET", "/tasks", key=key)).status_code == 200
    prefix, key_id, _ = key.split("_", 2)
    for wrong in (key[:-1], key + "x", key[:-1] + ("A" if key[-1] != "A" else "B"), f"{prefix}_{key_id}_x"):
        assert (await service.ask("GET", "/tasks", key=wrong)).status_code == 401


async def test_a_worker_acts_for_itself_only(service: Service, database: Database) -> None:
    one, other = await service.worker(), await service.worker()
    await service.submitted()
    lease = await one.lease()
    before = await _state(database)
    for path, body in (("heartbeat", {"state": "ready"}), ("goodbye", {"reason": "malice"})):
        answer = await other.ask(f"/workers/{one.id}/{path}", body)
        assert answer.status_code == 404, answer.text
    assert (await other.on_lease(lease, "complete", result={})).status_code == 404
    assert await _state(database) == before
    assert (await service.get(f"/workers/{one.id}"))["state"] == "busy"


@pytest.mark.parametrize("path", ["/tasks", "/events", "/workers", "/status", "/keys", "/replacements"])
async def test_a_worker_reads_nothing_that_is_not_its_own(service: Service, path: str) -> None:
    worker = await service.worker()
    assert (await service.ask("GET", path, key=worker.key)).status_code == 403


async def test_a_worker_gives_no_orders_and_no_tasks(service: Service) -> None:
    worker = await service.worker()
    for path in ("/tasks", f"/workers/{worker.id}/drain", "/keys"):
        assert (await worker.ask(path, {})).status_code == 403


async def test_a_key_is_shown_once_and_works_until_it_is_revoked(service: Service) -> None:
    made = await service.post("/keys", {"role": "reader", "label": "dashboard"})
    assert (await service.ask("GET", "/tasks", key=made["key"])).status_code == 200
    listed = await service.ask("GET", "/keys")
    assert made["key"].split("_", 2)[2] not in listed.text
    assert made["id"] in listed.text
    assert (await service.ask("DELETE", f"/keys/{made['id']}")).status_code == 204
    # This process hears of it at once, although it had remembered the key.
    answer = await service.ask("GET", "/tasks", key=made["key"])
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    again = await service.ask("DELETE", f"/keys/{made['id']}")
    assert again.status_code in (204, 404)


async def test_a_key_that_was_revoked_behind_our_back_is_refused_soon(service: Service, database: Database) -> None:
    made = await service.post("/keys", {"role": "reader", "label": "dashboard"})
    assert (await service.ask("GET", "/tasks", key=made["key"])).status_code == 200
    await execute(database, "UPDATE keys SET revoked_at = now() WHERE id = $1", made["id"])

    async def refused() -> bool:
        return (await service.ask("GET", "/tasks", key=made["key"])).status_code == 401

    await until(refused, within=PATIENCE)


async def test_the_keys_of_workers_are_not_listed(service: Service) -> None:
    await service.worker("somebody")
    labels = [key["label"] for key in (await service.get("/keys"))["items"]]
    assert labels == ["test"] * len(KEY_ROLES)


async def test_keys_are_listed_in_pages(service: Service) -> None:
    for number in range(5):
        await service.post("/keys", {"role": "reader", "label": f"key {number}"})
    whole = (await service.get("/keys"))["items"]
    first = await service.get("/keys", limit=4)
    second = await service.get("/keys", limit=500, after=first["next"])
    assert first["items"] + second["items"] == whole
    assert second["next"] is None
