"""Submits over HTTP: safe to repeat, all or nothing, together where they arrive together."""

import asyncio
from uuid import uuid4

import pytest

from app.db.database import Database
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import value


async def test_a_chosen_id_makes_submitting_safe_to_repeat(service: Service, database: Database) -> None:
    body = {"id": str(uuid4()), "agent_type": "evolution", "payload": {"a": 1, "b": 2}, "labels": {"x": "y"}}
    first = await service.ask("POST", "/tasks", body)
    again = await service.ask("POST", "/tasks", body | {"payload": {"b": 2, "a": 1}, "agent_type": "EvolutionAgent"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() | {"created": False} == again.json()
    assert first.headers["location"] == again.headers["location"] == f"/tasks/{body['id']}"
    other = await service.ask("POST", "/tasks", body | {"payload": {"a": 2}})
    assert (other.status_code, other.json()["code"]) == (409, "task_conflict")
    assert await value(database, "SELECT count(*) FROM tasks") == 1
    assert await value(database, "SELECT count(*) FROM every_event") == 1


async def test_the_same_task_submitted_by_many_at_once_is_one(service: Service, database: Database) -> None:
    body = {"id": str(uuid4()), "agent_type": "evolution"}
    answers = await asyncio.gather(*(service.ask("POST", "/tasks", body) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert await value(database, "SELECT count(*) FROM tasks") == 1


async def test_single_submits_that_arrive_together_share_a_transaction(service: Service, database: Database) -> None:
    """And do not fail together: those that are refused are refused alone."""
    known = {"id": str(uuid4()), "agent_type": "ranking"}
    await service.post("/tasks", known)
    bodies = [{"agent_type": "ranking", "payload": {"n": n}} for n in range(40)]
    refused = known | {"priority": "high"}
    answers = await asyncio.gather(*(service.ask("POST", "/tasks", body) for body in bodies))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 40
    # A lone call runs at once, and all that came meanwhile follow together.
    assert await value(database, "SELECT count(DISTINCT xmin::text) FROM tasks") < 20
    answers = await asyncio.gather(
        *(service.ask("POST", "/tasks", body) for body in [*bodies[:10], refused, *bodies[:10]])
    )
    assert sorted(answer.status_code for answer in answers) == [201] * 20 + [409]
    assert await value(database, "SELECT count(*) FROM tasks") == 61


async def test_a_batch_is_all_or_nothing(service: Service, database: Database) -> None:
    known = {"id": str(uuid4()), "agent_type": "ranking"}
    await service.post("/tasks", known)
    batch = {"tasks": [{"agent_type": "ranking"}, known, {"agent_type": "evolution", "id": str(uuid4())}]}
    done = (await service.post("/tasks/batch", batch))["tasks"]
    assert [task["created"] for task in done] == [True, False, True]
    before = await value(database, "SELECT count(*) FROM tasks")
    conflict = {"tasks": [{"agent_type": "ranking"}, known | {"priority": "high"}]}
    refused = await service.ask("POST", "/tasks/batch", conflict)
    assert (refused.status_code, refused.json()["code"]) == (409, "task_conflict")
    assert await value(database, "SELECT count(*) FROM tasks") == before


async def test_a_batch_of_a_thousand(service: Service, database: Database) -> None:
    done = await service.post("/tasks/batch", {"tasks": [{"agent_type": "ranking"}] * 1000})
    assert len({task["id"] for task in done["tasks"]}) == 1000
    assert await value(database, "SELECT count(*) FROM tasks") == 1000


_TASK = {"agent_type": "ranking", "payload": {"n": 1}}
_KEY = {"Idempotency-Key": "submit-1"}


@pytest.mark.parametrize("field", ["deadline", "run_at"])
async def test_the_same_moment_in_other_words_is_the_same_request(service: Service, field: str) -> None:
    task = _TASK | {field: "2098-06-01T12:00:00Z"}
    first = await service.ask("POST", "/tasks", task, headers=_KEY)
    for same in ("2098-06-01T14:00:00+02:00", "2098-06-01T12:00:00.000000000Z", "2098-06-01T07:00:00-0500"):
        again = await service.ask("POST", "/tasks", task | {field: same}, headers=_KEY)
        assert again.json()["id"] == first.json()["id"], same
    later = await service.ask("POST", "/tasks", task | {field: "2098-06-01T12:00:00+02:00"}, headers=_KEY)
    is_problem(later, 422, "idempotency_mismatch")


async def test_the_header_is_an_idempotency_key(service: Service) -> None:
    first = await service.ask("POST", "/tasks", _TASK, headers=_KEY)
    again = await service.ask("POST", "/tasks", _TASK, headers=_KEY)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    named = await service.ask("POST", "/tasks", _TASK | {"idempotency_key": "submit-1"})
    assert named.json()["id"] == first.json()["id"], "in the body it is the same key"
    other = await service.ask("POST", "/tasks", _TASK | {"payload": {"n": 2}}, headers=_KEY)
    is_problem(other, 422, "idempotency_mismatch")
    both = await service.ask("POST", "/tasks", _TASK | {"idempotency_key": "another"}, headers=_KEY)
    assert "Idempotency-Key" in is_problem(both, 422, "invalid_request", "idempotency_key")["detail"]


async def test_the_header_counts_for_a_batch_as_a_whole(service: Service, database: Database) -> None:
    batch = [_TASK, _TASK, _TASK | {"idempotency_key": "own"}]
    answers = [await service.ask("POST", "/tasks/batch", {"tasks": batch}, headers=_KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    first, again = ([task["id"] for task in answer.json()["tasks"]] for answer in answers)
    assert first == again
    assert len(set(first)) == 3
    assert not any(task["created"] for task in answers[1].json()["tasks"])
    for others in (batch[:1], [*batch, _TASK], [batch[0], _TASK | {"payload": {"n": 2}}, batch[2]]):
        answer = await service.ask("POST", "/tasks/batch", {"tasks": others}, headers=_KEY)
        is_problem(answer, 422, "idempotency_mismatch")
    assert await value(database, "SELECT count(*) FROM tasks") == 3


async def test_a_repetition_within_another_span_is_the_same_submit(service: Service) -> None:
    for body in (_TASK, {"tasks": [_TASK, _TASK]}):
        path, key = ("/tasks/batch" if "tasks" in body else "/tasks"), {"Idempotency-Key": str(uuid4())}
        headers = [key | {"traceparent": f"00-{'1' * 32}-{digit * 16}-01"} for digit in "12"] + [key]
        answers = [await service.ask("POST", path, body, headers=each) for each in headers]
        assert [answer.status_code for answer in answers] == [201, 200, 200], "each try is a span"


async def test_the_trace_context_of_the_request_is_that_of_its_tasks(service: Service) -> None:
    trace, own = (f"00-{digit * 32}-{digit * 16}-01" for digit in "12")
    worker = await service.worker()
    cases = ((_TASK, trace, trace), (_TASK | {"trace_context": own}, trace, own), (_TASK, "x", None))
    for body, header, expected in cases:
        await service.ask("POST", "/tasks", body, headers={"traceparent": header})
        lease = await worker.lease()
        assert lease["trace_context"] == expected
        await worker.on_lease(lease, "complete", result={})
