"""Events as a stream: each exactly once over broken connections, ended in order, no burden when a client is slow."""

import asyncio
import gc
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.db.database import Database
from app.http import streaming
from app.kernel.access import Role
from app.kernel.errors import DatabaseUnavailable
from app.queue.api.event_stream import EventReaders, Follower, PageRequest
from app.queue.store import events
from tests.support.problems import is_problem
from tests.support.sql import execute, until, value
from tests.support.streams import Port, Source, on_a_port
from tests.system.conftest import api_process

_TELL = """
INSERT INTO events (kind, task_id, agent_type, goal_id, detail)
SELECT 'task.submitted', gen_random_uuid(), 'ranking', $2, jsonb_build_object('n', n, 'fill', repeat('x', $3))
FROM generate_series($4::int, $4 + $1 - 1) AS n
"""


@pytest.fixture
async def port(database: Database) -> AsyncIterator[Port]:
    async with on_a_port(database) as port:
        yield port


async def _tell(database: Database, count: int, goal: str = "goal", *, size: int = 0, start: int = 0) -> None:
    await execute(database, _TELL, count, goal, size, start)


async def _take(source: Source, count: int) -> list[tuple[str, str, str]]:
    """The next events of a connection of its own."""
    found = []
    async with asyncio.timeout(30), source.open() as stream:
        async for event in stream:
            found.append(event)
            if len(found) == count:
                break
    return found


def _numbers(found: list[tuple[str, str, str]]) -> list[int]:
    return [json.loads(data)["detail"]["n"] for _, _, data in found]


@pytest.mark.parametrize("path", ["/events", "/events/stream"])
async def test_an_event_is_its_cursor_its_kind_and_its_json(port: Port, path: str) -> None:
    task_id = await port.service.submitted(goal_id="kepler")
    source = Source(service=port.service, path=path, headers={"Accept": "text/event-stream"})
    ((cursor, kind, data),) = await _take(source, 1)
    (event,) = (await port.service.get("/events"))["items"]
    assert json.loads(data) == event
    assert (cursor, kind) == (event["cursor"], event["kind"])
    assert (event["task_id"], event["goal_id"], source.retry) == (task_id, "kepler", 2000)


async def test_a_stream_names_the_open_transaction_for_which_its_events_wait(port: Port, database: Database) -> None:
    writer = await database.connect()
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("INSERT INTO events (kind) VALUES ('task.submitted')")
    task = await port.service.submitted()
    async with asyncio.timeout(60), Source(service=port.service).open() as stream:
        cursor, kind, data = await anext(stream)
        assert kind == "open_writers"
        assert [each["pid"] for each in json.loads(data)] == [writer.get_server_pid()]
        await transaction.rollback()
        await writer.close()
        following = [await anext(stream) for _ in range(2)]
    submitted = [json.loads(data) for _, kind, data in following if kind == "task.submitted"]
    assert [event["task_id"] for event in submitted] == [task]
    assert [(kind, data) for _, kind, data in following if kind == "open_writers"] == [("open_writers", "[]")]
    # Whoever connects again with the id of the news misses nothing.
    again = await _take(Source(service=port.service, last_id=cursor), 1)
    assert again[0][1] == "task.submitted"


async def test_each_event_once_over_broken_connections(port: Port, database: Database) -> None:
    """Broken in the middle of a page, of what is written in one piece, and while others write."""
    await _tell(database, 40)
    source, found = Source(service=port.service), []
    for part in (1, 7, 13):
        found += await _take(source, part)
    writing = asyncio.create_task(_write_on(database))
    while len(found) < 100:
        found += await _take(source, 11)
    await writing
    assert _numbers(found[:100]) == list(range(100))
    assert len({cursor for cursor, _, _ in found}) == len(found)


async def _write_on(database: Database) -> None:
    for start in range(40, 120, 5):
        await _tell(database, 5, start=start)
        await asyncio.sleep(0.01)


async def test_a_stream_from_now_on_is_remembered_before_anything_happens(port: Port, database: Database) -> None:
    """Whoever asked for `now` and lost the connection is owed what happened meanwhile."""
    await _tell(database, 3)
    source = Source(service=port.service, query={"after": "now"})
    async with source.open() as stream:
        waiting = asyncio.ensure_future(anext(stream))
        await until(lambda: _true(bool(source.last_id)))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await _tell(database, 2, start=100)
    assert _numbers(await _take(source, 2)) == [100, 101]


