"""The dashboard over a long queue: first paint of each page in Chromium, a change on the screen, cost of a viewer."""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import median
from urllib.parse import urlencode

import asyncpg
from playwright.async_api import Page, async_playwright

from benchmarks import configuration, deep_queue, finished
from benchmarks.figures import Figure
from benchmarks.http_client import Connection, connect
from benchmarks.percentiles import percentile
from benchmarks.processes import CpuSeconds
from benchmarks.testbed import Testbed, start_testbed

_PAGES = [
    *("", "/tasks", "/tasks?state=failed", "/tasks?state=executing", "/tasks?label=a:b", "/tasks/{task}", "/workers"),
    *("/goals", "/agents", "/models", "/decisions", "/config", "/alerts", "/audit"),
]
# Root cannot have the browser's own sandbox; containers have little shared memory.
_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
_LOADS = 5
_CHANGES = 20
_VIEWERS = 20
_COUNTS = (0, 1, 1, 0, 0, 1)
_DAY_SECONDS = 86_400
# For longer than what is dear to read on the page rests after the first look.
_WARM_UP_SECONDS = 35.0
_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
_RESPONSE = "performance.getEntriesByType('navigation')[0].responseEnd"
# The time at which the number of waiting tasks of the agent type is another.
_WATCH = """() => {
    const count = () => document.querySelector('#agents a[href*="ranking"]').closest('tr').cells[1].textContent;
    const before = count();
    window.changed = new Promise((resolve) => new MutationObserver((_, observer) => {
        if (count() === before) return;
        observer.disconnect();
        resolve(Date.now());
    }).observe(document.querySelector('#agents'), { childList: true, subtree: true, characterData: true }));
}"""


async def measure(tasks: int, seconds: float) -> list[Figure]:
    """The figures with so many waiting and as many finished tasks; the cost of viewers over so many seconds each."""
    async with start_testbed(with_loops=True) as testbed:
        await deep_queue.fill(testbed, tasks)
        await finished.fill(testbed, tasks, deep_queue.TASKS_PER_GOAL)
        session = await _log_in(testbed)
        figures = [*await _why(testbed)]
        program = shutil.which("chromium")
        if program is None:
            figures.append(Figure(name="pages", value=None, note="chromium is not installed"))
        else:
            figures += await _in_browser(testbed, program, session)
        return figures + await _viewers(testbed, session, seconds)


async def _why(testbed: Testbed) -> list[Figure]:
    connection = await connect(testbed.port, testbed.key)
    seconds = []
    for task in await _tasks(testbed, 100):
        begun = time.perf_counter()
        (await connection.get(f"/tasks/{task}/why")).json()
        seconds.append(time.perf_counter() - begun)
    connection.close()
    shares = (0.5, 0.99)
    return [
        Figure(
            name=f"why, p{100 * share:.0f}",
            value=1000 * percentile(seconds[10:], share),
            unit="ms",
            target=50,
            more_is_better=False,
        )
        for share in shares
    ]


async def _tasks(testbed: Testbed, count: int) -> list[str]:
    """Ids of waiting tasks from all over the queue."""
    database = await asyncpg.connect(testbed.database_url)
    try:
        rows = await database.fetch("SELECT id FROM tasks TABLESAMPLE SYSTEM (0.2) ORDER BY random() LIMIT $1", count)
    finally:
        await database.close()
    return [str(row["id"]) for row in rows]


async def _log_in(testbed: Testbed) -> str:
    """The cookie of a session, by the form of the login."""
    head, body = await _request(testbed, "GET", "/dashboard/login", "")
    word, field = (
        re.search(rb"set-cookie: ([^;]+)", head, re.IGNORECASE),
        re.search(rb'name="csrf" value="([^"]+)"', body),
    )
    assert word is not None
    assert field is not None
    form = urlencode({"csrf": field[1].decode(), "key": testbed.key})
    head, _ = await _request(testbed, "POST", "/dashboard/login", word[1].decode(), form)
    session = re.search(rb"set-cookie: (convener_session[^;]+)", head, re.IGNORECASE)
    assert session is not None, head
    return session[1].decode()


async def _request(testbed: Testbed, method: str, path: str, cookie: str, form: str = "") -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", testbed.port)
    fields = (
        f"Host: 127.0.0.1:{testbed.port}\r\nCookie: {cookie}\r\nConnection: close\r\nContent-Length: {len(form)}\r\n"
    )
    fields += "Content-Type: application/x-www-form-urlencoded\r\n"
    writer.write(f"{method} {path} HTTP/1.1\r\n{fields}\r\n{form}".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head, body


async def _in_browser(testbed: Testbed, program: str, session: str) -> list[Figure]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=_OPTIONS)
        address = f"http://127.0.0.1:{testbed.port}"
        context = await browser.new_context(base_url=address, viewport={"width": 1280, "height": 900})
        name, _, value = session.partition("=")
        await context.add_cookies([{"name": name, "value": value, "url": f"{address}/dashboard"}])
        page = await context.new_page()
        (task,) = await _tasks(testbed, 1)
        figures = [figure for path in _PAGES for figure in await _paint(page, path, task)]
        figures += await _changes(page, testbed)
        await browser.close()
        return figures


