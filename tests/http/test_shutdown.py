"""The API process as it runs in production: it stops in order, and a client that hangs up loses no task."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from app.db.database import Database
from app.kernel.access import Role
from benchmarks.http_client import Connection, connect
from tests.support.ports import free_port
from tests.support.service import registration
from tests.support.sql import fetch, until, value
from tests.system.conftest import Api, api_process

_POLLS = 20


@pytest.fixture
async def process(own_database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    async with api_process(own_database.url, tmp_path) as process:
        yield process


async def _worker(process: Api) -> str:
    """The key of a worker that is ready."""
    pool = await connect(process.port, process.keys[Role.POOL])
    worker = (await pool.post("/workers", registration())).json()
    pool.close()
    own = await connect(process.port, worker["key"])
    (await own.post(f"/workers/{worker['worker_id']}/heartbeat", {"state": "ready"})).json()
    own.close()
    return str(worker["key"])


async def _waiting(process: Api) -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"{process.url}/status", headers=process.bearer(Role.ADMIN))
    return int(answer.json()["waiting_leases"])


async def _wait_for_polls(process: Api, count: int) -> None:
    async def there() -> bool:
        return await _waiting(process) == count

    await until(there)


async def _ended(process: Api) -> int | None:
    """Its exit code, which must come within a few seconds."""
    found = psutil.Process(process.pid)
    return await asyncio.to_thread(found.wait, 20)


def _ask(wait_seconds: float = 30) -> dict[str, Any]:
    return {"request_id": str(uuid4()), "wait_seconds": wait_seconds}


async def test_all_who_wait_are_answered_when_it_stops(process: Api) -> None:
    keys = [await _worker(process) for _ in range(_POLLS)]
    connections = [await connect(process.port, key) for key in keys]
    polls = [asyncio.create_task(connection.post("/lease", _ask())) for connection in connections]
    follower = await connect(process.port, process.keys[Role.READER])
    following = asyncio.create_task(follower.get("/events?after=now&wait_seconds=30"))
    await _wait_for_polls(process, _POLLS)
    os.kill(process.pid, signal.SIGTERM)
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*polls)
        followed = await following
    assert {answer.status for answer in answers} <= {204, 503}
    assert followed.status in (200, 503)
    assert await _ended(process) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_process_stops_at_once(process: Api, number: signal.Signals) -> None:
    idle = await connect(process.port, process.keys[Role.READER])
    assert (await idle.get("/tasks")).status == 200
    os.kill(process.pid, number)
    assert await _ended(process) == 0
    idle.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_just_before_it_serves_is_heard(database_url: str, number: signal.Signals) -> None:
    """It would be lost, and the process serve on, if it came after the process has taken charge of its end."""
    start = f"""
import os
from app import garbage_collection
from app.main import main
garbage_collection.settle = lambda: os.kill(os.getpid(), {number.value})
main()
"""
    environment = {**os.environ, "CONVENER_DATABASE_URL": database_url, "CONVENER_PORT": str(free_port())}
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", start, env=environment)
    try:
        assert await asyncio.wait_for(child.wait(), 60) == 0
    finally:
        if child.returncode is None:
            child.kill()


async def _head(process: Api, path: str, key: str, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Type: application/json"]
    writer.write("\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode())
    await writer.drain()
    return reader, writer


async def _answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().lower().splitlines()[1:] if line)
    assert fields["retry-after"]
    assert fields["content-type"] == "application/problem+json"
    return int(head.split()[1]), json.loads(await reader.readexactly(int(fields["content-length"])))


async def _refusing(process: Api) -> None:
    """The shutdown has begun: the process accepts no connection any more."""

    async def closed() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", process.port)
        except OSError:
            return True
        writer.close()
        return False

    await until(closed)


_EVERYTHING = """
SELECT ARRAY[(SELECT count(*) FROM tasks), (SELECT count(*) FROM task_history), (SELECT count(*) FROM every_event),
             (SELECT count(*) FROM workers), (SELECT count(*) FROM keys), (SELECT sum(token) FROM tasks)]
