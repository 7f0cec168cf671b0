"""The exchange: calls of many workers in one request, each judged by its own key as on its plain route."""

import gc
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

import pytest

from app.db.database import Database
from app.http.refusals import RefusalPolicy, Refusals
from app.kernel.access import RefusalReason, Role
from app.queue.rules.tasks import LeasePolicy
from app.queue.store import claims
from app.queue.store.claims import ClaimRequest
from app.workers.api import exchange_items
from tests.support.exchanges import PATH, ask, exchanged, hand_in, item
from tests.support.problems import is_problem
from tests.support.service import Service, Worker
from tests.support.sql import execute, value


async def _workers(service: Service, count: int) -> list[Worker]:
    return [await service.worker() for _ in range(count)]


async def _leases(service: Service, *workers: Worker) -> list[Any]:
    for _ in workers:
        await service.submitted()
    return [one["body"] for one in await exchanged(service, *map(ask, workers))]


async def test_many_workers_hand_in_results_and_get_their_next_tasks(service: Service) -> None:
    workers = await _workers(service, 5)
    for _ in range(10):
        await service.submitted(payload={"a": 'ü"'}, labels={"l": "m"}, goal_id='g"')
    leases = [one["body"] for one in await exchanged(service, *map(ask, workers))]
    assert len({lease["task_id"] for lease in leases}) == 5
    assert all((lease["payload"], lease["goal_id"]) == ({"a": 'ü"'}, 'g"') for lease in leases)
    results = [hand_in(*pair, and_next=True) for pair in zip(workers, leases, strict=True)]
    completed = await exchanged(service, *results)
    assert [one["body"]["task_id"] for one in completed] == [lease["task_id"] for lease in leases]
    assert {(one["status"], one["body"]["state"]) for one in completed} == {(200, "completed")}
    following = [one["body"]["lease"] for one in completed]
    assert len({lease["task_id"] for lease in following + leases}) == 10
    assert await value(service.app.state.services.database, "SELECT count(*) FROM task_history") == 5


@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "exchange"])
async def test_no_claim_looks_for_a_lease_that_has_just_ended(
    service: Service, monkeypatch: pytest.MonkeyPatch, is_plain: bool
) -> None:
    numbers: list[int | None] = []
    claim = claims.claim

    async def noted(connection: Any, requests: Sequence[ClaimRequest], policy: LeasePolicy) -> Any:
        numbers.extend(request.last_number for request in requests)
        return await claim(connection, requests, policy)

    monkeypatch.setattr(claims, "claim", noted)
    worker = await service.worker()
    for _ in range(3):
        await service.submitted()
    lease = await worker.lease()
    for _ in range(2):
        handed_in = hand_in(worker, lease, and_next=True)
        if is_plain:
            lease = (await worker.ask(f"/leases/{lease['task_id']}/complete", handed_in["body"])).json()["lease"]
        else:
            lease = (await exchanged(service, handed_in))[0]["body"]["lease"]
    await worker.on_lease(lease, "complete", result={})
    await service.submitted()
    assert await worker.lease() is not None
    assert numbers == [None, 1, 2, None]


_ID = str(uuid4())
_CALLS: dict[str, dict[str, Any]] = {
    "a worker that is not ready": {"operation": "lease", "body": {"request_id": _ID}},
    "no body": {"operation": "lease"},
    "a body that is none": {"operation": "lease", "body": [1]},
    "a wait too long": {"operation": "lease", "body": {"request_id": _ID, "wait_seconds": 31}},
    "truth as a number": {"operation": "lease", "body": {"request_id": _ID, "wait_seconds": True}},
    "an unknown field": {"operation": "lease", "body": {"request_id": _ID, "patience": 3}},
    "an unknown type": {"operation": "lease", "body": {"request_id": _ID, "agent_types": ["poetry"]}},
    "an unknown task": {"operation": "start", "task_id": _ID, "body": {"token": 1}},
    "no task": {"operation": "start", "task_id": "nonsense", "body": {"token": 1}},
    "a token too large": {"operation": "start", "task_id": _ID, "body": {"token": 2**63}},
    "progress of an unknown task": {"operation": "progress", "task_id": _ID, "body": {"token": 1, "percent": 5}},
    "a result of an unknown task": {"operation": "complete", "task_id": _ID, "body": {"token": 1, "result": {}}},
    "a result too large": {"operation": "complete", "task_id": _ID,
                           "body": {"token": 1, "result": {"a": "x" * (1 << 20)}}},
    "a result with U+0000": {"operation": "complete", "task_id": _ID, "body": {"token": 1, "result": {"a": "\0"}}},
    "a wrong quality": {"operation": "complete", "task_id": _ID, "body": {"token": 1, "result": {}, "quality": 2}},
    "a next of nothing": {"operation": "complete", "task_id": _ID, "body": {"token": 1, "result": {}, "next": {}}},
    "a failure without error": {"operation": "fail", "task_id": _ID, "body": {"token": 1}},
    "a failure of an unknown task": {"operation": "fail", "task_id": _ID,
                                     "body": {"token": 1, "error": {"code": "c", "message": "m"}}},
    "a release of an unknown task": {"operation": "release", "task_id": _ID, "body": {"token": 1}},
    "a heartbeat of somebody else": {"operation": "heartbeat", "worker_id": _ID, "body": {"state": "ready"}},
    "a heartbeat without a state": {"operation": "heartbeat", "worker_id": _ID, "body": {}},
    "a heartbeat too large": {"operation": "heartbeat", "worker_id": _ID, "body": {
        "state": "ready", "errors": [{"at": "2026-11-24T12:00:00Z", "message": "m" * 2000}] * 40}},
}  # fmt: skip


