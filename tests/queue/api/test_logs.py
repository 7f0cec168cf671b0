"""Output of attempts over HTTP."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest

from app.kernel.access import Role
from tests.support.problems import is_problem
from tests.support.service import Service, Worker


def _piece(text: str, start: int = 0, stream: str = "stdout") -> dict[str, Any]:
    return {"stream": stream, "start": start, "text": text}


async def _send(worker: Worker, lease: Any, *pieces: dict[str, Any]) -> None:
    answer = await worker.on_lease(lease, "logs", pieces=list(pieces))
    assert answer.status_code == 204, answer.text


async def test_pages_lead_from_piece_to_piece(service: Service, worker: Worker, lease: Any) -> None:
    path = f"/tasks/{lease['task_id']}/logs"
    empty = await service.get(path)
    assert (empty["items"], empty["state"]) == ([], "executing")
    await _send(worker, lease, _piece("one\n"), _piece("warning\x1b[31m\n", stream="stderr"))
    first = await service.get(path)
    assert [(item["stream"], item["text"], item["attempt"]) for item in first["items"]] == [
        ("stdout", "one\n", 1),
        ("stderr", "warning\x1b[31m\n", 1),
    ]
    await _send(worker, lease, _piece("two\n", 4), _piece("end\n", 1000))
    second = await service.get(path, after=first["next"])
    assert [(item["text"], item["start"], item["skipped"]) for item in second["items"]] == [
        ("two\n", 4, 0),
        ("end\n", 1000, 992),
    ]
    assert (await service.get(path, after=second["next"]))["items"] == []
    assert [item["stream"] for item in (await service.get(path, stream="stderr"))["items"]] == ["stderr"]
    assert (await service.get(path, attempt=2))["items"] == []


async def test_every_attempt_keeps_its_own(service: Service, worker: Worker, lease: Any) -> None:
    await _send(worker, lease, _piece("first"))
    await worker.on_lease(lease, "fail", error={"code": "c", "message": "m"})
    again = await service.worker()
    second = await again.lease(wait_seconds=10)
    await _send(again, second, _piece("second"))
    await again.on_lease(second, "complete", result={})
    # The last words of an attempt may come late.
    await _send(worker, lease, _piece(" late", 5))
    page = await service.get(f"/tasks/{lease['task_id']}/logs")
    assert [(item["attempt"], item["text"]) for item in page["items"]] == [(1, "first late"), (2, "second")]
    assert page["state"] == "completed"


async def test_a_follower_gets_what_an_earlier_attempt_wrote_late(service: Service, worker: Worker, lease: Any) -> None:
    path = f"/tasks/{lease['task_id']}/logs"
    await _send(worker, lease, _piece("first"))
    await worker.on_lease(lease, "fail", error={"code": "c", "message": "m"})
    again = await service.worker()
    second = await again.lease(wait_seconds=10)
    await _send(again, second, _piece("second"))
    page = await service.get(path)
    await _send(worker, lease, _piece(" late", 5), _piece("error", stream="stderr"))
    await _send(again, second, _piece(" more", 6))
    rest = await service.get(path, after=page["next"])
    assert [(item["attempt"], item["text"], item["start"]) for item in rest["items"]] == [
        (1, " late", 5),
        (1, "error", 0),
        (2, " more", 6),
    ]
    assert (await service.get(path, after=rest["next"]))["items"] == []


async def test_a_follower_waits_for_more_and_not_for_what_is_over(service: Service, worker: Worker, lease: Any) -> None:
    path = f"/tasks/{lease['task_id']}/logs"
    waiting = asyncio.create_task(service.get(path, wait_seconds=30))
    await asyncio.sleep(0.2)
    await _send(worker, lease, _piece("at last"))
    page = await waiting
    assert [item["text"] for item in page["items"]] == ["at last"]
    await worker.on_lease(lease, "complete", result={})
    async with asyncio.timeout(20):
        assert (await service.get(path, after=page["next"], wait_seconds=30))["state"] == "completed"


async def test_nobody_adds_to_what_others_write(service: Service, worker: Worker, lease: Any) -> None:
    other = await service.worker()
    for held in (lease, lease | {"token": lease["token"] + 1}, lease | {"task_id": str(uuid4())}):
        is_problem(await other.on_lease(held, "logs", pieces=[_piece("x")]), 404, "lease_not_found")
    is_problem(await worker.on_lease(lease, "logs", pieces=[_piece("a\0b")]), 422, "invalid_request")
    is_problem(await worker.on_lease(lease, "logs", pieces=[_piece("x" * 65_537)]), 422, "invalid_request")
    is_problem(await worker.on_lease(lease, "logs", pieces=[]), 422, "invalid_request")
    assert (await service.get(f"/tasks/{lease['task_id']}/logs"))["items"] == []


async def test_a_large_output_comes_in_pages(service: Service, worker: Worker, lease: Any) -> None:
    for stream in ("stdout", "stderr"):
        for n in range(8):
            await _send(worker, lease, _piece("x" * 60_000, n * 60_000, stream))
    after: dict[str, Any] = {}
    lengths: list[int] = []
    while (page := await service.get(f"/tasks/{lease['task_id']}/logs", **after))["items"]:
        lengths.append(sum(len(item["text"]) for item in page["items"]))
        after = {"after": page["next"]}
    assert all(length <= 600_000 for length in lengths)
    assert 2 * 128_000 <= sum(lengths) <= 2 * 250_000


async def test_pages_are_bounded_by_the_bytes_of_their_json(service: Service, worker: Worker, lease: Any) -> None:
    for n in range(4):
        # Six bytes of JSON each, and one of UTF-8.
        await _send(worker, lease, _piece("\x01" * 60_000, n * 60_000))
    after: dict[str, Any] = {}
    pages = []
    while (page := await service.get(f"/tasks/{lease['task_id']}/logs", **after))["items"]:
        pages.append(len(json.dumps(page)))
        after = {"after": page["next"]}
    assert len(pages) > 1
    assert max(pages) < 1.1 * (1 << 20)


async def test_what_makes_no_sense_is_refused(service: Service, lease: Any) -> None:
    is_problem(await service.ask("GET", f"/tasks/{uuid4()}/logs"), 404, "task_not_found")
    for query in ({"after": "now"}, {"stream": "both"}, {"attempt": 0}, {"wait_seconds": 31}):
        is_problem(await service.ask("GET", f"/tasks/{lease['task_id']}/logs", params=query), 422, "invalid_request")


@pytest.mark.parametrize("role", [Role.MONITOR, Role.POOL])
async def test_output_is_content(service: Service, lease: Any, role: Role) -> None:
    assert (await service.ask("GET", f"/tasks/{lease['task_id']}/logs", key=role)).status_code == 403