async def _true(value: bool) -> bool:
    return value


async def test_the_header_is_stronger_than_the_query(port: Port, database: Database) -> None:
    await _tell(database, 3)
    whole = (await port.service.get("/events"))["items"]
    source = Source(service=port.service, query={"after": "now"}, last_id=whole[0]["cursor"])
    assert _numbers(await _take(source, 2)) == [1, 2]
    assert _numbers(await _take(Source(service=port.service, query={"after": whole[1]["cursor"]}), 1)) == [2]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({"goal_id": "mine"}, [("mine", "task.submitted"), ("mine", "task.cancelled")]),
        ({"kind": "task.cancelled"}, [("mine", "task.cancelled"), ("yours", "task.cancelled")]),
        ({"kind": ["task.cancelled", "task.failed"], "goal_id": "mine"}, [("mine", "task.cancelled")]),
    ],
)
async def test_filters_of_pages_and_streams(port: Port, query: dict[str, Any], wanted: list[tuple[str, str]]) -> None:
    for goal in ("mine", "yours"):
        task_id = await port.service.submitted(goal_id=goal)
        await port.service.post(f"/tasks/{task_id}/cancel")
    page = await port.service.get("/events", **query)
    assert [(event["goal_id"], event["kind"]) for event in page["items"]] == wanted
    found = await _take(Source(service=port.service, query=query), len(wanted))
    assert [(json.loads(data)["goal_id"], kind) for _, kind, data in found] == wanted


def _numbers_in(cursor: str) -> list[int]:
    return [int(number) for number in cursor.split("-")]


async def test_the_cursor_is_sent_when_no_event_matches(port: Port, database: Database) -> None:
    """So a client of a quiet goal does not read a busy queue again whenever its connection breaks."""
    await _tell(database, 700, "busy")
    source = Source(service=port.service, query={"goal_id": "quiet"})
    last = (await port.service.get("/events", limit=500, after="now"))["next"]
    async with source.open() as stream:
        waiting = asyncio.ensure_future(anext(stream))
        end = await value(database, "SELECT max(seq) FROM every_event")
        await until(lambda: _true(source.last_id.endswith(f"-{end}")))
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    # Both are pairs of numbers; as text 990 would come after 1000.
    assert _numbers_in(source.last_id) < _numbers_in(last)
    await _tell(database, 1, "quiet", start=9)
    assert _numbers(await _take(source, 1)) == [9]


