"""Context Memory over the wire: conditions, lost answers, history and pages."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.memory.store import context as store
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute, value

_ENTRY = "/context/goals/kepler"


async def _put(
    service: Service,
    body: Any,
    *,
    match: str | None = None,
    path: str = _ENTRY,
    key: Role = Role.ADMIN,
    request: str | None = None,
) -> httpx.Response:
    condition = {"If-None-Match": "*"} if match is None else {"If-Match": f'"{match}"'}
    repeatable = {"Idempotency-Key": request} if request else {}
    return await service.ask("PUT", path, body, key=key, headers=condition | repeatable)


async def test_an_entry_is_created_changed_and_read(service: Service) -> None:
    made = await _put(service, {"elo": 1200})
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    changed = await _put(service, {"elo": 1250}, match="1", key=Role.SUPERVISOR)
    assert (changed.status_code, changed.headers["etag"], changed.json()["version"]) == (200, '"2"', 2)
    answer = await service.ask("GET", _ENTRY, key=Role.READER)
    assert answer.headers["etag"] == '"2"'
    assert answer.json()["value"] == {"elo": 1250}
    assert answer.json()["written_by"] == service.keys[Role.SUPERVISOR].split("_")[1]
    assert (await service.get(_ENTRY, version=1))["value"] == {"elo": 1200}


@pytest.mark.parametrize("body", [{}, [], [1, {"a": None}], "text", 7, 1.5, True, None, {"ü": "☃"}])
async def test_any_json_value_is_kept_as_it_is(service: Service, body: Any) -> None:
    headers = {"If-None-Match": "*", "Content-Type": "application/json"}
    answer = await service.ask("PUT", _ENTRY, content=json.dumps(body), headers=headers)
    assert answer.status_code == 201
    found = await service.get(_ENTRY)
    assert (found["value"], found["deleted"]) == (body, False)


@pytest.mark.parametrize("content", ["NaN", '{"elo": 1200}', "\xff", ""])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
async def test_what_does_not_call_itself_json_is_refused(service: Service, kind: str, content: str) -> None:
    headers = {"If-None-Match": "*", "Content-Type": kind}
    answer = await service.ask("PUT", _ENTRY, content=content.encode("latin-1"), headers=headers)
    is_problem(answer, 422, "invalid_request")
    is_problem(await service.ask("GET", _ENTRY), 404, "context_not_found")


async def test_a_write_must_say_what_it_builds_on(service: Service) -> None:
    is_problem(await service.ask("PUT", _ENTRY, {}), 428, "precondition_required")
    is_problem(await service.ask("DELETE", _ENTRY), 428, "precondition_required")
    for headers in (
        {"If-Match": "1"},
        {"If-Match": "*"},
        {"If-Match": 'W/"1"'},
        {"If-Match": '"0"'},
        {"If-Match": '"1", "2"'},
        {"If-Match": '"' + "9" * 30 + '"'},
        {"If-None-Match": '"1"'},
        {"If-Match": '"1"', "If-None-Match": "*"},
    ):
        is_problem(await service.ask("PUT", _ENTRY, {}, headers=headers), 422, "invalid_request")
    is_problem(await service.ask("GET", _ENTRY), 404, "context_not_found")


async def test_a_stale_write_changes_nothing(service: Service, database: Database) -> None:
    is_problem(await _put(service, {"n": 1}, match="1"), 412, "version_stale")
    await _put(service, {"n": 1})
    is_problem(await _put(service, {"n": 2}), 412, "version_stale")
    await _put(service, {"n": 2}, match="1")
    problem = is_problem(await _put(service, {"n": 3}, match="1"), 412, "version_stale")
    assert "version 2" in problem["detail"]
    is_problem(await _put(service, {"n": 3}, match="3"), 412, "version_stale")
    assert await value(database, "SELECT count(*) FROM context_entries") == 2


async def test_a_lost_answer_is_given_again(service: Service, database: Database) -> None:
    first = await _put(service, {"n": 1})
    again = await _put(service, {"n": 1})
    assert (again.status_code, again.json()) == (201, first.json())
    second = await _put(service, {"n": 2}, match="1")
    repeated = await _put(service, {"n": 2}, match="1")
    assert (repeated.status_code, repeated.json()) == (200, second.json())
    assert await value(database, "SELECT count(*) FROM context_entries") == 2


async def test_it_is_given_again_also_after_others_have_gone_on(service: Service) -> None:
    """What the write did has been done; a refusal would make its writer do it once more."""
    await _put(service, {"n": 1})
    await _put(service, {"n": 2}, match="1")
    await _put(service, {"n": 3}, match="2", key=Role.OPERATOR)
    repeated = await _put(service, {"n": 2}, match="1")
    assert (repeated.status_code, repeated.headers["etag"]) == (200, '"2"')
    is_problem(await _put(service, {"n": 4}, match="2"), 412, "version_stale")


async def test_an_equal_write_of_somebody_else_is_no_repetition(service: Service) -> None:
    await _put(service, {"locked": False})
    assert (await _put(service, {"locked": True}, match="1")).status_code == 200
    is_problem(await _put(service, {"locked": True}, match="1", key=Role.SUPERVISOR), 412, "version_stale")
    assert (await _put(service, {"locked": False}, match="2", request="one")).status_code == 200
    assert (await _put(service, {"locked": False}, match="2", request="one")).status_code == 200
    is_problem(await _put(service, {"locked": False}, match="2", request="other"), 412, "version_stale")
    is_problem(await _put(service, {"locked": False}, match="2"), 412, "version_stale")


async def test_exactly_one_of_many_rivals_wins(service: Service) -> None:
    await _put(service, 0)
    answers = await asyncio.gather(*(_put(service, n, match="1") for n in range(1, 13)))
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 11
    won = next(n for n, answer in enumerate(answers, 1) if answer.status_code == 200)
    assert (await service.get(_ENTRY))["value"] == won


async def test_a_deletion_is_a_version_like_any_other(service: Service) -> None:
    await _put(service, {"n": 1})
    is_problem(await service.ask("DELETE", _ENTRY, headers={"If-Match": '"7"'}), 412, "version_stale")
    deleted = await service.ask("DELETE", _ENTRY, headers={"If-Match": '"1"'})
    assert (deleted.status_code, deleted.json()["version"], deleted.json()["deleted"]) == (200, 2, True)
    again = await service.ask("DELETE", _ENTRY, headers={"If-Match": '"1"'})
    assert again.json() == deleted.json()
    is_problem(await service.ask("DELETE", _ENTRY, headers={"If-Match": '"2"'}), 404, "context_not_found")
    is_problem(await service.ask("GET", _ENTRY), 404, "context_not_found")
    assert (await service.get(_ENTRY, version=2))["value"] is None
    assert (await service.get("/context/goals"))["items"] == []
    is_problem(await _put(service, {"n": 1}, match="1"), 412, "version_stale")
    back = await _put(service, {"n": 1})
    assert (back.status_code, back.headers["etag"]) == (201, '"3"')
    assert (await _put(service, {"n": 1})).headers["etag"] == '"3"'
    nothing = await service.ask("DELETE", "/context/goals/none", headers={"If-Match": '"1"'})
    is_problem(nothing, 404, "context_not_found")


async def test_a_reader_that_knows_the_version_is_told_so(service: Service) -> None:
    await _put(service, {"n": 1})
    for known in ('"1"', '"7", W/"1"', "*"):
        answer = await service.ask("GET", _ENTRY, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", '"1"')
    assert (await service.ask("GET", _ENTRY, headers={"If-None-Match": '"2"'})).status_code == 200


async def test_the_history_says_who_wrote_what_and_when(service: Service) -> None:
    for n in range(5):
        await _put(service, {"n": n}, match=str(n) if n else None)
    await service.ask("DELETE", _ENTRY, headers={"If-Match": '"5"'})
    whole = await service.get(f"{_ENTRY}/history")
    assert [(v["version"], v["value"]) for v in whole["items"]] == [
        (6, None),
        *((n, {"n": n - 1}) for n in range(5, 0, -1)),
    ]
    assert all(v["written_by"] and v["written_at"] for v in whole["items"])
    assert whole["next"] is None
    first = await service.get(f"{_ENTRY}/history", limit=4)
    second = await service.get(f"{_ENTRY}/history", limit=4, after=first["next"])
    assert first["items"] + second["items"] == whole["items"]
    is_problem(await service.ask("GET", "/context/goals/none/history"), 404, "context_not_found")
    is_problem(await service.ask("GET", _ENTRY, params={"version": 9}), 404, "context_not_found")


async def test_a_namespace_is_listed_in_pages(service: Service) -> None:
    keys = [f"k{n:02}" for n in range(9)]
    for key in keys:
        await _put(service, {"key": key}, path=f"/context/one/{key}")
        await _put(service, {"key": key, "again": 1}, path=f"/context/one/{key}", match="1")
    await _put(service, 1, path="/context/another/k")
    await service.ask("DELETE", "/context/one/k03", headers={"If-Match": '"2"'})
    left = [key for key in keys if key != "k03"]
    whole = await service.get("/context/one")
    assert [(item["key"], item["version"]) for item in whole["items"]] == [(key, 2) for key in left]
    assert "value" not in whole["items"][0]
    for limit in (1, 2, 4, 9):
        seen: list[str] = []
        after: str | None = ""
        while after is not None:
            page = await service.get("/context/one", limit=limit, after=after, values=True)
            seen += [item["value"]["key"] for item in page["items"]]
            after = page["next"]
        assert seen == left
    assert (await service.get("/context/nothing")) == {"items": [], "next": None, "size": None}


async def test_pages_of_large_values_are_short(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAGE_BYTES", 1000)
    for n in range(4):
        await _put(service, {"text": f"{n}" + "x" * 700}, path=f"/context/large/k{n}")
    page = await service.get("/context/large", values=True)
    assert 1 <= len(page["items"]) < 4 or page["next"] is None
    seen, after = [item["key"] for item in page["items"]], page["next"]
    while after is not None:
        page = await service.get("/context/large", values=True, after=after)
        seen, after = seen + [item["key"] for item in page["items"]], page["next"]
    assert seen == ["k0", "k1", "k2", "k3"]


async def test_what_is_not_allowed(service: Service) -> None:
    is_problem(await _put(service, {"text": "x" * (1 << 20)}), 413, "payload_too_large")
    for path in ("/context/.hidden/k", "/context/a b/k", "/context/a/" + "k" * 201, "/context/ü/k"):
        is_problem(await _put(service, {}, path=path), 422, "invalid_request")
    for content in ("", "NaN", '"\\u0000"', "1e999"):
        headers = {"If-None-Match": "*", "Content-Type": "application/json"}
        answer = await service.ask("PUT", _ENTRY, content=content, headers=headers)
        assert answer.status_code == 422, content
    assert (await _put(service, {}, key=Role.READER)).status_code == 403


async def test_old_versions_are_pruned_and_numbers_go_on(service: Service, database: Database) -> None:
    for n in range(6):
        await _put(service, n, match=str(n) if n else None)
    await execute(database, "UPDATE context_entries SET written_at = now() - interval '40 days' WHERE version < 6")
    async with database.transaction() as connection:
        assert await store.prune(connection, keep=3, days=30) == (3, None)
        assert await store.prune(connection, keep=3, days=30) == (0, None)
    assert [v["version"] for v in (await service.get(f"{_ENTRY}/history"))["items"]] == [6, 5, 4]
    await service.ask("DELETE", _ENTRY, headers={"If-Match": '"6"'})
    await execute(database, "UPDATE context_entries SET written_at = now() - interval '40 days'")
    async with database.transaction() as connection:
        await store.prune(connection, keep=1, days=30)
    assert await value(database, "SELECT count(*) FROM context_entries") == 1
    assert (await _put(service, "back")).headers["etag"] == '"8"'


async def test_the_last_writer_wins_without_a_read(service: Service) -> None:
    path = "/context/last/k?overwrite=true"
    answers = await asyncio.gather(*(service.ask("PUT", path, number) for number in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert sorted(answer.json()["version"] for answer in answers) == list(range(1, 9))
    last = next(number for number, answer in enumerate(answers) if answer.json()["version"] == 8)
    assert (await service.get("/context/last/k"))["value"] == last
    both = await service.ask("PUT", path, 1, headers={"If-Match": '"8"'})
    is_problem(both, 422, "invalid_request")


async def test_the_size_of_a_namespace_is_told_where_it_is_asked_for(service: Service) -> None:
    for key, number in (("a", "x" * 98), ("b", 1), ("c", 2)):
        for content in ("former", number):
            assert (await service.ask("PUT", f"/context/sized/{key}?overwrite=true", content)).is_success
    await service.ask("DELETE", "/context/sized/c", headers={"If-Match": '"2"'})
    page = await service.get("/context/sized", size=True, limit=1)
    assert (len(page["items"]), page["size"]) == (1, {"entries": 2, "bytes": 101})
    assert (await service.get("/context/sized"))["size"] is None
    assert (await service.get("/context/nothing", size=True))["size"] == {"entries": 0, "bytes": 0}
