"""500 tasks through blocks of two minutes of a real Slurm: growth, a dead node, a dead control plane, and back.

Takes ten minutes, so it runs only where it is asked for; what it shows in small is in CI (`test_slurm.py`).
"""

import asyncio
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.slurm import SlurmCluster
from tests.system.conftest import Up
from tests.system.slurm_pool import control_plane, jobs, ready
from tests.system.supervising import ask, completions, submit

pytestmark = pytest.mark.slow
_LEAST, _MOST = 2, 8
_BOUNDS = ("--mode", "production", "--min-workers", str(_LEAST), "--max-workers", str(_MOST))
_SETTINGS = {
    "CONVENER_POOL_SIZE": str(_LEAST),
    "CONVENER_BLOCK_WALLTIME_MINUTES": "2",
    "CONVENER_BLOCK_LEAD_MINUTES": "0.5",
}
_TASKS = int(os.environ.get("CONVENER_TEST_TASKS", "500"))
_TASK_SECONDS, _TIMEOUT_SECONDS = 4.0, 20.0


@dataclass(slots=True)
class Record:
    """What was seen of jobs and workers; jobs by their ids, with the last of their states."""

    began_at: float = field(default_factory=time.monotonic)
    states: dict[str, str] = field(default_factory=dict)
    most_running: int = 0
    workers: list[tuple[int, int]] = field(default_factory=list)

    async def watch(self, up: Up, cluster: SlurmCluster) -> None:
        """Look until cancelled."""
        while True:
            lines = await asyncio.to_thread(cluster.command, "squeue", "-h", "-t", "all", "-o", "%i %T")
            self.states |= dict(line.split() for line in lines.splitlines() if len(line.split()) == 2)
            self.most_running = max(self.most_running, list(self.states.values()).count("RUNNING"))
            able = [w for w in (await ask(up, "/workers"))["items"] if w["state"] in ("ready", "busy")]
            sample = (round(time.monotonic() - self.began_at), len(able))
            if not self.workers or self.workers[-1][1] != sample[1]:
                self.workers.append(sample)
            await asyncio.sleep(1)


@pytest.mark.skipif(not os.environ.get("CONVENER_TEST_LARGE"), reason="takes ten minutes: set CONVENER_TEST_LARGE=1")
@pytest.mark.parametrize("partition", ["shared", "batch"])
async def test_all_tasks_complete_once_and_the_pool_is_back_at_its_minimum(
    cluster: SlurmCluster, tmp_path: Path, partition: str
) -> None:
    options = f"--partition={partition}"
    # Of exclusive nodes there are two, so that no replacement starts before an old block ends.
    most = _MOST if partition == "shared" else 4
    async with control_plane(cluster, tmp_path, *_BOUNDS, **_SETTINGS, CONVENER_BLOCK_OPTIONS=options) as up:
        await ready(up, _LEAST)
        record = Record()
        watching = asyncio.create_task(record.watch(up, cluster))
        ids = await submit(up, _TASKS, _TASK_SECONDS, timeout_seconds=_TIMEOUT_SECONDS)
        await _grown(record, most)
        lost = await _kill_a_node(cluster)
        await asyncio.sleep(40)
        before = _running(cluster)
        up.kill()
        await asyncio.sleep(5)
        await up.start()
        # Workers whose job ends meanwhile cannot report what they have done.
        lost += [token for token in before if token not in _running(cluster)]
        await _completed(up, cluster, 900)
        print(f"completed after {time.monotonic() - record.began_at:.0f} s", flush=True)
        assert await completions(up) == Counter(dict.fromkeys(ids, 1))
        # Idle workers stay for up to five minutes, and until then a block may end and be replaced.
        async with asyncio.timeout(400):
            while (await ask(up, "/fleet"))["hosts"][0]["size"] > _LEAST or len(jobs(cluster)) > _LEAST // 2:
                await asyncio.sleep(1)
        await ready(up, _LEAST, 240)
        print(f"back at the minimum after {time.monotonic() - record.began_at:.0f} s", flush=True)
        watching.cancel()
        attempts = [attempt for task in ids for attempt in (await ask(up, f"/tasks/{task}"))["attempts"]]
        ended = Counter((attempt["outcome"], (attempt["error"] or {}).get("code")) for attempt in attempts)
        print(f"jobs {Counter(record.states.values())}, at most {record.most_running} at once; attempts {ended}")
        print(f"workers over time {record.workers}")
        # What did not complete at once was on the node that was killed, or ended without a control plane.
        assert [a for a in attempts if not any(token in a["worker_name"] for token in lost)] == []
        assert "TIMEOUT" not in record.states.values()
        assert record.most_running * 2 >= most


async def _grown(record: Record, most: int) -> None:
    async with asyncio.timeout(120):
        while record.workers[-1:] == [] or record.workers[-1][1] < most:
            await asyncio.sleep(1)
    print(f"{most} workers after {time.monotonic() - record.began_at:.0f} s", flush=True)


async def _kill_a_node(cluster: SlurmCluster) -> list[str]:
    """Kill a node for five seconds; the tokens of the blocks that ran there."""
    await asyncio.sleep(20)
    tokens = _running(cluster, "-w", "n2")
    cluster.kill_node("n2")
    await asyncio.sleep(5)
    cluster.start_node("n2")
    print(f"killed a node with {len(tokens)} blocks", flush=True)
    assert tokens
    return tokens


def _running(cluster: SlurmCluster, *options: str) -> list[str]:
    """The tokens of the blocks whose jobs run."""
    names = cluster.command("squeue", "-h", "-t", "RUNNING", *options, "-o", "%j").split()
    return [name.split("-")[2] for name in names]


async def _completed(up: Up, cluster: SlurmCluster, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while (counts := await _states(up)).keys() != {"completed"}:
            print(counts, cluster.command("squeue", "-h", "-o", "%i %T %M %N").replace("\n", "; "), flush=True)
            await asyncio.sleep(10)


async def _states(up: Up) -> Counter[str]:
    page: dict[str, Any] = await ask(up, "/tasks", goal_id="kills", limit="500")
    return Counter(task["state"] for task in page["items"])
