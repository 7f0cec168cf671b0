"""Reading and checking the audit log, and who is noted for reading."""

import hashlib
import json
from typing import Any

import pytest

from app.db.database import Database
from app.http import routing
from app.kernel.access import Role, Scope
from tests.dashboard.browsers import browser
from tests.http.access_table import TABLE
from tests.support.config_calls import change, changed
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import fetch, value


async def test_who_when_why_before_and_after(service: Service) -> None:
    await changed(service, {"worker_pool": {"max_workers": 200}}, 1, reason="the grant ends: 30 % less")
    first, initial = (await service.get("/audit"))["items"]
    assert (first["action"], first["reason"]) == ("config.patch", "the grant ends: 30 % less")
    assert first["by"] == service.keys[Role.OPERATOR].split("_")[1]
    assert first["before"]["version"] == 1
    assert (first["after"]["version"], first["after"]["worker_pool"]["max_workers"]) == (2, 200)
    assert (initial["action"], initial["by"], initial["before"]) == ("config.initial", "convener", None)
    assert first["at"] > initial["at"]


async def test_anybody_can_compute_the_digests(service: Service) -> None:
    await changed(service, {"agent_weights": {"generation_agent": 1 / 3}}, 1, reason="größer")
    await changed(service, {"worker_pool": {"scale_down_threshold": 1e-7}}, 2)
    answer = await service.ask("GET", "/audit")
    previous = bytes(32)
    for item in reversed(json.loads(answer.content)["items"]):
        digest = item.pop("digest")
        content = {name: value for name, value in item.items() if name != "label" or value is not None}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(previous + text.encode()).digest()
        assert digest == previous.hex()
    verdict = await service.post("/audit/verify", {}, key=Role.READER)
    assert verdict == {"ok": True, "entries": 3, "end": {"seq": 3, "digest": previous.hex()}, "violation": None}


async def test_it_is_read_in_pages_and_by_kind(service: Service) -> None:
    for version in range(1, 5):
        await changed(service, {"worker_pool": {"max_workers": 200 + version}}, version)
    whole = (await service.get("/audit"))["items"]
    assert [item["seq"] for item in whole] == [5, 4, 3, 2, 1]
    first = await service.get("/audit", limit=3)
    second = await service.get("/audit", limit=3, after=first["next"])
    assert (first["items"] + second["items"], second["next"]) == (whole, None)
    assert [item["seq"] for item in (await service.get("/audit", action="config.initial"))["items"]] == [1]
    assert (await service.get("/audit", action="nothing"))["items"] == []


@pytest.mark.parametrize(
    ("change", "unreadable"),
    [
        ("after = '{\"n\": 1e400}'", "after"),
        ("after = repeat('9', 6000)::json", "after"),
        ("before = (repeat('[', 3000) || repeat(']', 3000))::json, after = '\"\\ud800\"'", "before and after"),
        ("after = (repeat('[', 300) || repeat(']', 300))::json", "after"),
        ("at = '4000-01-01 BC'", "at"),
        ("at = 'infinity', after = '1e999'", "at and after"),
    ],
)
async def test_an_entry_that_cannot_be_read_is_named_and_keeps_back_no_other(
    service: Service, database: Database, change: str, unreadable: str
) -> None:
    await changed(service, {"worker_pool": {"max_workers": 200}}, 1)
    sound = (await service.get("/audit"))["items"]
    async with (await database.pool()).acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(f"UPDATE audit SET {change} WHERE seq = 1")
    items = (await service.get("/audit"))["items"]
    assert items[0] == sound[0]
    assert "unreadable" not in items[0], "of which the digest is made as before"
    blanks = dict.fromkeys(unreadable.split(" and "))
    assert items[1] == sound[1] | blanks | {"unreadable": unreadable}
    async with browser(service, Role.READER) as reader:
        assert f"in the database: {unreadable}." in await reader.page("/dashboard/audit")
    verdict = await service.post("/audit/verify", {})
    assert (verdict["ok"], verdict["entries"]) == (False, 0)


