"""The pool of `convener up` under load: half of it is killed at once, or all are told to go, and nothing is lost."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.system.conftest import Up, until
from tests.system.supervising import all_completed, ask, completions, submit

pytestmark = pytest.mark.slow
# The most that the mode development allows.
SIZE = 5
_STEPS = ("detected", "requested", "started", "registered", "first_lease")
# What the specification allows for; a machine where nothing else runs needs about one.
_REPLACED_WITHIN_SECONDS = 30.0


async def _order(up: Up, path: str, body: Any) -> Any:
    async with httpx.AsyncClient(base_url=up.url, headers=up.bearer("operator"), trust_env=False) as client:
        answer = await client.post(path, json=body)
    assert answer.is_success, answer.text
    return answer.json()


async def _pool(up: Up) -> list[Any]:
    """The workers, once there are as many as there should be, and all can work."""
    async with asyncio.timeout(60):
        while True:
            workers: list[Any] = (await ask(up, "/workers"))["items"]
            if [worker["state"] in ("ready", "busy") for worker in workers] == [True] * SIZE:
                return workers
            await asyncio.sleep(0.1)


async def _up_at_full_size(tmp_path: Path, grace: float = 10) -> Up:
    machine = Up(tmp_path / "state", CONVENER_POOL_SIZE=str(SIZE), CONVENER_STOP_GRACE_SECONDS=str(grace))
    await machine.start()
    return machine


def _tell(records: Sequence[Any], killed_at: datetime) -> None:
    for record in records:
        seconds = [(_at(record, step) - killed_at).total_seconds() for step in _STEPS]
        told = ", ".join(f"{step} +{taken:.2f} s" for step, taken in zip(_STEPS, seconds, strict=True))
        print(f"{record['worker_name']}, killed at 0: {told}")


def _at(record: Any, step: str) -> datetime:
    return datetime.fromisoformat(record[f"{step}_at"])


async def test_half_of_the_pool_is_killed_at_once_and_work_goes_on(tmp_path: Path) -> None:
    up = await _up_at_full_size(tmp_path)
    try:
        ids = await submit(up, 150, 0.4)
        pool = await _pool(up)
        victims, others = pool[:3], {worker["worker_id"] for worker in pool[3:]}
        killed_at = datetime.now(UTC)
        for worker in victims:
            psutil.Process(worker["pid"]).kill()
        await all_completed(up, ids)
        assert await completions(up) == Counter(dict.fromkeys(ids, 1)), "a task was lost, or completed twice"
        records = (await ask(up, "/replacements"))["items"]
        assert {record["lost_worker_id"] for record in records} == {worker["worker_id"] for worker in victims}
        _tell(records, killed_at)
        for record in records:
            steps = [_at(record, step) for step in _STEPS]
            assert steps == sorted(steps), record
            assert (steps[-1] - steps[0]).total_seconds() < _REPLACED_WITHIN_SECONDS, record
        assert others <= {worker["worker_id"] for worker in (await ask(up, "/workers"))["items"]}
        assert await _attempts(up) == {1}, "an attempt was burnt"
        times = await ask(up, "/replacements/times")
        assert (times["replacements"], times["working"]) == (3, 3)
        print(f"from detection to the first lease: {times['first_lease']}")
    finally:
        await _end(up)


async def _attempts(up: Up) -> set[int]:
    page = await ask(up, "/tasks", goal_id="kills", limit="500")
    return {task["attempt"] for task in page["items"]}


async def test_all_are_told_to_go_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    up = await _up_at_full_size(tmp_path)
    try:
        ids = await submit(up, 150, 0.4)
        for order in ("drain", "restart"):
            before = {worker["worker_id"] for worker in await _pool(up)}
            assert len(before) == (await _order(up, f"/workers/{order}", {"filter": {"all": True}}))[_DONE[order]]
            after = {worker["worker_id"] for worker in await _pool(up)}
            assert not before & after
        await all_completed(up, ids)
        assert await completions(up) == Counter(dict.fromkeys(ids, 1)), "a task was lost, or completed twice"
        assert await _attempts(up) == {1}, "an attempt was burnt"
        assert (await ask(up, "/replacements"))["items"] == [], "whoever was told to go is not lost"
        assert (await ask(up, "/fleet"))["reduced_capacity"] is False
    finally:
        await _end(up)


async def test_what_is_not_finished_within_the_grace_of_a_stop_goes_back_unharmed(tmp_path: Path) -> None:
    up = await _up_at_full_size(tmp_path, grace=1)
    try:
        await _pool(up)
        ids = await submit(up, SIZE, 6)
        async with asyncio.timeout(30):
            while [worker["state"] for worker in (await ask(up, "/workers"))["items"]].count("busy") < SIZE:
                await asyncio.sleep(0.1)
        await _order(up, "/workers/stop", {"filter": {"all": True}})
        await all_completed(up, ids)
        tasks = [await ask(up, f"/tasks/{task_id}") for task_id in ids]
        assert {(task["attempt"], task["rescues"]) for task in tasks} == {(1, 0)}
        assert {outcome["outcome"] for task in tasks for outcome in task["attempts"]} == {"released"}
        assert (await ask(up, "/replacements"))["items"] == [], "whoever was told to stop is not lost"
    finally:
        await _end(up)


_DONE = {"drain": "drained", "restart": "restarted"}


async def _end(up: Up) -> None:
    if up.child is not None and up.child.poll() is None:
        up.stop()
    await until(lambda: not up.processes(), what="the end of every process")
