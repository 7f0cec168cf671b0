"""kill -9 of everything, one after the other and all at once: work goes on, and nothing is left behind."""

import asyncio
from collections import Counter
from datetime import datetime
from functools import partial
from typing import Any

import psutil
import pytest

from tests.support.replicas import IS_REPLICATED
from tests.system.conftest import Up, about_up, until
from tests.system.supervising import all_completed, ask, completions, submit

pytestmark = pytest.mark.slow
_VICTIMS = ("worker_agent", "app.main", "app.background", "postgres", "worker_agent")
# Where there are two of everything.
_MORE_VICTIMS = ("pgbouncer", "haproxy", "app.main", "app.background", "pgbouncer")


async def test_every_process_may_die_while_work_goes_on(up: Up) -> None:
    await up.start()
    ids = await submit(up, 120 if IS_REPLICATED else 60, 0.3)
    for victim in (*_VICTIMS, *(_MORE_VICTIMS if IS_REPLICATED else ())):
        await asyncio.sleep(1.5)
        process = await up.running(victim)
        process.kill()
        await until(partial(_is_gone, process), what=f"the end of {victim}")
    await all_completed(up, ids)
    assert await completions(up) == Counter(dict.fromkeys(ids, 1))
    await _check_replacements(up)
    assert up.stop() == 0
    await until(lambda: not up.processes(), what="the end of every process")


def _is_gone(process: psutil.Process) -> bool:
    return not process.is_running()


async def _check_replacements(up: Up) -> None:
    records: list[dict[str, Any]] = []

    async with asyncio.timeout(60):
        while not records or not all(record["registered_at"] or record["closed_at"] for record in records):
            records = (await ask(up, "/replacements"))["items"]
            await asyncio.sleep(0.1)
    assert len(records) >= 2
    for record in (record for record in records if record["registered_at"]):
        steps = [record[f"{step}_at"] for step in ("detected", "requested", "started", "registered")]
        assert steps == sorted(steps, key=datetime.fromisoformat), record


@about_up
async def test_up_goes_on_where_it_was_killed_and_leaves_no_orphan(up: Up) -> None:
    await up.start()
    ids = await submit(up, 20, 0.5)
    await asyncio.sleep(1)
    up.kill()
    await up.start()
    await all_completed(up, ids)
    assert await completions(up) == Counter(dict.fromkeys(ids, 1))
    workers = (await ask(up, "/workers"))["items"]
    ours = [process for process in up.processes() if "worker_agent" in process.cmdline()]
    assert {process.pid for process in ours} == {worker["pid"] for worker in workers}
    assert len(ours) == 3
    assert up.stop() == 0
    await until(lambda: not up.processes(), what="the end of every process")


@about_up
async def test_a_killed_up_leaves_nothing_even_if_it_never_comes_back(up: Up) -> None:
    await up.start()
    await submit(up, 6, 2)
    await asyncio.sleep(1)
    assert up.processes()
    up.kill()
    await until(lambda: not up.processes(), what="the end of every process")


@about_up
async def test_a_second_up_on_the_same_directory_says_so(up: Up) -> None:
    await up.start()
    second = Up(up.state)
    with pytest.raises(AssertionError, match=r"in\s+use\s+by\s+process"):
        await second.start()
    assert second.child is not None
    assert second.child.returncode == 1