async def test_an_end_that_was_noted_must_be_there(service: Service, database: Database) -> None:
    await service.get("/config")
    end = (await service.post("/audit/verify", {}))["end"]
    assert (await service.post("/audit/verify", {"known": end}))["ok"]
    for wrong in ({**end, "digest": "0" * 64}, {**end, "seq": 2}):
        verdict = await service.post("/audit/verify", {"known": wrong})
        assert not verdict["ok"]
    wrong_bodies: list[tuple[Any, str]] = [
        ({"known": {**end, "digest": "x"}}, "known.digest"),
        ({"known": {**end, "seq": "1"}}, "known.seq"),
        ({"known": {}}, "known.seq"),
    ]
    for body, field in wrong_bodies:
        is_problem(await service.ask("POST", "/audit/verify", body), 422, "invalid_request", field)
    assert await value(database, "SELECT count(*) FROM audit") == 1


async def test_trusted_testers_are_seen_reading(service: Service) -> None:
    reads = [("GET", "/config"), ("GET", "/config/history"), ("GET", "/config/versions/1"), ("GET", "/audit")]
    for method, path in reads:
        assert (await service.ask(method, path, key=Role.READER)).status_code == 200
    assert len((await service.get("/audit"))["items"]) == 1
    answer = await change(service, "POST", {"mode": "trusted_tester", "reason": "guests"}, 1, "/config/mode")
    assert answer.json()["conduct"]["audits_reads"]
    for method, path in [*reads, ("POST", "/audit/verify")]:
        asked: Any = {} if method == "POST" else None
        assert (await service.ask(method, path, asked, key=Role.READER)).status_code == 200
    known = await service.ask("GET", "/config", key=Role.READER, headers={"If-None-Match": '"2"'})
    assert known.status_code == 304
    items = (await service.get("/audit"))["items"][::-1][2:]
    paths = [path for _, path in reads] + ["/audit/verify", "/config"]
    assert [item["after"]["address"] for item in items] == paths
    assert [item["action"] for item in items] == [f"{path.split('/')[1]}.read" for path in paths]
    assert {item["by"] for item in items} == {service.keys[Role.READER].split("_")[1]}
    assert (await service.post("/audit/verify", {}))["ok"]


async def test_trusted_testers_are_seen_reading_whatever_has_content(service: Service, database: Database) -> None:
    answer = await change(service, "POST", {"mode": "trusted_tester", "reason": "guests"}, 1, "/config/mode")
    assert answer.status_code == 200, answer.text
    task_id, absent = await service.submitted(), "00000000-0000-0000-0000-000000000007"
    await service.ask("PUT", "/context/n/k", 1, headers={"If-None-Match": "*"})
    checkpoint = await service.post("/checkpoints", {"reason": "to be read"})
    await service.post("/goals", {"id": "g", "objective": "to know"})
    paths = [
        *("/tasks?limit=5", f"/tasks/{task_id}", "/dead-letters", "/events?limit=5", "/outputs", "/keys", "/goals"),
        *("/goals/g", "/context/n", "/context/n/k", "/context/n/k/history", "/checkpoints"),
        *(f"/checkpoints/{checkpoint['id']}", f"/checkpoints/{checkpoint['id']}/content"),
    ]
    before = await value(database, "SELECT max(seq) FROM audit")
    for path in paths:
        assert (await service.ask("GET", path)).status_code == 200, path
    assert (await service.ask("GET", f"/tasks/{absent}")).status_code == 404
    rows = await fetch(
        database, "SELECT action, after ->> 'address' AS path FROM audit WHERE seq > $1 ORDER BY seq", before
    )
    assert [row["path"] for row in rows] == paths
    assert [row["action"] for row in rows] == [f"{path.split('/')[1].split('?')[0]}.read" for path in paths]


def test_every_route_that_shows_content_or_keys_is_recorded() -> None:
    shown = {
        name.split("/")[1]
        for name, row in TABLE.items()
        if name.startswith("GET ") and {Scope.CONTENT, Scope.KEYS} & set(row.scopes)
    }
    assert shown <= routing.RECORDED
