"""Blocks of workers in jobs of a real Slurm, below a real control plane: what dies comes back, and nothing twice."""

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.slurm import SlurmCluster
from tests.system.conftest import Up, until
from tests.system.slurm_pool import PAUSE, back_at_one_block, control_plane, jobs, ready
from tests.system.supervising import all_completed, ask, completions, submit

pytestmark = pytest.mark.slow
_BOUNDS = ("--mode", "production", "--min-workers", "2", "--max-workers", "2")


async def test_a_block_serves_and_is_found_again_and_replaced(cluster: SlurmCluster, tmp_path: Path) -> None:
    async with control_plane(cluster, tmp_path, *_BOUNDS, CONVENER_POOL_SIZE="2") as up:
        workers = await ready(up, 2)
        (job,) = jobs(cluster, "RUNNING")
        assert {worker["labels"]["convener-pool"] for worker in workers} == {"slurm/lab"}
        assert all(worker["ends_at"] for worker in workers)
        (secrets,) = (up.state / "blocks" / "lab").glob("*/secrets")
        key = secrets.read_text().split("cvn_")[1][:20]
        assert secrets.stat().st_mode & 0o077 == 0
        assert not [p for p in psutil.process_iter() if any(key in word for word in _words(p))]
        assert key not in cluster.command("scontrol", "write", "batch_script", job, "-")

        ids = await submit(up, 12, 0.5, timeout_seconds=30)
        up.kill()
        await up.start()
        await all_completed(up, ids)
        assert await completions(up) == Counter(dict.fromkeys(ids, 1))
        assert jobs(cluster) == [job]

        ids += await submit(up, 6, 0.5, timeout_seconds=30)
        cluster.command("scancel", job)
        await all_completed(up, ids)
        assert await completions(up) == Counter(dict.fromkeys(ids, 1))
        # The job completes once its last process has ended, which may be after the tasks are done elsewhere.
        await until(lambda: job not in jobs(cluster), what="the end of the job that was canceled", pause=PAUSE)

        await _let_it_grow(up)
        ids += await submit(up, 12, 1.0, timeout_seconds=30)
        await until(lambda: len(jobs(cluster, "RUNNING")) == 2, what="a second block", pause=PAUSE)
        await all_completed(up, ids)
        await back_at_one_block(cluster, up)
        assert await completions(up) == Counter(dict.fromkeys(ids, 1))


async def test_a_full_partition_is_no_failure_and_a_lost_node_no_loss(cluster: SlurmCluster, tmp_path: Path) -> None:
    blocker = cluster.command("sbatch", "--parsable", "--nodes=1", "--output=/dev/null", "--wrap", "sleep 600").strip()
    async with control_plane(
        cluster, tmp_path, CONVENER_POOL_SIZE="4", CONVENER_BLOCK_MIN_NODES="2", CONVENER_BLOCK_MAX_NODES="2"
    ) as up:
        await until(lambda: jobs(cluster, "PENDING"), what="a job that waits", pause=PAUSE)
        ids = await submit(up, 12, 0.5, timeout_seconds=30)
        await asyncio.sleep(3)
        assert len(jobs(cluster, "PENDING")) == 1
        (pool,) = (await ask(up, "/fleet"))["hosts"]
        assert "waits in the queue of slurm" in pool["member_waits"][0]["reason"]
        assert not pool["member_waits"][0]["is_failure"]
        cluster.command("scancel", blocker)
        await ready(up, 4)
        cluster.kill_node("n2")
        await all_completed(up, ids)
        assert await completions(up) == Counter(dict.fromkeys(ids, 1))
        cluster.start_node("n2")


async def _let_it_grow(up: Up) -> None:
    async with httpx.AsyncClient(base_url=up.url, headers=up.bearer("operator"), trust_env=False) as client:
        version = (await client.get("/config")).headers["etag"]
        change = {"worker_pool": {"max_workers": 4, "wait_target_seconds": 1}}
        answer = await client.patch("/config", json=change, headers={"If-Match": version})
    assert answer.is_success, answer.text


def _words(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), *process.environ().values()]
    except (psutil.Error, OSError):
        return []
