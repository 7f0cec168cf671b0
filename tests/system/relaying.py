"""A relay as a process, real workers behind it, and callers that only lease and complete."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import psutil

from app.kernel.access import Role
from app.kernel.agents import AgentType
from benchmarks.http_client import Connection, connect
from tests.support.ports import free_port
from tests.system.conftest import Api, until


@dataclass(slots=True, kw_only=True)
class Relay:
    """A relay on a port, or a unix socket, as often as the test starts it."""

    url: str
    log: Path
    port: int = 0
    path: Path | None = None
    child: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        """For workers."""
        return f"unix:{self.path}" if self.path else f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it and wait until it takes connections."""
        listen = self.address.removeprefix("http://")
        command = [sys.executable, "-m", "app.cli", "relay", "--url", self.url, "--listen", listen]
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(command, stdout=log, stderr=log)
        seen = self.log.stat().st_size
        await until(lambda: b"relaying" in self.log.read_bytes()[seen:] or self._is_over(), what="the relay")
        assert not self._is_over(), self.log.read_text()

    def _is_over(self) -> bool:
        return self.child is None or self.child.poll() is not None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """End it by a signal; its exit code."""
        assert self.child is not None
        self.child.send_signal(number)
        return self.child.wait(30)

    def connections_to(self, port: int) -> int:
        """Connections that it has to this port of this machine."""
        assert self.child is not None
        return sum(
            bool(one.raddr) and one.raddr.port == port and one.status == psutil.CONN_ESTABLISHED
            for one in psutil.Process(self.child.pid).net_connections("tcp")
        )


@asynccontextmanager
async def relay_to(url: str, directory: Path, *, path: Path | None = None) -> AsyncIterator[Relay]:
    """A relay, ended with the block."""
    relay = Relay(url=url, log=directory / "relay.log", port=0 if path else free_port(), path=path)
    await relay.start()
    try:
        yield relay
    finally:
        if relay.child is not None and relay.child.poll() is None:
            relay.kill()


@contextmanager
def workers(
    address: str, key: str, directory: Path, count: int, handlers: str = "examples.echo"
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Real workers, ended with the block."""
    command = [sys.executable, "-m", "worker_agent", "--url", address, "--handlers", handlers, "--grace", "1"]
    children = []
    try:
        for number in range(count):
            with (directory / f"worker-{number}.log").open("ab") as log:
                terms = {**os.environ, "CONVENER_KEY": key}
                children.append(subprocess.Popen([*command, "--name", f"w{number}"], env=terms, stdout=log, stderr=log))
        yield children
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(30)


async def submit(api: Api, count: int, **payload: Any) -> set[str]:
    """The ids of new tasks."""
    tasks = [{"agent_type": "generation", "payload": payload} for _ in range(count)]
    async with httpx.AsyncClient(trust_env=False, base_url=api.url, headers=api.bearer(Role.SUPERVISOR)) as client:
        answer = await client.post("/tasks/batch", json={"tasks": tasks}, timeout=30)
    assert answer.status_code == 201, answer.text
    return {task["id"] for task in answer.json()["tasks"]}


async def until_completed(database_url: str, count: int) -> None:
    """Wait until so many tasks are over."""
    connection = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(120):
            while await connection.fetchval("SELECT count(*) FROM task_history") < count:
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def all_completed_once(database_url: str, ids: set[str]) -> None:
    """Wait until all are over, and see that each was completed, once, with no attempt burnt."""
    connection = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(120):
            while await connection.fetchval("SELECT count(*) FROM tasks"):
                await asyncio.sleep(0.1)
        rows = await connection.fetch("SELECT id, state, failures FROM task_history")
        assert {str(row["id"]) for row in rows} == ids
        assert {(row["state"], row["failures"]) for row in rows} == {("completed", 0)}
        done = await connection.fetch("SELECT task_id FROM every_event WHERE kind = 'task.completed'")
        assert sorted(str(row["task_id"]) for row in done) == sorted(ids)
    finally:
        await connection.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A registered worker on a connection of its own."""

    worker_id: str
    connection: Connection

    async def lease(self, wait_seconds: float) -> dict[str, Any] | None:
        """A task, or none within the wait."""
        answer = await self.connection.post(
            "/lease", {"request_id": str(uuid4()), "wait_seconds": wait_seconds, "acknowledge": True}
        )
        lease: dict[str, Any] | None = answer.json()
        return lease


async def callers(api: Api, port: int, count: int) -> list[Caller]:
    """Workers that are registered with the API and ready, connected to this port."""
    pool = await connect(api.port, api.keys[Role.POOL])
    registered = []
    for _ in range(count):
        profile = {"name": f"c-{uuid4().hex[:8]}", "host": "test", "pid": 1, "memory_gb": 1, "cpu_cores": 1}
        answer = (await pool.post("/workers", profile | {"capabilities": list(AgentType)})).json()
        caller = Caller(worker_id=answer["worker_id"], connection=await connect(port, answer["key"]))
        (await caller.connection.post(f"/workers/{caller.worker_id}/heartbeat", {"state": "ready"})).json()
        registered.append(caller)
    pool.close()
    return registered


async def waiting_leases(api: Api) -> int:
    """Calls for a lease that wait in all of its processes, by their metrics."""
    waiting = 0
    async with httpx.AsyncClient(trust_env=False, headers=api.bearer(Role.ADMIN)) as client:
        for url in api.own_urls:
            metrics = (await client.get(f"{url}/metrics")).text
            waiting += int(float(metrics.partition("\nconvener_waiting_leases ")[2].partition("\n")[0]))
    return waiting


async def until_waiting(api: Api, count: int) -> None:
    """Wait until so many wait there."""
    async with asyncio.timeout(60):
        while await waiting_leases(api) != count:
            await asyncio.sleep(0.05)