@pytest.mark.parametrize("name", _CALLS)
async def test_a_refusal_is_that_of_the_plain_route_and_of_its_item_alone(service: Service, name: str) -> None:
    call = _CALLS[name]
    worker, other = await service.worker(ready=False), await service.worker()
    operation, names = call["operation"], {"task_id", "worker_id"} & call.keys()
    directory = {"heartbeat": "/workers/", "lease": "/"}.get(operation, "/leases/")
    path = "/".join([directory.rstrip("/"), *(call[name] for name in names), operation])
    plain = await worker.ask(path, call.get("body"))
    assert plain.status_code >= 400
    (lease,) = await _leases(service, other)
    answers = await exchanged(service, {"authorization": f"Bearer {worker.key}"} | call, hand_in(other, lease))
    assert (answers[0]["status"], answers[0]["body"]) == (plain.status_code, plain.json())
    assert answers[1]["status"] == 200


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"operation": "dance"}, 422, "operation"),
        ({"operation": None}, 422, "operation"),
        ({"operation": ["lease"]}, 422, "operation"),
        ({"task_id": "x"}, 422, "task_id"),
        ({"wish": 1}, 422, "wish"),
        ({"authorization": None}, 401, None),
        ({"authorization": ["Bearer"]}, 401, None),
        ({"authorization": "Bearer cvn_000000000000_" + "x" * 40}, 401, None),
        ({"authorization": "Bearer \ud800"}, 401, None),
        ({"authorization": "x" * 5000}, 401, None),
    ],
)
async def test_an_item_that_is_none_is_refused_alone(
    service: Service, change: dict[str, Any], status: int, field: str | None
) -> None:
    worker = await service.worker()
    await service.submitted()
    content = json.dumps({"items": [ask(worker) | change, ask(worker)]})
    answer = await service.ask("POST", PATH, key=worker.key, content=content)
    answers = {one["index"]: one for line in answer.text.splitlines() for one in json.loads(line)["answers"]}
    assert {index: one["status"] for index, one in answers.items()} == {0: status, 1: 200}
    if field is not None:
        assert [error["path"] for error in answers[0]["body"]["errors"]] == [field]


