"""The commands of a real Slurm: two nodes on this machine."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.workers.provisioners.scheduler import Job, JobRequest, JobState, SchedulerError
from app.workers.provisioners.slurm import Slurm
from tests.support.slurm import SlurmCluster, slurm_cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster() as running:
        yield running


def request(cluster: SlurmCluster, name: str, command: str, nodes: int = 1) -> JobRequest:
    """A job of a minute that runs a command on each of its nodes."""
    return JobRequest(
        name=name,
        comment=f"token of {name}",
        nodes=nodes,
        walltime_seconds=60,
        script=f"#!/bin/bash\nsrun --no-kill --kill-on-bad-exit=0 --wait=0 {command}\n",
        log=str(cluster.place / f"{name}.log"),
    )


_WORK = "bash -c 'echo up; exec sleep 50'"


async def seen(slurm: Slurm, name: str, is_so: Callable[[Job], bool]) -> Job:
    """The job of this name as soon as it is so."""
    deadline = time.monotonic() + 20
    while True:
        jobs = {job.name: job for job in await slurm.jobs()}
        if name in jobs and is_so(jobs[name]):
            return jobs[name]
        assert time.monotonic() < deadline, jobs
        await asyncio.sleep(0.1)


async def at_work(job: JobRequest) -> None:
    """Wait until a job is at work on both its nodes: a step of one that is cancelled before may run on for a minute."""
    async with asyncio.timeout(20):
        while not Path(job.log).exists() or Path(job.log).read_text().count("up") < 2:
            await asyncio.sleep(0.1)


async def test_a_job_runs_with_the_environment_it_is_given_and_ends(cluster: SlurmCluster) -> None:
    slurm = Slurm({**cluster.environment, "HELLO": "from the control plane"})
    job = request(cluster, "greeting", "bash -c 'echo $SLURM_NODEID $HELLO'", nodes=2)
    job_id = await slurm.submit(job)
    ended = await seen(slurm, "greeting", lambda job: job.state is JobState.ENDED)
    assert (ended.id, ended.reason) == (job_id, "COMPLETED")
    lines = sorted(Path(job.log).read_text().splitlines())
    assert lines == ["0 from the control plane", "1 from the control plane"]
    assert "token of greeting" in cluster.command("squeue", "-t", "all", "-h", "-o", "%k")


async def test_a_full_partition_lets_a_job_wait_with_its_reason(cluster: SlurmCluster) -> None:
    slurm = Slurm(cluster.environment)
    first = request(cluster, "first", _WORK, nodes=2)
    await slurm.submit(first)
    running = await seen(slurm, "first", lambda job: job.state is JobState.RUNNING)
    await at_work(first)
    assert running.started_at is not None
    assert running.ends_at == running.started_at + 60
    assert abs(running.started_at - time.time()) < 30
    assert running.nodes == 2
    assert not cluster.command("scontrol", "suspend", running.id)
    await seen(slurm, "first", lambda job: job.state is JobState.SUSPENDED)
    assert not cluster.command("scontrol", "resume", running.id)
    await seen(slurm, "first", lambda job: job.state is JobState.RUNNING)
    await slurm.submit(request(cluster, "second", "sleep 50"))
    waiting = await seen(slurm, "second", lambda job: job.reason in ("PENDING: Resources", "PENDING: Priority"))
    assert waiting.state is JobState.QUEUED
    await slurm.cancel([waiting.id, running.id])
    await slurm.cancel([waiting.id])
    for name in ("first", "second"):
        assert (await seen(slurm, name, lambda job: job.state is JobState.ENDED)).reason.startswith("CANCELLED")


async def test_a_job_outlives_the_loss_of_a_node_that_is_not_its_first(cluster: SlurmCluster) -> None:
    slurm = Slurm(cluster.environment)
    pair = request(cluster, "pair", _WORK, nodes=2)
    await slurm.submit(pair)
    job = await seen(slurm, "pair", lambda job: job.state is JobState.RUNNING)
    await at_work(pair)
    cluster.kill_node("n2")
    cluster.declare_down("n2")
    assert (await seen(slurm, "pair", lambda job: job.nodes == 1)).state is JobState.RUNNING
    cluster.start_node("n2")
    await slurm.cancel([job.id])
    cluster.wait_for_nodes("idle")


async def test_what_slurm_refuses_is_told_in_its_words(cluster: SlurmCluster) -> None:
    with pytest.raises(SchedulerError, match=r"(?i)invalid partition (name )?specified") as refusal:
        await Slurm(cluster.environment, ["--partition=none"]).submit(request(cluster, "nowhere", "true"))
    assert refusal.value.is_refusal
