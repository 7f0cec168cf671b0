"""Pushing metrics and reading them back, by whoever may."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.health.store import series
from app.kernel.access import Role
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute, value

_DEPTH = {"name": "depth", "kind": "gauge", "value": 3}


def _batch(*samples: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"batch_id": str(uuid4()), "samples": list(samples)} | fields


async def test_a_worker_pushes_with_its_own_key(service: Service, database: Database) -> None:
    worker = await service.worker("lab-1", capabilities=["ranking"])
    batch = _batch(_DEPTH | {"agent": "Ranking", "worker": "lab-1"}, _DEPTH | {"value": 5})
    answer = await worker.ask("/metrics/samples", batch)
    assert (answer.status_code, answer.json()) == (201, {"accepted": 2, "repeated": False})
    again = await worker.ask("/metrics/samples", batch)
    assert (again.status_code, again.json()) == (200, {"accepted": 2, "repeated": True})
    is_problem(await worker.ask("/metrics/samples", batch | {"samples": [_DEPTH]}), 422, "idempotency_mismatch")
    assert await value(database, "SELECT sum(samples) FROM metric_minutes") == 2
    # Another sender may use the same id.
    assert (await service.ask("POST", "/metrics/samples", batch, key=Role.SUPERVISOR)).status_code == 201


async def test_what_was_pushed_is_read_by_the_minute(service: Service) -> None:
    moment = datetime.now(UTC).replace(second=5, microsecond=0)
    samples = [
        {"name": "writes", "kind": "counter", "value": n, "at": (moment - timedelta(minutes=ago)).isoformat()} | labels
        for ago in (3, 2, 1)
        for n, labels in ((6, {"agent": "ranking"}), (12, {"agent": "evolution", "goal": "kepler"}))
    ]
    await service.post("/metrics/samples", _batch(*samples, *samples[:1]))
    whole = await service.get("/metrics/series", name="writes")
    assert (whole["kind"], len(whole["items"]), whole["next"]) == ("counter", 6, None)
    first = next(point for point in whole["items"] if point["agent"] == "ranking")
    assert (first["samples"], first["sum"], first["mean"], first["per_second"]) == (2, 12, 6, 0.2)
    pages: list[Any] = []
    after: str | None = None
    while True:
        page = await service.get("/metrics/series", name="writes", limit=4, **({"after": after} if after else {}))
        pages += page["items"]
        after = page["next"]
        if after is None:
            break
    assert pages == whole["items"]
    of_kepler = await service.get("/metrics/series", name="writes", goal="kepler", agent="evolution_agent")
    assert [(point["agent"], point["sum"]) for point in of_kepler["items"]] == [("evolution", 12)] * 3
    since = (moment - timedelta(minutes=2, seconds=10)).isoformat()
    assert len((await service.get("/metrics/series", name="writes", since=since))["items"]) == 4
    names = (await service.get("/metrics/names"))["items"]
    assert [(name["name"], name["kind"], name["series"]) for name in names] == [("writes", "counter", 2)]
    is_problem(await service.ask("GET", "/metrics/series", params={"name": "nothing"}), 404, "metric_not_found")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"value": "3"}, "samples.0.value"),
        ({"value": True}, "samples.0.value"),
        ({"value": None}, "samples.0.value"),
        ({"value": 1e13}, "samples.0.value"),
        ({"name": "No spaces"}, "samples.0.name"),
        ({"name": ""}, "samples.0.name"),
        ({"kind": "histogram"}, "samples.0.kind"),
        ({"agent": "nobody"}, "samples.0.agent"),
        ({"worker": ""}, "samples.0.worker"),
        ({"goal": "a\x00b"}, "samples.0.goal"),
        ({"at": "2026-01-01T00:00:00"}, "samples.0.at"),
        ({"extra": 1}, "samples.0.extra"),
    ],
)
async def test_what_is_no_sample_is_refused(service: Service, change: dict[str, Any], path: str) -> None:
    answer = await service.ask("POST", "/metrics/samples", _batch(_DEPTH | change))
    is_problem(answer, 422, "invalid_request", path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_what_is_no_number_is_refused(service: Service, number: str) -> None:
    body = f'{{"batch_id": "{uuid4()}", "samples": [{{"name": "a", "kind": "gauge", "value": {number}}}]}}'
    headers = {"Authorization": f"Bearer {service.keys[Role.ADMIN]}", "Content-Type": "application/json"}
    answer = await service.client.post("/metrics/samples", content=body, headers=headers)
    is_problem(answer, 422, "invalid_request", "samples.0.value")


async def test_a_batch_has_bounds(service: Service) -> None:
    for samples in ([], [_DEPTH] * 1001):
        answer = await service.ask("POST", "/metrics/samples", _batch(*samples))
        is_problem(answer, 422, "invalid_request", "samples")
    is_problem(await service.ask("POST", "/metrics/samples", {"samples": [_DEPTH]}), 422, "invalid_request", "batch_id")


async def test_a_clock_that_is_wrong_is_told(service: Service, database: Database) -> None:
    for at in ("2000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"):
        answer = await service.ask("POST", "/metrics/samples", _batch(_DEPTH, _DEPTH | {"at": at}))
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["path"] == "samples.1.at"
    assert await value(database, "SELECT count(*) FROM metric_minutes") == 0


async def test_labels_that_never_come_twice_are_refused_at_some_point(service: Service, database: Database) -> None:
    await execute(
        database,
        "INSERT INTO metric_series (name, kind, agent, worker, goal)"
        " SELECT 'depth', 'gauge', '', 'w' || n, '' FROM generate_series(1, 1999) AS n",
    )
    assert (await service.ask("POST", "/metrics/samples", _batch(_DEPTH | {"worker": "one"}))).status_code == 201
    answer = await service.ask("POST", "/metrics/samples", _batch(_DEPTH | {"worker": "two"}))
    problem = is_problem(answer, 422, "too_many_series")
    assert "2,000" in problem["detail"]
    assert (await service.ask("POST", "/metrics/samples", _batch(_DEPTH | {"worker": "one"}))).status_code == 201


async def test_bounds_of_time_are_sane(service: Service) -> None:
    await service.post("/metrics/samples", _batch(_DEPTH))
    for query in ({"until": "0001-01-01T00:00:00Z"}, {"since": "9999-12-31T00:00:00Z"}, {"after": "x"}, {"limit": 0}):
        answer = await service.ask("GET", "/metrics/series", params={"name": "depth"} | query)
        is_problem(answer, 422, "invalid_request", next(iter(query)))
    future = {"since": "2999-01-01T00:00:00Z", "until": "2998-01-01T00:00:00Z"}
    assert (await service.get("/metrics/series", name="depth", **future))["items"] == []


async def test_the_labels_of_a_worker_follow_from_its_key(service: Service) -> None:
    await service.submitted(goal_id="kepler")
    worker = await service.worker("lab-1")
    refused = [_DEPTH | {"worker": "lab-2"}, _DEPTH | {"goal": "kepler"}]
    for sample in refused:
        is_problem(await worker.ask("/metrics/samples", _batch(sample)), 422, "samples_refused")
    lease = await worker.lease()
    assert lease is not None
    assert (await worker.ask("/metrics/samples", _batch(refused[1]))).status_code == 201
    assert (await worker.on_lease(lease, "complete", result={})).status_code == 200
    assert (await worker.ask("/metrics/samples", _batch(refused[1]))).status_code == 201
    is_problem(await worker.ask("/metrics/samples", _batch(_DEPTH | {"goal": "newton"})), 422, "samples_refused")


async def test_readers_do_not_push_and_workers_do_not_read(service: Service) -> None:
    assert (await service.ask("POST", "/metrics/samples", _batch(_DEPTH), key=Role.READER)).status_code == 403
    assert (await service.ask("GET", "/metrics/names", key=Role.POOL)).status_code == 403


async def test_what_is_next_to_nothing_spoils_no_rate(service: Service, database: Database) -> None:
    """The database refuses to divide the least of all numbers by the seconds of a minute, and nobody would see more."""
    moment = (datetime.now(UTC) - timedelta(minutes=1)).replace(second=30).isoformat()
    least = {"name": "writes", "kind": "counter", "value": 5e-324, "at": moment}
    await service.post("/metrics/samples", _batch(least))
    async with database.transaction() as connection:
        assert [(value.name, value.value) for value in await series.current_values(connection)] == [("writes", 0.0)]
    assert await value(database, "SELECT total FROM metric_minutes") == 0.0


async def test_prometheus_reads_what_was_pushed_without_its_labels(service: Service) -> None:
    await service.post("/metrics/samples", _batch(_DEPTH | {"goal": "secret-goal", "agent": "ranking"}))
    text = (await service.ask("GET", "/metrics", key=Role.MONITOR)).text
    assert 'convener_pushed_gauge{agent="ranking",name="depth"} 3.0' in text
    assert "secret-goal" not in text