async def test_a_heartbeat_with_half_of_a_character_is_refused_alone(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    worker, other = await service.worker(), await service.worker()
    await service.submitted()
    body = {"state": "ready", "errors": [{"at": "2026-11-24T12:00:00Z", "message": "\ud800"}]}
    content = json.dumps({"items": [item(worker, "heartbeat") | {"body": body}, ask(other)]})
    answer = await service.ask("POST", PATH, key=worker.key, content=content)
    answers = {one["index"]: one for line in answer.text.splitlines() for one in json.loads(line)["answers"]}
    assert {index: one["status"] for index, one in answers.items()} == {0: 422, 1: 200}
    assert [error["path"] for error in answers[0]["body"]["errors"]] == ["errors.0.message"]
    assert "unexpected" not in caplog.text


async def test_an_item_that_is_no_object_is_refused_alone(service: Service) -> None:
    worker = await service.worker()
    answers = await exchanged(service, ask(worker), 7, None, [])
    assert [one["status"] for one in answers] == [204, 422, 422, 422]


async def test_each_item_is_judged_by_its_own_key(service: Service) -> None:
    one, other, gone = await _workers(service, 3)
    mine, theirs = await _leases(service, one, other)
    await service.post(f"/workers/{gone.id}/goodbye", {}, key=gone.key)
    stolen = hand_in(one, theirs, and_next=True)
    reader = ask(one) | {"authorization": f"Bearer {service.keys[Role.READER]}"}
    answers = await exchanged(service, hand_in(one, mine), stolen, ask(gone), reader)
    assert [answer["status"] for answer in answers] == [200, 404, 409, 403]
    assert [answer["body"].get("code") for answer in answers[1:]] == ["lease_not_found", "worker_gone", "forbidden"]
    assert (await other.on_lease(theirs, "complete", result={})).status_code == 200


async def test_refused_keys_count_against_the_address(service: Service) -> None:
    refusals = service.app.state.services[Refusals]
    refusals.policy = RefusalPolicy(failures=3)
    worker = await service.worker()
    guesses = [ask(worker) | {"authorization": f"Bearer cvn_{number:012}_x"} for number in range(6)]
    answers = await exchanged(service, ask(worker), *guesses)
    assert [answer["status"] for answer in answers] == [204, 401, 401, 401, 429, 429, 429]
    assert answers[-1]["retry_after"] > 0
    assert refusals.totals == {RefusalReason.UNKNOWN_KEY: 3, RefusalReason.TOO_MANY: 3}
    assert (await exchanged(service, ask(worker)))[0]["status"] == 204


async def test_items_of_one_worker_are_worked_on_in_their_order_and_calls_for_tasks_last(service: Service) -> None:
    worker = await service.worker()
    (lease,) = await _leases(service, worker)
    await service.submitted()
    fence = {"task_id": lease["task_id"], "token": lease["token"]}
    answers = await exchanged(
        service,
        ask(worker),
        item(worker, "start", **fence),
        item(worker, "progress", percent=50, checkpoint={"step": 1}, **fence),
        item(worker, "heartbeat", state="busy", lease=fence),
        hand_in(worker, lease),
        hand_in(worker, lease),
        hand_in(worker, lease, result={"other": 1}),
    )
    assert [answer["status"] for answer in answers] == [200, 200, 200, 200, 200, 200, 409]
    assert answers[3]["body"]["directives"] == []
    assert answers[0]["body"]["task_id"] != lease["task_id"]


async def test_a_worker_gets_one_task_however_often_it_asks(service: Service) -> None:
    worker = await service.worker()
    for _ in range(4):
        await service.submitted()
    answers = await exchanged(service, ask(worker), ask(worker), ask(worker))
    assert sorted(answer["status"] for answer in answers) == [200, 204, 204]
    lease = next(answer["body"] for answer in answers if answer["status"] == 200)
    assert [answer["status"] for answer in await exchanged(service, ask(worker))] == [409]
    answers = await exchanged(service, hand_in(worker, lease, and_next=True), ask(worker))
    assert [answer["status"] for answer in answers] == [200, 409]
    assert answers[0]["body"]["lease"] is not None
    assert await value(service.app.state.services.database, "SELECT count(*) FROM tasks WHERE state = 'executing'") == 1


async def test_repeated_calls_are_answered_as_before(service: Service) -> None:
    worker, other = await _workers(service, 2)
    await service.submitted()
    call = ask(worker)
    (first,) = await exchanged(service, call)
    (again,) = await exchanged(service, call)
    assert again["body"] | {"expires_at": first["body"]["expires_at"]} == first["body"]
    for items in ([hand_in(worker, first["body"])], [ask(other), hand_in(worker, first["body"])]):
        assert (await exchanged(service, *items))[-1]["status"] == 200
    assert await value(service.app.state.services.database, "SELECT count(*) FROM task_history") == 1


async def test_every_operation_does_what_its_plain_route_does(service: Service, database: Database) -> None:
    workers = await _workers(service, 5)
    leases = await _leases(service, *workers)
    fences = [{"task_id": lease["task_id"], "token": lease["token"]} for lease in leases]
    error = {"code": "c", "message": "m", "retryable": False}
    answers = await exchanged(
        service,
        item(workers[0], "start", **fences[0]),
        item(workers[1], "progress", percent=50, checkpoint={"step": 1}, **fences[1]),
        hand_in(workers[2], leases[2], quality=0.5, usage={"wall_seconds": 1, "cpu_seconds": 1, "max_memory_mb": 1}),
        item(workers[3], "fail", error=error, **fences[3]),
        item(workers[4], "release", **fences[4]),
    )
    assert [answer["status"] for answer in answers] == [200] * 5
    states = ["executing", "executing", "completed", "failed", "pending"]
    assert [answer["body"]["state"] for answer in answers] == states
    assert await value(database, "SELECT checkpoint FROM tasks WHERE progress IS NOT NULL") == '{"step": 1}'
    assert await value(database, "SELECT quality FROM task_history WHERE state = 'completed'") == 0.5


async def test_a_result_that_others_wait_for_is_accepted_too(service: Service) -> None:
    worker = await service.worker()
    (lease,) = await _leases(service, worker)
    dependent = await service.submitted(depends_on=[lease["task_id"]])
    (answer,) = await exchanged(service, hand_in(worker, lease, and_next=True))
    assert answer["body"]["lease"]["task_id"] == dependent


async def test_a_key_that_is_not_let_in_and_bodies_that_are_refused_as_a_whole(service: Service) -> None:
    worker = await service.worker()
    is_problem(await service.ask("POST", PATH, {"items": [ask(worker)]}, key=Role.READER), 403, "forbidden")
    is_problem(await worker.ask(PATH, {"items": []}), 422, "invalid_request", "items")
    is_problem(await worker.ask(PATH, {"items": {}}), 422, "invalid_request", "items")
    is_problem(await worker.ask(PATH, {"items": [1], "more": 1}), 422, "invalid_request", "more")
    is_problem(await worker.ask(PATH, {"items": [ask(worker)] * 513}), 422, "invalid_request", "items")
    dense = {"items": [ask(worker) | {"body": {"a": [[0]] * 300_000}}]}
    is_problem(await worker.ask(PATH, dense), 413, "body_too_complex")
    is_problem(await worker.ask(PATH, {"items": ["x" * (12 << 20)]}), 413, "body_too_large")


async def test_many_unknown_fields_in_many_items_cost_little(service: Service) -> None:
    worker = await service.worker()
    body = {str(number): 0 for number in range(300)}
    answers = await exchanged(service, *[ask(worker) | {"body": body}] * 512)
    assert {answer["status"] for answer in answers} == {422}
    assert all(len(answer["body"]["errors"]) == 20 for answer in answers)


async def test_a_body_that_is_a_list_is_refused_without_a_look_into_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of many empty lists would cost a call: half a second of the event loop for 1 MB."""
    looked_at: list[Any] = []
    monkeypatch.setattr(exchange_items, "have_unknown", lambda _, bodies: looked_at.extend(bodies))
    call = ask(await service.worker())
    answers = await exchanged(service, call, call | {"body": [[]] * 20_000}, call | {"body": None})
    assert [answer["status"] for answer in answers] == [204, 422, 422]
    assert looked_at == [call["body"]]


async def _least_garbage(call: Callable[[], Awaitable[object]]) -> int:
    """Objects that only the garbage collector frees after a call, of five calls: threads beside them leave some too."""
    counts = []
    gc.disable()
    # What is here already is left alone: to look through all that a process of tests has gathered takes a second.
    gc.collect()
    gc.freeze()
    try:
        for _ in range(5):
            gc.collect()
            await call()
            counts.append(gc.collect())
    finally:
        gc.enable()
    return min(counts)


@pytest.mark.parametrize("change", [{"body": dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 0)}, {"authorization": "x"}])
async def test_refused_items_leave_no_work_to_the_garbage_collector(service: Service, change: dict[str, Any]) -> None:
    worker = await service.worker()
    items = [ask(worker), *[ask(worker) | change] * 511]
    await exchanged(service, *items)
    assert await _least_garbage(lambda: exchanged(service, *items)) < 4 * len(items)


async def test_calls_that_are_answered_leave_no_work_to_the_garbage_collector(service: Service) -> None:
    workers = await _workers(service, 64)
    await service.submitted()
    assert await _least_garbage(lambda: exchanged(service, *map(ask, workers))) < len(workers)


async def test_a_worker_that_is_stopped_is_told_so(service: Service, database: Database) -> None:
    worker, other = await _workers(service, 2)
    await execute(database, "UPDATE workers SET state = 'draining' WHERE id = $1::uuid", other.id)
    answers = await exchanged(service, ask(worker), ask(other))
    assert [answer["status"] for answer in answers] == [204, 204]
