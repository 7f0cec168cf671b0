"""`python -m benchmarks.attacks`: how long heavy and hostile requests keep others waiting.

Each attack runs for a few seconds in a process of its own, while two others ask for `GET /livez` and, with the key of a
worker, `POST /lease` twenty times a second. The longest of their delays is what counts.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import asyncpg

from app.admin.rules.audit import AuditEntry, Link, next_entry
from app.db.database import Database
from app.kernel.modes import Mode
from app.scaling.service import tick
from benchmarks import report
from benchmarks.figures import Figure, Section
from benchmarks.http_client import Connection, connect
from benchmarks.machine import Machine
from benchmarks.processes import rss_mb
from benchmarks.testbed import Testbed, start_testbed
from benchmarks.workers import register_workers

AIM_SECONDS = 0.25
_SECONDS = 4.0
_PROBES_PER_SECOND = 20
_ENTRIES = 20_000
# As large as they may be: labels of 8 KiB, errors of 64 KiB, results, and all that lists show of them.
_FILL = (
    """INSERT INTO task_history (id, seq, state, agent_type, priority, payload, labels, timeout_seconds, max_attempts,
        retry_delays, request_hash, depends_on, created_at, finished_at, result, error)
    SELECT gen_random_uuid(), n, CASE WHEN n % 2 = 0 THEN 'failed' ELSE 'completed' END, 'ranking', 2, '{}',
        (SELECT jsonb_object_agg('label ' || k, repeat('x', 190)) FROM generate_series(1, 40) k), 600, 3, '{}', '',
        array_fill(gen_random_uuid(), ARRAY[20]), now(), date_trunc('hour', now()),
        CASE WHEN n % 2 = 1 THEN jsonb_build_object('text', repeat(md5(n::text), 2000)) END,
        CASE WHEN n % 2 = 0 THEN jsonb_build_object('code', 'a', 'message', repeat('x', 2000), 'retryable', false,
            'attempt', 1, 'detail', jsonb_build_object('text', repeat(md5(n::text), 1900))) END
    FROM generate_series(1, 2000) n""",
    """INSERT INTO events (at, kind, task_id, agent_type, detail)
    SELECT finished_at, 'task.' || state, id, agent_type, coalesce(error, '{}') FROM task_history""",
    """INSERT INTO tasks (id, state, agent_type, priority, payload, labels, timeout_seconds, max_attempts, retry_delays,
        request_hash, created_at)
    SELECT gen_random_uuid(), 'pending', 'ranking', 2, jsonb_build_object('text', repeat(md5(n::text), 30)), '{}', 600,
        3, '{}', '', now() FROM generate_series(1, 20000) n""",
    """INSERT INTO workers (id, name, incarnation, state, capabilities, labels, last_seen_at, registered_at,
        first_beat_at, memory_gb, cpu_cores, recent_errors)
    SELECT gen_random_uuid(), 'worker ' || n, 1, 'ready', '{ranking,generation,evolution}',
        (SELECT jsonb_object_agg('label ' || k, repeat('x', 190)) FROM generate_series(1, 40) k), now(), now(), now(),
        1, 1, '[]' FROM generate_series(1, 900) n""",
    """INSERT INTO utilisation (minute, subject, measure, samples, total, low, high, last, last_at)
    SELECT date_trunc('minute', now()) - m * interval '1 minute', 'host:' || h, measure, 12, 500, 10, 90, 40, now()
    FROM generate_series(0, 1500) m, generate_series(1, 20) h, unnest(ARRAY['cpu', 'memory']) measure""",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A service that holds what is costly to read; keys of an admin and of a worker."""

    port: int
    key: str
    worker_key: str
    decision_id: int
    checkpoint_id: int
    seconds: float = _SECONDS

    def request(self, method: str, path: str, body: bytes = b"", *fields: str, key: str | None = None) -> bytes:
        """A request after which the connection is closed."""
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: a",
            "Connection: close",
            f"Authorization: Bearer {key or self.key}",
        ]
        if not any(field.lower().startswith(("content-length", "transfer-encoding")) for field in fields):
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "Content-Type: application/json", *fields, "", ""]).encode() + body


