"""Changing the configuration: conditions, repetitions, rivals, and who may."""

import asyncio
from typing import Any

import pytest

from app.db.database import Database
from app.kernel.access import Role
from tests.support.config_calls import SECTIONS, change, changed, document
from tests.support.problems import is_problem
from tests.support.service import KEY_ROLES, Service, serving
from tests.support.sql import fetch, until_blocked, value

_PATCH = {"worker_pool": {"max_workers": 200}}


async def test_a_change_needs_the_version_that_it_builds_on(service: Service) -> None:
    whole = await document(service)
    calls: list[tuple[str, str, Any]] = [
        ("PUT", "/config", whole),
        ("PATCH", "/config", _PATCH),
        ("POST", "/config/rollback", {"version": 1}),
        ("POST", "/config/mode", {"mode": "development"}),
    ]
    for method, path, body in calls:
        is_problem(await change(service, method, body, None, path), 428, "precondition_required")
        problem = is_problem(await change(service, method, body, 2, path), 412, "version_stale")
        assert "version 1" in problem["detail"]
        for wrong in ("1", "*", 'W/"1"', '"x"', '"1", "2"', '""', f'"{10**30}"'):
            answer = await service.ask(method, path, body, headers={"If-Match": wrong})
            is_problem(answer, 422, "invalid_request", "header.if-match")
    assert (await service.get("/config"))["version"] == 1


async def test_a_change_that_is_out_of_date_changes_nothing(service: Service) -> None:
    await changed(service, _PATCH, 1)
    is_problem(await change(service, "PATCH", {"worker_pool": {"max_workers": 300}}, 1), 412, "version_stale")
    assert (await service.get("/config"))["worker_pool"]["max_workers"] == 200


async def test_reading_again_what_one_knows_already(service: Service) -> None:
    first = await service.ask("GET", "/config")
    tag = first.headers["ETag"]
    for known in (tag, f"W/{tag}", f'"9", {tag}', "*"):
        answer = await service.ask("GET", "/config", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", tag)
    await changed(service, _PATCH, 1)
    answer = await service.ask("GET", "/config", headers={"If-None-Match": tag})
    assert (answer.status_code, answer.headers["ETag"]) == (200, '"2"')


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/config", None),
        ("PATCH", "/config", {"agent_weights": {"generation_agent": 0.5}}),
        ("POST", "/config/rollback", {"version": 1, "reason": "back"}),
        ("POST", "/config/mode", {"mode": "trusted_tester", "reason": "guests"}),
    ],
)
async def test_an_answer_that_was_lost_is_given_again(service: Service, method: str, path: str, body: Any) -> None:
    await changed(service, _PATCH, 1)
    if body is None:
        body = await document(service)
        # Weights that are scaled on the way in are still the same body.
        body["agent_weights"] = dict.fromkeys(body["agent_weights"], 1)
    first = await change(service, method, body, 2, path)
    again = await change(service, method, body, 2, path)
    assert (first.status_code, again.status_code) == (200, 200), again.text
    assert first.json() == again.json()
    assert again.headers["ETag"] == '"3"'
    assert (await service.get("/config"))["version"] == 3
    # Somebody else's equal change is another change.
    is_problem(await change(service, method, body, 2, path, key=Role.ADMIN), 412, "version_stale")
    # What it did has been done, also after others have gone on from there.
    assert (await change(service, "PATCH", {"worker_pool": {"worker_timeout_seconds": 99}}, 3, reason="x")).is_success
    assert (await change(service, method, body, 2, path)).headers["ETag"] == '"3"'


async def test_a_change_of_nothing_makes_no_version(service: Service) -> None:
    whole = await document(service)
    for method, path, body in (
        ("PUT", "/config", whole),
        ("PATCH", "/config", {}),
        ("POST", "/config/rollback", {"version": 1}),
        ("POST", "/config/mode", {"mode": "production"}),
    ):
        answer = await change(service, method, body, 1, path)
        assert (answer.status_code, answer.json()["version"], answer.json()["changes"]) == (200, 1, [])
    assert len((await service.get("/config/history"))["items"]) == 1


async def test_of_two_that_build_on_the_same_version_one_wins(service: Service, database: Database) -> None:
    """The second is let wait for the first by a transaction that holds the tail of the audit log."""
    await service.get("/config")
    async with (await database.pool()).acquire() as held:
        transaction = held.transaction()
        await transaction.start()
        await held.execute("SELECT pg_advisory_xact_lock(hashtextextended('convener audit', 0))")
        bodies = [{"worker_pool": {"max_workers": most}} for most in (201, 202)]
        rivals = [asyncio.create_task(change(service, "PATCH", body, 1)) for body in bodies]
        await until_blocked(database, 2)
        await transaction.rollback()
    answers = await asyncio.gather(*rivals)
    assert sorted(answer.status_code for answer in answers) == [200, 412]
    (winner,) = (answer.json() for answer in answers if answer.status_code == 200)
    assert (await service.get("/config"))["worker_pool"] == winner["worker_pool"]
    rows = await fetch(database, "SELECT action FROM audit ORDER BY seq")
    assert [row["action"] for row in rows] == ["config.initial", "config.patch"]