async def test_comments_keep_a_silent_stream_alive(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HEARTBEAT_SECONDS", 0.1)
    source = Source(service=port.service, query={"after": "now"})
    async with source.open() as stream:
        waiting = asyncio.ensure_future(anext(stream))
        await until(lambda: _true(source.comments >= 2))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_client_that_hangs_up_leaves_nothing_behind(port: Port, database: Database) -> None:
    before = port.listeners
    sources = [Source(service=port.service, query={"after": "now"}) for _ in range(20)]
    following = [asyncio.create_task(_take(source, 1)) for source in sources]
    await until(lambda: _true(port.listeners == before + 20))
    # Nobody who waits holds a connection: all of them together would need more than there are.
    assert await port.service.submitted()
    await asyncio.gather(*following)
    await until(lambda: _true(port.listeners == before))
    assert not port.server.server_state.tasks


async def test_a_slow_client_is_read_for_no_further_than_it_takes(
    port: Port, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages wait in the database, not in the memory of the service; and the client still gets each event once."""
    await _tell(database, 20_000, size=1500)
    read, reads = events.read_batch, []

    async def counted(*given: Any) -> Any:
        found = await read(*given)
        reads.append(len(found.items))
        return found

    monkeypatch.setattr(events, "read_batch", counted)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", port.number))
        key = port.service.keys[Role.READER]
        slow.sendall(f"GET /events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        await until(lambda: _true(len(reads) >= 1))
        await _settled(reads)
        assert sum(reads) < 15_000
    await until(lambda: _true(not port.server.server_state.tasks))


async def _settled(reads: list[int]) -> None:
    """Return once no more is read for a while."""
    seen = -1
    while len(reads) != seen:
        seen = len(reads)
        await asyncio.sleep(1.5)


async def test_a_stream_holds_nothing_of_a_page_while_it_waits_for_the_next(
    port: Port, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred streams that waited for their turn to read took 67 MB, two thirds of it as rows and messages."""
    read_page, waits, may_go_on = Follower.read_page, asyncio.Event(), asyncio.Event()
    pages: list[int] = []

    async def one_page(follower: Follower, limit: int, max_bytes: int | None = None) -> Any:
        if pages:
            waits.set()
            await may_go_on.wait()
        page = await read_page(follower, limit, max_bytes)
        pages.append(len(page))
        return page

    def objects_of_events() -> int:
        gc.collect()
        return sum(isinstance(each, events.Event | streaming.Message) for each in gc.get_objects())

    monkeypatch.setattr(Follower, "read_page", one_page)
    await _tell(database, 60)
    before = objects_of_events()
    async with Source(service=port.service).open(), asyncio.timeout(30):
        await waits.wait()
        assert (pages, objects_of_events() - before) == ([60], 0)
        may_go_on.set()


async def test_a_stream_ends_with_its_key(port: Port) -> None:
    made = await port.service.post("/keys", {"role": "reader", "label": "dashboard"})
    source = Source(service=port.service, query={"after": "now"}, headers={"Authorization": f"Bearer {made['key']}"})
    async with asyncio.timeout(30), source.open() as stream:
        ending = asyncio.ensure_future(_rest(stream))
        await until(lambda: _true(bool(source.last_id)))
        assert (await port.service.ask("DELETE", f"/keys/{made['id']}")).status_code == 204
        assert await ending == []


async def _rest(stream: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in stream]


async def test_an_outage_of_the_database_is_waited_out(
    port: Port, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is turned away with an error would not come again."""
    read, outages = events.read_batch, iter(range(3))

    async def broken(*given: Any) -> Any:
        if next(outages, None) is not None:
            raise DatabaseUnavailable
        return await read(*given)

    monkeypatch.setattr(events, "read_batch", broken)
    await _tell(database, 2)
    assert _numbers(await _take(Source(service=port.service), 2)) == [0, 1]


async def _count_transactions_from(database: Database, offset: int) -> None:
    """Let the numbers of transactions be so much higher, or lower again, as on a standby that has lagged."""
    await execute(
        database,
        "CREATE OR REPLACE FUNCTION convener_transaction_offset() RETURNS bigint LANGUAGE sql IMMUTABLE "
        f"AS $$SELECT {offset}::bigint$$",
    )


async def test_whoever_follows_over_a_failover_that_lost_events_is_told(own_database: Database) -> None:
    async with on_a_port(own_database) as port:
        await _count_transactions_from(own_database, 10**6)
        source = Source(service=port.service, query={"after": "now"})
        async with asyncio.timeout(60), source.open() as stream:
            await port.service.submitted()
            assert (await anext(stream))[1] == "task.submitted"
            waiting = asyncio.create_task(
                port.service.ask("GET", "/events", params={"after": source.last_id, "wait_seconds": 30})
            )
            await _count_transactions_from(own_database, 0)
            cursor, kind, data = await anext(stream)
            assert (cursor, kind, json.loads(data)["code"]) == (source.last_id, "cursor_ahead", "cursor_ahead")
            assert await _rest(stream) == []
            is_problem(await waiting, 422, "cursor_ahead")
        # Nor does it go on when it connects again.
        again = await port.service.ask("GET", "/events/stream", headers={"Last-Event-ID": source.last_id})
        is_problem(again, 422, "cursor_ahead")


async def test_what_is_not_allowed_is_a_problem_before_a_stream_begins(port: Port) -> None:
    for path in ("/events", "/events/stream"):
        headers = {"Accept": "text/event-stream"}
        for query, field in (
            ({"after": "yesterday"}, "after"),
            ({"kind": "task.eaten"}, "kind.0"),
            ({"goal_id": "x" * 201}, "goal_id"),
        ):
            answer = await port.service.ask("GET", path, params=query, headers=headers)
            is_problem(answer, 422, "invalid_request", field)
        for wrong in ("1-2-3", "1" * 101):
            answer = await port.service.ask("GET", path, headers=headers | {"Last-Event-ID": wrong})
            is_problem(answer, 422, "invalid_request", "header.last-event-id")
        is_problem(await port.service.ask("GET", path, headers=headers, key=None), 401, "unauthenticated")


async def test_streams_end_in_order_when_the_service_stops(own_database: Database, tmp_path: Path) -> None:
    async with (
        api_process(own_database.url, tmp_path) as process,
        httpx.AsyncClient(base_url=process.url, trust_env=False, timeout=60) as client,
    ):
        begun: list[str] = []
        streams = [asyncio.create_task(_lines(client, process.bearer(Role.READER), begun)) for _ in range(20)]
        await until(lambda: _true(len(begun) == 20))
        os.kill(process.pid, signal.SIGTERM)
        async with asyncio.timeout(20):
            # A stream that is cut off in the middle of a chunk would raise.
            ended = await asyncio.gather(*streams)
        assert all(lines[0].startswith("id: ") for lines in ended)
        assert await asyncio.to_thread(psutil.Process(process.pid).wait, 20) == 0
        assert "Cancel" not in (tmp_path / "api.log").read_text()


async def _lines(client: httpx.AsyncClient, headers: dict[str, str], begun: list[str]) -> list[str]:
    lines: list[str] = []
    async with client.stream("GET", "/events/stream?after=now", headers=headers) as answer:
        async for line in answer.aiter_lines():
            begun += [] if lines else [line]
            lines.append(line)
    return lines


async def test_a_key_has_so_many_followers(port: Port) -> None:
    """Each reads every second, so that thousands of one key would leave no time to others."""
    readers = port.service.app.state.services[EventReaders]
    readers.max_followers = 2
    before = port.listeners
    async with AsyncExitStack() as streams:
        for _ in range(2):
            await streams.enter_async_context(Source(service=port.service).open())
        async with asyncio.timeout(30):
            while port.listeners < before + 2:
                await asyncio.sleep(0.01)
        for path in ("/events/stream", "/events?wait_seconds=5"):
            headers = {"Authorization": f"Bearer {port.service.keys[Role.READER]}"}
            refused = await port.service.client.get(path, headers=headers)
            assert is_problem(refused, 429, "too_many_requests")
    async with asyncio.timeout(30):
        while port.listeners > before:
            await asyncio.sleep(0.01)
    assert (await port.service.get("/events"))["next"]


async def test_streams_share_their_reads_wherever_they_began(
    port: Port, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, read_batch = [], events.read_batch

    async def counted(*values: Any) -> events.EventBatch:
        reads.append(values)
        return await read_batch(*values)

    monkeypatch.setattr(events, "read_batch", counted)
    streams: list[asyncio.Task[list[tuple[str, str, str]]]] = []
    for _ in range(30):
        # Another transaction, so that each begins elsewhere.
        await execute(database, "SELECT pg_current_xact_id()")
        opened = len(reads)
        source = Source(service=port.service, query={"after": "now"})
        streams.append(asyncio.create_task(_take(source, 40)))
        while len(reads) == opened:
            await asyncio.sleep(0.01)
    await asyncio.sleep(2.2)
    reads.clear()
    await asyncio.sleep(4)
    # Each looked four times: 120 times for itself.
    assert 4 <= len(reads) <= 40
    reads.clear()
    for start in range(0, 40, 10):
        await _tell(database, 10, start=start)
        await asyncio.sleep(0.2)
    for found in await asyncio.gather(*streams):
        assert _numbers(found) == list(range(40))
    assert len(reads) <= 60


async def test_a_read_that_fails_after_its_client_hung_up_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Each would leave a traceback in an outage, of which the connections tell once."""
    nowhere, readers = Database("postgresql://nobody@127.0.0.1:1/nowhere"), EventReaders(max_concurrency=1)
    async with readers.slots:
        client = asyncio.create_task(readers.read(nowhere, PageRequest(events.BEGINNING, None, 1, None)))
        await asyncio.sleep(0)
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
    del client
    async with readers.slots:
        gc.collect()
    await nowhere.close()
    assert "never retrieved" not in caplog.text
