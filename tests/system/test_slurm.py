"""Blocks of workers in jobs of a real Slurm, below a real control plane: what dies comes back, and nothing twice."""

import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.slurm import SlurmCluster, slurm_cluster
from tests.system.conftest import Up, until
from tests.system.supervising import all_completed, ask, completions, submit

pytestmark = pytest.mark.slow
_SETTINGS = {
    "CONVENER_PROVISIONER": "slurm",
    "CONVENER_HOST_NAME": "lab",
    "CONVENER_BLOCK_SLOTS": "2",
    "CONVENER_BLOCK_POLL_SECONDS": "0.5",
    "CONVENER_STOP_GRACE_SECONDS": "3",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as place, slurm_cluster(Path(place), "n1", "n2") as running:
        yield running


@asynccontextmanager
async def control_plane(cluster: SlurmCluster, place: Path, **settings: str) -> AsyncIterator[Up]:
    """A control plane whose pool are blocks of this cluster, which is empty again at the end."""
    variables: dict[str, Any] = {"SLURM_CONF": cluster.environment["SLURM_CONF"], **_SETTINGS, **settings}
    up = Up(place / "state", **variables)
    try:
        await up.start()
        yield up
    finally:
        if up.child is not None and up.child.poll() is None:
            up.stop()
        cluster.command("scancel", "--full", "--user=root")
        for left in up.processes():
            left.kill()
        await until(lambda: not jobs(cluster), what="the end of all jobs")


def jobs(cluster: SlurmCluster, state: str = "") -> list[str]:
    """The ids of jobs that have not ended, or of those in a state."""
    lines = cluster.command("squeue", "-h", "-o", "%i %T").splitlines()
    return [line.split()[0] for line in lines if line.endswith(state)]


async def ready(up: Up, count: int) -> Sequence[dict[str, Any]]:
    """The workers, as soon as so many are ready or at work, and no others are there."""
    workers: list[dict[str, Any]] = []
    async with asyncio.timeout(90):
        while len(workers) != count or not {worker["state"] for worker in workers} <= {"ready", "busy"}:
            workers = (await ask(up, "/workers"))["items"]
            await asyncio.sleep(0.2)
    return workers


async def test_a_block_serves_and_is_found_again_and_replaced(cluster: SlurmCluster, tmp_path: Path) -> None:
    async with control_plane(cluster, tmp_path, CONVENER_POOL_SIZE="2") as up:
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
        await until(lambda: job not in jobs(cluster), what="the end of the job that was canceled")


async def test_a_full_partition_is_no_failure_and_a_lost_node_no_loss(cluster: SlurmCluster, tmp_path: Path) -> None:
    blocker = cluster.command("sbatch", "--parsable", "--nodes=1", "--output=/dev/null", "--wrap", "sleep 600").strip()
    async with control_plane(
        cluster, tmp_path, CONVENER_POOL_SIZE="4", CONVENER_BLOCK_MIN_NODES="2", CONVENER_BLOCK_MAX_NODES="2"
    ) as up:
        await until(lambda: jobs(cluster, "PENDING"), what="a job that waits")
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


def _words(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), *process.environ().values()]
    except (psutil.Error, OSError):
        return []


@pytest.mark.skipif(not os.environ.get("CONVENER_TEST_LARGE"), reason="takes ten minutes: set CONVENER_TEST_LARGE=1")
async def test_five_hundred_tasks_through_blocks_of_two_minutes(cluster: SlurmCluster, tmp_path: Path) -> None:
    async with control_plane(
        cluster,
        tmp_path,
        CONVENER_POOL_SIZE="4",
        CONVENER_BLOCK_WALLTIME_MINUTES="2",
        CONVENER_BLOCK_LEAD_MINUTES="0.5",
    ) as up:
        await ready(up, 4)
        ids = await submit(up, 500, 1.0, timeout_seconds=20)
        await asyncio.sleep(60)
        cluster.kill_node("n2")
        await asyncio.sleep(5)
        cluster.start_node("n2")
        await asyncio.sleep(60)
        up.kill()
        await asyncio.sleep(5)
        await up.start()
        async with asyncio.timeout(1200):
            while (counts := await _states(up)).keys() != {"completed"}:
                print(counts, cluster.command("squeue", "-h", "-o", "%i %T %M").replace("\n", "; "), flush=True)
                await asyncio.sleep(10)
        assert await completions(up) == Counter(dict.fromkeys(ids, 1))
        attempts = [attempt for task in ids for attempt in (await ask(up, f"/tasks/{task}"))["attempts"]]
        print(Counter(attempt["outcome"] for attempt in attempts))
        print(cluster.command("squeue", "-h", "-t", "all", "-o", "%i %T %M %r"))
        await ready(up, 4)


async def _states(up: Up) -> Counter[str]:
    page = await ask(up, "/tasks", goal_id="kills", limit="500")
    return Counter(task["state"] for task in page["items"])