async def test_many_rivals_of_many_processes(service: Service, database: Database) -> None:
    await service.get("/config")
    async with serving(database.url, service.keys) as other:
        bodies = [{"worker_pool": {"max_workers": 300 + number}} for number in range(12)]
        services = [service, other] * 6
        answers = await asyncio.gather(
            *(change(which, "PATCH", body, 1) for which, body in zip(services, bodies, strict=True))
        )
        assert sorted(answer.status_code for answer in answers) == [200] + [412] * 11
        assert (await other.get("/config"))["version"] == 2
    assert await value(database, "SELECT count(*) FROM audit") == 2


async def test_a_new_database_is_written_once_whoever_comes_first(service: Service, database: Database) -> None:
    async with serving(database.url, service.keys, mode="development") as other:
        answers = await asyncio.gather(*(which.get("/config") for which in [service, other] * 5))
        assert {answer["version"] for answer in answers} == {1}
        # Whichever mode was first, from then on all agree.
        assert len({answer["mode"] for answer in answers}) == 1
    assert await value(database, "SELECT count(*) FROM config_versions") == 1
    assert await value(database, "SELECT count(*) FROM audit") == 1


async def test_history_is_read_in_pages_and_says_what_changed(service: Service) -> None:
    for version, most in enumerate((201, 202, 203, 204), start=1):
        await changed(service, {"worker_pool": {"max_workers": most}}, version, reason=f"step {version}")
    whole = (await service.get("/config/history"))["items"]
    assert [item["version"] for item in whole] == [5, 4, 3, 2, 1]
    assert whole[0]["changes"] == [{"path": "worker_pool.max_workers", "before": 203, "after": 204}]
    assert (whole[0]["action"], whole[0]["reason"]) == ("patch", "step 4")
    assert (whole[-1]["action"], whole[-1]["changed_by"], whole[-1]["changes"]) == ("initial", "convener", [])
    items, after = [], None
    while True:
        page = await service.get("/config/history", limit=2, **({"after": after} if after else {}))
        items += page["items"]
        after = page["next"]
        if after is None:
            break
    assert items == whole
    former = await service.get("/config/versions/3")
    assert (former["version"], former["worker_pool"]["max_workers"]) == (3, 202)
    is_problem(await service.ask("GET", "/config/versions/6"), 404, "config_version_not_found")


async def test_a_former_version_is_put_back_with_its_mode(service: Service) -> None:
    first = await document(service)
    await change(service, "POST", {"mode": "development", "reason": "a quiet week"}, 1, "/config/mode")
    await changed(service, {"worker_pool": {"max_workers": 4}}, 2)
    answer = (await change(service, "POST", {"version": 1, "reason": "busy again"}, 3, "/config/rollback")).json()
    assert (answer["version"], answer["mode"], answer["action"]) == (4, "production", "rollback")
    assert {name: answer[name] for name in SECTIONS} == first
    missing = await change(service, "POST", {"version": 9}, 4, "/config/rollback")
    is_problem(missing, 404, "config_version_not_found")
    for wrong in ({"version": 0}, {"version": True}, {"version": "1"}, {"version": 1.0}, {}, {"version": 1, "x": 1}):
        assert (await change(service, "POST", wrong, 4, "/config/rollback")).status_code == 422


async def test_a_dry_run_only_shows(service: Service, database: Database) -> None:
    answer = await changed(service, _PATCH, 1, dry_run=True)
    assert (answer["dry_run"], answer["version"], answer["worker_pool"]["max_workers"]) == (True, 1, 200)
    assert answer["changes"] == [{"path": "worker_pool.max_workers", "before": 1000, "after": 200}]
    assert (await service.get("/config"))["worker_pool"]["max_workers"] == 1000
    assert await value(database, "SELECT count(*) FROM audit") == 1
    await changed(service, _PATCH, 1)
    is_problem(await change(service, "PATCH", _PATCH, 1, dry_run=True), 412, "version_stale")


async def test_a_misspelt_dry_run_changes_nothing(service: Service) -> None:
    calls = [("PUT", await document(service), "/config"), ("PATCH", _PATCH, "/config")]
    calls += [("POST", {"version": 1}, "/config/rollback"), ("POST", {"mode": "development"}, "/config/mode")]
    for method, body, path in calls:
        answer = await change(service, method, body, 1, path, **{"dry-run": "true"})
        is_problem(answer, 422, "invalid_request", "dry-run")
    assert (await service.get("/config"))["version"] == 1


async def test_only_operators_and_admins_change_it(service: Service) -> None:
    version = 1
    for role in KEY_ROLES:
        answer = await change(service, "PATCH", {"worker_pool": {"max_workers": 500 + version}}, version, key=role)
        if role in (Role.OPERATOR, Role.ADMIN):
            assert answer.status_code == 200
            version += 1
        else:
            is_problem(answer, 403, "forbidden")
    for role in (Role.READER, Role.SUPERVISOR):
        assert (await service.ask("GET", "/config", key=role)).status_code == 200
        assert (await service.ask("GET", "/audit", key=role)).status_code == 200


async def test_a_patch_may_call_itself_one(service: Service) -> None:
    headers = {"If-Match": '"1"', "Content-Type": "application/merge-patch+json"}
    content = b'{"worker_pool": {"max_workers": 77}}'
    answer = await service.ask("PATCH", "/config", content=content, headers=headers)
    assert answer.json()["worker_pool"]["max_workers"] == 77


async def test_nothing_comes_before_the_first_version(service: Service) -> None:
    assert await service.get("/config/history", after=1, limit=1) == {"items": [], "next": None}
