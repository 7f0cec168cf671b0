"""Clients behind haproxy that keep a journal of every call that was acknowledged, and repeat all others."""

import asyncio
import json
import math
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx

from tests.support.service import registration

_AGAIN_SECONDS = 0.1
_PAUSE_SECONDS = 0.05
# The worker has been given up, or its lease.
_LOST = (401, 403, 404, 409, 410)
_ROWS = """
SELECT id, state, token, NULL AS result FROM tasks UNION ALL SELECT id, state, token, result FROM task_history
"""


@dataclass(slots=True, kw_only=True)
class Journal:
    """What the service has acknowledged to its clients."""

    submitted: set[str] = field(default_factory=set)
    leased: dict[str, int] = field(default_factory=dict)
    completed: dict[str, str] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    last_at: float = math.inf
    longest_gap: float = 0.0

    def note(self) -> None:
        """Note that a call was acknowledged just now."""
        moment = time.monotonic()
        self.longest_gap, self.last_at = max(self.longest_gap, moment - self.last_at), moment

    def note_error(self, what: str) -> None:
        """Count a call that was not."""
        self.errors[what] = self.errors.get(what, 0) + 1


@dataclass(slots=True, kw_only=True)
class Client:
    """One client of the service."""

    http: httpx.AsyncClient
    key: str
    journal: Journal

    async def send(self, path: str, body: Any) -> httpx.Response:
        """The first answer that is none of an outage; the same call again until there is one."""
        while True:
            try:
                answer = await self.http.post(path, json=body, headers={"Authorization": f"Bearer {self.key}"})
            except httpx.TransportError as error:
                self.journal.note_error(type(error).__name__)
            else:
                if answer.status_code < 500:
                    self.journal.note()
                    return answer
                self.journal.note_error(str(answer.status_code))
            await asyncio.sleep(_AGAIN_SECONDS)


async def submit(client: Client, done: asyncio.Event) -> None:
    """Submit tasks, one after the other."""
    while not done.is_set():
        task = {"agent_type": "generation", "idempotency_key": str(uuid4()), "payload": {}}
        answer = await client.send("/tasks", task)
        assert answer.is_success, answer.text
        client.journal.submitted.add(answer.json()["id"])
        await asyncio.sleep(_PAUSE_SECONDS)


async def work(pool: Client, done: asyncio.Event) -> None:
    """Lease and complete, and register anew where the service has given this worker up."""
    while not done.is_set():
        answer = await pool.send("/workers", registration())
        assert answer.is_success, answer.text
        worker = Client(http=pool.http, key=answer.json()["key"], journal=pool.journal)
        beating = asyncio.create_task(_beat(worker, answer.json()["worker_id"]))
        try:
            while not done.is_set() and await _work_once(worker):
                pass
        finally:
            beating.cancel()
            with suppress(asyncio.CancelledError):
                await beating


async def _beat(worker: Client, worker_id: str) -> None:
    while True:
        await worker.send(f"/workers/{worker_id}/heartbeat", {"state": "ready"})
        await asyncio.sleep(1)


async def _work_once(worker: Client) -> bool:
    """Do a task, if there is one; return whether the service still knows this worker."""
    answer = await worker.send("/lease", {"request_id": str(uuid4()), "wait_seconds": 1, "acknowledge": True})
    if answer.status_code != 200:
        if answer.status_code != 204:
            assert answer.status_code in _LOST, answer.text
            worker.journal.note_error(str(answer.status_code))
            await asyncio.sleep(_AGAIN_SECONDS)
        return answer.status_code == 204
    task_id, token = answer.json()["task_id"], answer.json()["token"]
    worker.journal.leased[task_id] = max(token, worker.journal.leased.get(task_id, 0))
    result = uuid4().hex
    answer = await worker.send(f"/leases/{task_id}/complete", {"token": token, "result": {"by": result}})
    if answer.status_code != 200:
        assert answer.status_code in _LOST, answer.text
        worker.journal.note_error(f"complete {answer.status_code}")
        return answer.status_code in (404, 409)
    if task_id in worker.journal.completed:
        worker.journal.twice.append(task_id)
    worker.journal.completed[task_id] = result
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Calls that were acknowledged, and of which the database knows nothing."""

    submits: set[str]
    leases: set[str]
    completions: set[str]

    @property
    def count(self) -> int:
        """Number of all of them."""
        return len(self.submits) + len(self.leases) + len(self.completions)


async def completed_by_others(url: str, journal: Journal) -> int:
    """Number of tasks that somebody else has completed."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT id FROM task_history WHERE state = 'completed'")
    finally:
        await connection.close()
    return len({str(row["id"]) for row in rows} - journal.leased.keys())


async def compare(url: str, journal: Journal) -> Lost:
    """Compare each line that the journal has now with the rows of the database."""
    submitted, leased, completed = set(journal.submitted), dict(journal.leased), dict(journal.completed)
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(_ROWS)
    finally:
        await connection.close()
    stored = {str(UUID(str(row["id"]))): row for row in rows}
    return Lost(
        submits=submitted - stored.keys(),
        leases={key for key, token in leased.items() if key not in stored or stored[key]["token"] < token},
        completions={
            key
            for key, result in completed.items()
            if key not in stored
            or stored[key]["state"] != "completed"
            or json.loads(stored[key]["result"]) != {"by": result}
        },
    )