async def _paint(page: Page, path: str, task: str) -> list[Figure]:
    paints, responses = [], []
    for _ in range(_LOADS):
        answer = await page.goto(f"/dashboard{path.format(task=task)}")
        assert answer is not None
        assert answer.status == 200, path
        paint = None
        while paint is None:
            paint = await page.evaluate(_PAINT)
        paints.append(float(paint))
        responses.append(float(await page.evaluate(_RESPONSE)))
    name = path.partition("{")[0] or "/"
    return [
        Figure.of(f"{name}: first paint", paints, "ms", target=300, more_is_better=False),
        Figure.of(f"{name}: end of the answer", responses, "ms"),
    ]


async def _changes(page: Page, testbed: Testbed) -> list[Figure]:
    await page.goto("/dashboard")
    await asyncio.sleep(_WARM_UP_SECONDS)
    connection = await connect(testbed.port, testbed.key)
    delays = []
    for _ in range(_CHANGES):
        await page.evaluate(_WATCH)
        begun = time.time()
        await _submit(connection)
        delays.append(float(await page.evaluate("window.changed")) - 1000 * begun)
        await asyncio.sleep(1)
    connection.close()
    return [
        Figure(
            name=f"a change on the screen, p{100 * share:.0f}",
            value=percentile(delays, share),
            unit="ms",
            target=250,
            more_is_better=False,
        )
        for share in (0.5, 0.95)
    ]


async def _submit(connection: Connection) -> None:
    (await connection.post("/tasks", {"agent_type": "ranking", "payload": {}})).json()


async def _viewers(testbed: Testbed, session: str, seconds: float) -> list[Figure]:
    """Percent of a core of API and PostgreSQL that the first and each further viewer cost, in quiet and in a rush.

    What the service does by itself varies by more than a viewer costs, so times with and without one take turns, and no
    task rises in priority, as a million would in some of these times. The machine is faster and slower by a fifth from
    one minute to the next: the loops, which do the same all the time and nothing for viewers, show by how much.
    """
    aging = dict.fromkeys((f"{priority}_after_seconds" for priority in ("low", "medium", "high")), _DAY_SECONDS)
    await configuration.change(testbed, {"queue": {"aging": aging}})
    figures = []
    for situation, pause in (("in quiet", None), ("4 changes a second", 0.25)):
        readings: list[tuple[int, CpuSeconds]] = []
        for count in (*_COUNTS, 1 + _VIEWERS):
            async with _following(testbed, session, count):
                readings.append((count, await _spend(testbed, seconds, pause)))
        usual_loops = median(cpu.loops for _, cpu in readings)
        costs: dict[int, list[float]] = {}
        for count, cpu in readings:
            costs.setdefault(count, []).append(100 * (cpu.api + cpu.postgres) / seconds * usual_loops / cpu.loops)
        first = [one - none for none, one in zip(costs[0], costs[1], strict=True)]
        further = (costs[1 + _VIEWERS][0] - median(costs[1])) / _VIEWERS
        costs_by_name = {"first viewer": first, f"each of {_VIEWERS} further ones": [further]}
        figures += [
            Figure.of(f"{name}, {situation}", values, "% of a core", target=2, more_is_better=False)
            for name, values in costs_by_name.items()
        ]
    return figures


@asynccontextmanager
async def _following(testbed: Testbed, session: str, count: int) -> AsyncIterator[None]:
    writers: Sequence[asyncio.StreamWriter] = []
    readers = [await _follow(testbed, session) for _ in range(count)]
    writers = [writer for _, writer in readers]
    drains = [asyncio.create_task(_drain(reader)) for reader, _ in readers]
    try:
        yield
    finally:
        for drain in drains:
            drain.cancel()
        for writer in writers:
            writer.close()


async def _follow(testbed: Testbed, session: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", testbed.port)
    head = f"GET /dashboard/stream HTTP/1.1\r\nHost: 127.0.0.1:{testbed.port}\r\nCookie: {session}\r\n\r\n"
    writer.write(head.encode())
    status = await reader.readline()
    assert b" 200 " in status, status
    return reader, writer


async def _drain(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


async def _spend(testbed: Testbed, seconds: float, pause: float | None) -> CpuSeconds:
    """What the processes take in so many seconds, in which a task is submitted after each pause."""
    await asyncio.sleep(_WARM_UP_SECONDS)
    # Only now: the service hangs up on whoever says nothing for so long.
    connection = await connect(testbed.port, testbed.key)
    before, begun = CpuSeconds.read(testbed), time.perf_counter()
    while (left := seconds - (time.perf_counter() - begun)) > 0:
        if pause is not None:
            await _submit(connection)
        await asyncio.sleep(min(left, pause or left))
    connection.close()
    return CpuSeconds.read(testbed).since(before)
