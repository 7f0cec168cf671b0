"""Workers that only lease and complete."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from app.kernel.agents import AgentType
from benchmarks.http_client import Connection, connect
from benchmarks.testbed import Testbed

RESULT = {"hypotheses": ["Orbits are ellipses with the sun in one focus"], "confidence": 0.87}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The part of a lease that completing it needs."""

    task_id: str
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A registered worker with a connection and a key of its own."""

    worker_id: str
    key: str
    connection: Connection

    async def beat(self, lease: Lease | None) -> None:
        """Send a heartbeat, which renews the lease."""
        lease_fields = {"task_id": lease.task_id, "token": lease.token} if lease else None
        beat = {"state": "busy" if lease else "ready", "lease": lease_fields}
        (await self.connection.post(f"/workers/{self.worker_id}/heartbeat", beat)).json()

    async def lease(self, wait_seconds: float = 0) -> Lease | None:
        """Lease a task and acknowledge it; None when there is none within the wait."""
        call = {"request_id": str(uuid4()), "wait_seconds": wait_seconds, "acknowledge": True}
        return _lease((await self.connection.post("/lease", call)).json())

    async def complete(self, lease: Lease, *, and_next: bool) -> Lease | None:
        """Hand in the result; the same call may lease the next task."""
        following = {"request_id": str(uuid4()), "acknowledge": True} if and_next else None
        call = {"token": lease.token, "result": RESULT, "next": following}
        answer = await self.connection.post(f"/leases/{lease.task_id}/complete", call)
        return _lease(answer.json()["lease"])

    def close(self) -> None:
        """Close the connection; the service detects a lost worker by its missing heartbeats."""
        self.connection.close()


async def register_workers(testbed: Testbed, count: int) -> list[Worker]:
    """Register new workers, each with its first heartbeat sent."""
    pool = await connect(testbed.port, testbed.pool_key)
    workers = [await _register_worker(testbed, pool) for _ in range(count)]
    pool.close()
    return workers


def close_workers(workers: list[Worker]) -> None:
    """Close the connections of all workers."""
    for worker in workers:
        worker.close()


async def retire_workers(testbed: Testbed, workers: Sequence[Worker]) -> None:
    """Let workers leave in order: without the loops nobody else would, and the pool has room for a thousand."""
    for worker in workers:
        worker.close()
        connection = await connect(testbed.port, worker.key)
        (await connection.post(f"/workers/{worker.worker_id}/goodbye", {"reason": "measured"})).json()
        connection.close()


async def _register_worker(testbed: Testbed, pool: Connection) -> Worker:
    capabilities = [agent.value for agent in AgentType]
    fields = {"name": f"bench-{uuid4().hex[:12]}", "host": "bench", "pid": 1, "capabilities": capabilities}
    identity = (await pool.post("/workers", {**fields, "memory_gb": 1, "cpu_cores": 1})).json()
    connection = await connect(testbed.port, identity["key"])
    worker = Worker(worker_id=identity["worker_id"], key=identity["key"], connection=connection)
    await worker.beat(None)
    return worker


def _lease(fields: dict[str, Any] | None) -> Lease | None:
    return Lease(task_id=fields["task_id"], token=fields["token"]) if fields else None


async def all_waiting(testbed: Testbed, count: int) -> None:
    """Wait until the metrics of the API show that `count` calls for a lease wait."""
    connection = await connect(testbed.port, testbed.key)
    async with asyncio.timeout(30):
        # Another process cannot set an event of ours.
        while await _waiting(connection) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    connection.close()


async def _waiting(connection: Connection) -> float:
    metrics = (await connection.get("/metrics")).body.decode()
    return float(metrics.partition("\nconvener_waiting_leases ")[2].partition("\n")[0])
