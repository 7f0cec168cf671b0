"""A control plane whose pool are blocks of a Slurm of this machine."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.slurm import SlurmCluster
from tests.system.conftest import Up, until
from tests.system.supervising import ask

# Between two looks at the jobs, each of which is a program that asks the controller.
PAUSE = 0.3
_SETTINGS = {
    "CONVENER_PROVISIONER": "slurm",
    "CONVENER_HOST_NAME": "lab",
    "CONVENER_BLOCK_SLOTS": "2",
    "CONVENER_BLOCK_POLL_SECONDS": "0.5",
    "CONVENER_STOP_GRACE_SECONDS": "3",
}


@asynccontextmanager
async def control_plane(cluster: SlurmCluster, place: Path, *arguments: str, **settings: str) -> AsyncIterator[Up]:
    """A control plane, started with these arguments, whose pool are blocks of this cluster, empty again at the end."""
    variables: dict[str, Any] = {"SLURM_CONF": cluster.environment["SLURM_CONF"], **_SETTINGS, **settings}
    up = Up(place / "state", **variables)
    try:
        await up.start(*arguments)
        yield up
    finally:
        if up.child is not None and up.child.poll() is None:
            up.stop()
        cluster.command("scancel", "--full", "--user=root")
        for left in up.processes():
            left.kill()
        await until(lambda: not jobs(cluster), what="the end of all jobs", pause=PAUSE)


def jobs(cluster: SlurmCluster, state: str = "") -> list[str]:
    """The ids of jobs that have not ended, or of those in a state."""
    lines = cluster.command("squeue", "-h", "-o", "%i %T").splitlines()
    return [line.split()[0] for line in lines if line.endswith(state)]


async def ready(up: Up, count: int, seconds: float = 90) -> Sequence[dict[str, Any]]:
    """The workers, as soon as so many are ready or at work, and no others are there."""
    workers: list[dict[str, Any]] = []
    async with asyncio.timeout(seconds):
        while len(workers) != count or not {worker["state"] for worker in workers} <= {"ready", "busy"}:
            workers = (await ask(up, "/workers"))["items"]
            await asyncio.sleep(0.2)
    return workers


async def back_at_one_block(cluster: SlurmCluster, up: Up) -> None:
    """Return once one block with two workers is left. Idle workers stay the longer the longer their start took."""
    try:
        await until(lambda: len(jobs(cluster)) == 1, seconds=400, pause=PAUSE)
    except AssertionError:
        facts = {path: await ask(up, path) for path in ("/fleet", "/workers", "/scaling/decisions")}
        raise AssertionError(f"blocks {jobs(cluster)} stay: {json.dumps(facts)}") from None
    await ready(up, 2)