Attack = Callable[[Target], Awaitable[object]]


async def _exchange(target: Target, data: bytes) -> int:
    """Send all, read all; the status."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        try:
            writer.write(data)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            while await reader.read(1 << 20):
                pass
            return int(head[9:12])
        finally:
            writer.close()
    return 0


async def _repeat(target: Target, data: bytes | Callable[[], bytes], clients: int = 8) -> list[int]:
    """So many clients send the same request again and again; the statuses of the answers."""
    end, statuses = time.monotonic() + target.seconds, []

    async def send() -> None:
        while time.monotonic() < end:
            statuses.append(await _exchange(target, data if isinstance(data, bytes) else data()))

    await asyncio.gather(*(send() for _ in range(clients)))
    return statuses


def reading(path: str, clients: int = 8) -> Attack:
    """Many clients read the same."""
    return lambda target: _repeat(target, target.request("GET", _filled(path, target)), clients)


def posting(path: str, make_body: Callable[[Target], bytes], clients: int = 8, *fields: str) -> Attack:
    """Many clients send the same body."""
    return lambda target: _repeat(
        target, target.request("POST", _filled(path, target), make_body(target), *fields), clients
    )


def _filled(path: str, target: Target) -> str:
    since = datetime.now(UTC) - timedelta(hours=24)
    return path.format(
        decision=target.decision_id, checkpoint=target.checkpoint_id, since=since.strftime("%Y-%m-%dT%H:%M:00Z")
    )


async def hold(target: Target, data: bytes, clients: int) -> None:
    """Many clients send this, and neither read nor send anything else."""
    with ExitStack() as held:
        for _ in range(clients):
            client = held.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with suppress(OSError):
                client.connect(("127.0.0.1", target.port))
                client.setblocking(False)
                client.send(data)
        await asyncio.sleep(target.seconds)


async def drip(target: Target) -> None:
    """Many clients send a head byte by byte."""
    data, end = target.request("POST", "/tasks", b"{}"), time.monotonic() + target.seconds

    async def send() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", target.port)
        for place in range(len(data)):
            if time.monotonic() > end:
                break
            writer.write(data[place : place + 1])
            await asyncio.sleep(0.02)
        writer.close()

    await asyncio.gather(*(send() for _ in range(200)), return_exceptions=True)


def _tasks_of_9_kb(_: Target) -> bytes:
    task = {"agent_type": "ranking", "payload": {"text": "x" * 9000}}
    return json.dumps({"tasks": [task] * 1000}).encode()


def _large_task(_: Target) -> bytes:
    return json.dumps({"agent_type": "ranking", "payload": {"text": "x" * ((12 << 20) - 100)}}).encode()


def _dense_task(_: Target) -> bytes:
    return json.dumps({"agent_type": "ranking", "payload": {"a": [[0]] * 200_000}}).encode()


def _chunks(_: Target) -> bytes:
    return b"".join(b"1;" + b"e" * 1000 + b"\r\n \r\n" for _ in range(2000)) + b"0\r\n\r\n"


def _what_if(target: Target) -> bytes:
    return json.dumps({"decision_id": target.decision_id, "config": {"worker_pool": {"max_workers": 20}}}).encode()


def _guess(target: Target) -> bytes:
    return target.request("GET", "/tasks", key=f"cvn_{uuid4().hex[:12]}_guess")


def _guessed_item(_: str) -> dict[str, object]:
    return {"authorization": f"Bearer cvn_{uuid4().hex[:12]}_guess", "operation": "lease"}


def _strange_item(key: str) -> dict[str, object]:
    return {"authorization": f"Bearer {key}", "operation": "lease", "body": dict.fromkeys(map(str, range(300)), 0)}


async def _exchanges(target: Target, make_item: Callable[[str], dict[str, object]]) -> None:
    body = json.dumps({"items": [make_item(target.worker_key) for _ in range(512)]}).encode()
    await _repeat(target, target.request("POST", "/leases/exchange", body, key=target.worker_key))


async def _guesses(target: Target) -> None:
    await _repeat(target, partial(_guess, target), 32)


async def _unread(target: Target, path: str, clients: int = 64, requests: int = 16) -> None:
    await hold(target, target.request("GET", path).replace(b"Connection: close\r\n", b"") * requests, clients)


async def _silent(target: Target) -> None:
    await hold(target, b"", 1100)


async def _pipelined(target: Target) -> None:
    await hold(target, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" * 20_000, 8)


ATTACKS: Mapping[str, Attack] = {
    "nothing": lambda target: asyncio.sleep(target.seconds),
    "pages of 500 tasks": reading("/tasks?limit=500"),
    "pages of 500 failed tasks": reading("/tasks?limit=500&state=failed"),
    "pages of tasks by a label that none has": reading("/tasks?limit=500&label=a:nothing"),
    "pages of 500 dead letters": reading("/dead-letters?limit=500"),
    "pages of 500 events": reading("/events?limit=500"),
    "pages of 500 outputs": reading("/outputs?limit=500"),
    "pages of 500 workers": reading("/workers?limit=500&all=true"),
    "pages of 500 audit entries": reading("/audit?limit=500"),
    "pages of 500 decisions": reading("/scaling/decisions?limit=500"),
    "1,500 steps of utilisation": reading("/metrics/utilisation?since={since}&step=60"),
    "checks of the audit log": posting("/audit/verify", lambda _: b"{}"),
    "decisions with inputs": reading("/scaling/decisions/{decision}?inputs=true"),
    "replays of 100 decisions": posting("/scaling/decisions/replay", lambda _: b'{"limit": 100}'),
    "what-if": posting("/scaling/what-if", _what_if),
    "contents of a checkpoint": reading("/checkpoints/{checkpoint}/content"),
    "checks of a checkpoint": posting("/checkpoints/{checkpoint}/verify", lambda _: b""),
    "the description of the API": reading("/openapi.json"),
    "metrics": reading("/metrics"),
    "health reports": reading("/health/report", 32),
    "batches of 1,000 tasks of 9 KB": posting("/tasks/batch", _tasks_of_9_kb),
    "40 bodies of 12 MiB": posting("/tasks", _large_task, 40),
    "bodies of many values": posting("/tasks", _dense_task),
    "512 guesses of keys in a request": partial(_exchanges, make_item=_guessed_item),
    "512 items of many unknown fields": partial(_exchanges, make_item=_strange_item),
    "chunks with long extensions": posting("/tasks", _chunks, 8, "Transfer-Encoding: chunked"),
    "bodies that are to be awaited": posting("/tasks", lambda _: b"{}", 32, "Expect: 100-continue"),
    "compressed bodies": posting("/tasks", lambda _: b"\x1f\x8b" + bytes(60_000), 32, "Content-Encoding: gzip"),
    "guesses of keys": _guesses,
    "heads byte by byte": drip,
    "silent connections": _silent,
    "pipelined requests": _pipelined,
    "pages that are not read": partial(_unread, path="/tasks?limit=500"),
    "streams that are not read": partial(_unread, path="/events/stream", clients=120, requests=1),
}


async def fill(url: str) -> int:
    """Add what is costly to read, all of it as large as it may be; the id of a decision."""
    connection = await asyncpg.connect(url)
    for statement in _FILL:
        await connection.execute(statement)
    await _fill_audit(connection)
    database = Database(url)
    async with database.transaction() as transaction:
        decision = (await tick.tick(transaction, database, Mode.PRODUCTION))["decision"]
    await database.close()
    await connection.execute(
        "INSERT INTO decisions (decided_at, decision_type, current_workers, target_workers, inputs, output, roster_id) "
        "SELECT decided_at, decision_type, current_workers, target_workers, inputs, output, roster_id "
        "FROM decisions, generate_series(1, 500)"
    )
    await connection.execute("ANALYZE")
    await connection.close()
    return int(decision)


async def _fill_audit(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    last = await connection.fetchrow("SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1")
    link = Link(seq=last["seq"], digest=last["digest"]) if last else Link()
    rows, at = [], datetime.now(UTC)
    for number in range(_ENTRIES):
        text = "x" * 20_000 if number % 40 == 0 else "x"
        entry = next_entry(link, at, AuditEntry(by="k", action="a", before=None, after={"text": text}, reason="r"))
        link = Link(seq=entry.seq, digest=entry.digest)
        content = (json.dumps(entry.content.before), json.dumps(entry.content.after))
        rows.append((entry.seq, entry.at, "k", "a", *content, "r", entry.digest))
    columns = ["seq", "at", "by", "action", "before", "after", "reason", "digest"]
    await connection.copy_records_to_table("audit", records=rows, columns=columns)


class Probe:
    """Asks for something at a steady pace; the seconds that each answer took."""

    def __init__(self, ask: Callable[[], Awaitable[object]]) -> None:
        self.delays: list[float] = []
        self._ask = ask

    async def run(self) -> None:
        """Ask until cancelled."""
        clock = asyncio.get_running_loop().time
        following = clock()
        while True:
            start = clock()
            await self._ask()
            self.delays.append(clock() - start)
            following += 1 / _PROBES_PER_SECOND
            await asyncio.sleep(max(0.0, following - clock()))


def attack(name: str, target: Target) -> object:
    """Run an attack in this process."""
    return asyncio.run(_run(ATTACKS[name], target))


async def _run(attack: Attack, target: Target) -> object:
    return await attack(target)


async def delays(name: str, target: Target, probes: list[Probe]) -> list[float]:
    """The longest delay of each probe while an attack runs, in seconds."""
    for probe in probes:
        probe.delays.clear()
    asking = [asyncio.create_task(probe.run()) for probe in probes]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        await asyncio.get_running_loop().run_in_executor(pool, attack, name, target)
    for task in asking:
        if task.done():
            task.result()  # it was not answered
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    return [max(probe.delays) for probe in probes]


async def probes_of(testbed: Testbed) -> list[Probe]:
    """A caller without a key, and a worker that asks for a task."""
    (worker,) = await register_workers(testbed, 1)
    stranger: Connection = await connect(testbed.port, testbed.key)

    async def lease() -> None:
        await worker.connection.post("/lease", {"request_id": str(uuid4()), "wait_seconds": 0})

    return [Probe(lambda: stranger.get("/livez")), Probe(lease)]


async def _measure(names: list[str], seconds: float) -> list[Figure]:
    async with start_testbed() as testbed:
        decision = await fill(testbed.database_url)
        admin = await connect(testbed.port, testbed.key)
        checkpoint = (await admin.post("/checkpoints", {"reason": "attacks"})).json()["id"]
        (worker,) = await register_workers(testbed, 1)
        target = Target(
            port=testbed.port,
            key=testbed.key,
            worker_key=worker.key,
            decision_id=decision,
            checkpoint_id=checkpoint,
            seconds=seconds,
        )
        # Last, since a connection that is not used for long is closed.
        probes = await probes_of(testbed)
        figures = []
        for name in names:
            before = rss_mb(testbed.api)
            worst = max(await delays(name, target, probes))
            grown = rss_mb(testbed.api) - before
            print(f"{name}: {worst * 1000:.0f} ms, {grown:+.0f} MiB", file=sys.stderr, flush=True)
            aim = AIM_SECONDS * 1000
            figures.append(Figure(name=name, value=worst * 1000, unit="ms", target=aim, more_is_better=False))
        return figures


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("names", nargs="*", help="attacks to run; all by default")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="length of each")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    options = parser.parse_args()
    machine = Machine.now()
    if unknown := [name for name in options.names if name not in ATTACKS]:
        parser.error(f"there is no attack {unknown[0]!r}; there are: {', '.join(ATTACKS)}")
    figures = asyncio.run(_measure(options.names or list(ATTACKS), options.seconds))
    section = Section(title="longest delay of others", figures=figures)
    print((report.as_json if options.output == "json" else report.table)(machine, [section]))


if __name__ == "__main__":
    main()
