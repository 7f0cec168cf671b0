"""Workers that do nothing but lease and complete."""

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from app.kernel.agents import AgentType
from benchmarks.http_client import Connection, connect
from benchmarks.surroundings import Surroundings

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
    connection: Connection

    async def beat(self, lease: Lease | None) -> None:
        """Send a heartbeat, which renews the lease."""
        held = {"task_id": lease.task_id, "token": lease.token} if lease else None
        beat = {"state": "busy" if lease else "ready", "lease": held}
        (await self.connection.post(f"/workers/{self.worker_id}/heartbeat", beat)).json()

    async def lease(self, wait_seconds: float = 0) -> Lease | None:
        """A task, acknowledged; None when there is none within the wait."""
        call = {"request_id": str(uuid4()), "wait_seconds": wait_seconds, "acknowledge": True}
        return _lease((await self.connection.post("/lease", call)).json())

    async def complete(self, lease: Lease, *, and_next: bool) -> Lease | None:
        """Hand in the result; the same call may lease the next task."""
        following = {"request_id": str(uuid4()), "acknowledge": True} if and_next else None
        call = {"token": lease.token, "result": RESULT, "next": following}
        answer = await self.connection.post(f"/leases/{lease.task_id}/complete", call)
        return _lease(answer.json()["lease"])

    def close(self) -> None:
        """Hang up; the service would find out by the missing heartbeats."""
        self.connection.close()


async def hire(where: Surroundings, count: int) -> list[Worker]:
    """New workers, each past its first health report."""
    pool = await connect(where.port, where.key)
    workers = [await _hire_one(where, pool) for _ in range(count)]
    pool.close()
    return workers


def let_go(workers: list[Worker]) -> None:
    """Hang up on all of them."""
    for worker in workers:
        worker.close()


async def _hire_one(where: Surroundings, pool: Connection) -> Worker:
    capabilities = [agent.value for agent in AgentType]
    said = {"name": f"bench-{uuid4().hex[:12]}", "host": "bench", "pid": 1, "capabilities": capabilities}
    identity = (await pool.post("/workers", {**said, "memory_gb": 1, "cpu_cores": 1})).json()
    worker = Worker(worker_id=identity["worker_id"], connection=await connect(where.port, identity["key"]))
    await worker.beat(None)
    return worker


def _lease(said: dict[str, Any] | None) -> Lease | None:
    return Lease(task_id=said["task_id"], token=said["token"]) if said else None


async def all_waiting(where: Surroundings, count: int) -> None:
    """Return when so many calls for a lease wait inside the API; its metrics say so."""
    connection = await connect(where.port, where.key)
    async with asyncio.timeout(30):
        # Another process cannot set an event of ours.
        while await _waiting(connection) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    connection.close()


async def _waiting(connection: Connection) -> float:
    metrics = (await connection.get("/metrics")).body.decode()
    return float(metrics.partition("\nconvener_waiting_leases ")[2].partition("\n")[0])