"""


async def test_what_arrives_too_late_is_refused_and_changes_nothing(process: Api, own_database: Database) -> None:
    key = await _worker(process)
    supervisor = await connect(process.port, process.keys[Role.SUPERVISOR])
    for _ in range(2):
        (await supervisor.post("/tasks", {"agent_type": "ranking"})).json()
    worker = await connect(process.port, key)
    lease = (await worker.post("/lease", _ask(0))).json()
    callers = {
        "/tasks": process.keys[Role.ADMIN],
        "/tasks/batch": process.keys[Role.ADMIN],
        "/workers": process.keys[Role.POOL],
        "/lease": key,
        f"/leases/{lease['task_id']}/complete": key,
    }
    halves = []
    for path, caller in callers.items():
        body = json.dumps(_body(path, lease)).encode()
        reader, writer = await _head(process, path, caller, len(body))
        writer.write(body[: len(body) // 2])
        await writer.drain()
        halves.append((path, reader, writer, body[len(body) // 2 :]))
    before = await value(own_database, _EVERYTHING)
    os.kill(process.pid, signal.SIGTERM)
    await _refusing(process)
    for path, reader, writer, rest in halves:
        writer.write(rest)
        async with asyncio.timeout(20):
            status, problem = await _answer(reader)
        assert (path, status, problem["code"]) == (path, 503, "shutting_down")
        writer.close()
    assert await value(own_database, _EVERYTHING) == before
    assert await _ended(process) == 0


def _body(path: str, lease: Any) -> dict[str, Any]:
    task = {"agent_type": "generation", "payload": {"a": "b" * 100}}
    bodies: dict[str, dict[str, Any]] = {
        "/tasks": task,
        "/tasks/batch": {"tasks": [task] * 3},
        "/workers": registration(),
        "/lease": _ask(0),
    }
    return bodies.get(path, {"token": lease["token"], "result": {"a": 1}})


async def test_a_client_that_dies_in_the_middle_of_its_body_is_no_error_of_ours(
    process: Api, own_database: Database, tmp_path: Path
) -> None:
    key = await _worker(process)
    before = await value(own_database, _EVERYTHING)
    for path, caller in (("/lease", key), ("/tasks", process.keys[Role.ADMIN])):
        _, writer = await _head(process, path, caller, 1000)
        writer.write(b'{"request_id": ')
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    for _ in range(3):
        assert await _waiting(process) == 0
    log = (tmp_path / "api.log").read_text()
    assert "Traceback" not in log, log
    assert await value(own_database, _EVERYTHING) == before


async def _hang_up(worker: Connection, ask: dict[str, Any], moment: asyncio.Event) -> None:
    poll = asyncio.create_task(worker.post("/lease", ask))
    await moment.wait()
    worker.close()
    await asyncio.gather(poll, return_exceptions=True)


async def test_a_client_that_hung_up_waits_no_more(process: Api) -> None:
    moment = asyncio.Event()
    hanging_up = asyncio.create_task(_hang_up(await connect(process.port, await _worker(process)), _ask(), moment))
    await _wait_for_polls(process, 1)
    moment.set()
    await hanging_up
    await _wait_for_polls(process, 0)
    supervisor = await connect(process.port, process.keys[Role.SUPERVISOR])
    task = (await supervisor.post("/tasks", {"agent_type": "ranking"})).json()
    patient = await connect(process.port, await _worker(process))
    assert (await patient.post("/lease", _ask())).json()["task_id"] == task["id"]


async def test_hanging_up_just_when_a_task_comes_loses_no_task(process: Api, own_database: Database) -> None:
    """Whichever is first: the task stays in the queue, or it is leased and the same request receives it again."""
    supervisor = await connect(process.port, process.keys[Role.SUPERVISOR])
    for round_ in range(20):
        key, ask, moment = await _worker(process), _ask(), asyncio.Event()
        hanging_up = asyncio.create_task(_hang_up(await connect(process.port, key), ask, moment))
        await _wait_for_polls(process, 1)
        submitting = asyncio.create_task(supervisor.post("/tasks", {"agent_type": "ranking"}))
        await asyncio.sleep(0.002 * (round_ % 8))
        moment.set()
        await hanging_up
        task = (await submitting).json()
        again = await connect(process.port, key)
        lease = (await again.post("/lease", ask)).json()
        assert lease["task_id"] == task["id"]
        assert (
            await again.post(f"/leases/{task['id']}/complete", {"token": lease["token"], "result": {}})
        ).status == 200
        again.close()
    rows = await fetch(own_database, "SELECT state, failures FROM task_history")
    assert [tuple(row) for row in rows] == [("completed", 0)] * 20
