"""Items of an exchange, and the answers to them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx

from tests.support.service import Service, Worker

PATH = "/leases/exchange"


def item(worker: Worker, operation: str, task_id: str | None = None, **body: Any) -> dict[str, Any]:
    """A call of this worker."""
    path = {"task_id": task_id} if task_id else {"worker_id": worker.id} if operation == "heartbeat" else {}
    return {"authorization": f"Bearer {worker.key}", "operation": operation, "body": body} | path


def ask(worker: Worker, wait_seconds: float = 0, **fields: Any) -> dict[str, Any]:
    """A call of this worker for a task."""
    return item(worker, "lease", request_id=str(uuid4()), acknowledge=True, wait_seconds=wait_seconds, **fields)


def hand_in(worker: Worker, lease: Any, *, and_next: bool = False, **fields: Any) -> dict[str, Any]:
    """A call of this worker with a result."""
    following = {"next": {"request_id": str(uuid4()), "acknowledge": True}} if and_next else {}
    return item(worker, "complete", lease["task_id"], **{"token": lease["token"], "result": {}} | following | fields)


async def exchanged(service: Service, *items: Any) -> list[dict[str, Any]]:
    """The answers to these items in their order; each has one."""
    key = items[0]["authorization"].removeprefix("Bearer ")
    answer = await service.ask("POST", PATH, {"items": items}, key=key)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    answers = [one for line in answer.text.splitlines() for one in json.loads(line)["answers"]]
    assert sorted(one["index"] for one in answers) == list(range(len(items)))
    return sorted(answers, key=lambda one: int(one["index"]))


@asynccontextmanager
async def exchanging(service: Service, *items: dict[str, Any]) -> AsyncIterator[AsyncIterator[list[dict[str, Any]]]]:
    """The answers of each line, as the lines come; the end of the block hangs up."""
    headers = {"Authorization": items[0]["authorization"]}
    async with service.client.stream("POST", PATH, json={"items": items}, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield _lines(answer)


async def _lines(answer: httpx.Response) -> AsyncIterator[list[dict[str, Any]]]:
    async for line in answer.aiter_lines():
        yield json.loads(line)["answers"]
