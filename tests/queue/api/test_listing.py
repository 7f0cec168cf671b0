"""Searching tasks over HTTP."""

from typing import Any

import pytest

from app.db.database import Database
from app.queue.store import listing
from tests.support.dead_letters import fill
from tests.support.problems import is_problem
from tests.support.service import Service


async def _found(service: Service, **query: Any) -> list[str]:
    ids: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = await service.get("/tasks", **query, **after)
        ids += [task["id"] for task in page["items"]]
        if page["next"] is None:
            return ids
        after = {"after": page["next"]}


async def test_every_filter(service: Service) -> None:
    low = await service.submitted(priority="low", labels={"team": "blue", "url": "http://a:1"})
    high = await service.submitted(priority="high", labels={"team": "blue"}, agent_type="ranking", goal_id="g")
    worker = await service.worker()
    lease = await worker.lease(agent_types=["ranking"], wait_seconds=20)
    for query, wanted in (
        ({"priority": "low"}, [low]),
        ({"label": "team:blue"}, [high, low]),
        ({"label": ["team:blue", "url:http://a:1"]}, [low]),
        ({"worker_id": worker.id}, [high]),
        ({"state": ["pending", "executing"]}, [high, low]),
        ({"state": "executing"}, [high]),
        ({"created_after": "2000-01-01T00:00:00Z", "created_before": "2100-01-01T00:00:00Z"}, [high, low]),
        ({"created_after": "2100-01-01T00:00:00Z"}, []),
        ({"finished_after": "2000-01-01T00:00:00Z"}, []),
    ):
        assert await _found(service, **query) == wanted, query
    error = {"code": "unsafe", "message": "m", "retryable": False}
    await worker.on_lease(lease, "fail", error=error)
    for query in ({"code": "unsafe"}, {"finished_after": "2000-01-01T00:00:00Z"}, {"state": "failed", "goal_id": "g"}):
        assert await _found(service, **query) == [high], query
    assert await _found(service, finished_before="2000-01-01T00:00:00Z") == []
    assert await _found(service, state=["failed", "pending"]) == [high, low]


async def test_a_page_that_reached_its_scan_limit_leads_on(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (oldest,) = await fill(database, 1, labels='{"team": "blue"}')
    await fill(database, 40)
    default = listing.page.__kwdefaults__
    assert default is not None
    monkeypatch.setitem(default, "max_rows", 10)
    page = await service.get("/tasks", label="team:blue")
    assert page["items"] == []
    assert page["next"] is not None
    assert await _found(service, label="team:blue") == [str(oldest)]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"label": "blue"}, "label.0"),
        ({"label": ["a:b"] * 11}, "label"),
        ({"priority": "urgent"}, "priority"),
        ({"state": ["pending", "lost"]}, "state.1"),
        ({"worker_id": "me"}, "worker_id"),
        ({"created_after": "yesterday"}, "created_after"),
        ({"finished_before": "2026-01-01T00:00:00"}, "finished_before"),
        ({"goal_id": ""}, "goal_id"),
        ({"gaol_id": "misspelt"}, "gaol_id"),
    ],
)
async def test_a_query_that_is_not_allowed(service: Service, query: dict[str, Any], field: str) -> None:
    is_problem(await service.ask("GET", "/tasks", params=query), 422, "invalid_request", field)
