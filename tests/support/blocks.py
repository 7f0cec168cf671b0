"""An engine of blocks over a scheduler that is only a list."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.workers.provisioners.blocks import BlockEngine, BlockLaunch
from app.workers.provisioners.scheduler import Job, JobRequest, JobState, SchedulerError
from app.workers.rules.blocks import BlockPolicy


class Jobs:
    """A scheduler whose jobs the test moves."""

    kind = "slurm"

    def __init__(self) -> None:
        self.requests: list[JobRequest] = []
        self.states: dict[str, JobState] = {}
        self.ends: dict[str, float] = {}
        self.nodes: dict[str, int] = {}
        self.refusal: str | None = None
        self.tries = 0

    async def submit(self, request: JobRequest) -> str:
        """Queue it."""
        self.tries += 1
        if self.refusal:
            raise SchedulerError(self.refusal, is_refusal=True)
        self.requests.append(request)
        job_id = str(len(self.requests))
        self.states[job_id] = JobState.QUEUED
        return job_id

    async def jobs(self) -> Sequence[Job]:
        """All of them."""
        return [
            Job(
                id=job_id,
                name=self.requests[int(job_id) - 1].name,
                state=state,
                reason="PENDING: Resources",
                started_at=time.time() - 20,
                ends_at=self.ends.get(job_id, time.time() + 3000),
                nodes=self.nodes.get(job_id),
            )
            for job_id, state in self.states.items()
        ]

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """End them."""
        self.states.update(dict.fromkeys(job_ids, JobState.ENDED))


def engine(jobs: Jobs, place: Path, **changes: Any) -> BlockEngine:
    """Blocks of two workers on each of one to three nodes."""
    policy: dict[str, Any] = {"slots": 2, "min_nodes": 1, "max_nodes": 3, "walltime_seconds": 3600}

    async def make_key(token: str, uses: int) -> str:
        return f"cvn_{token}_{uses}"

    return BlockEngine(
        scheduler=jobs,
        name="lab",
        max_size=100,
        policy=BlockPolicy(**(policy | {"lead_seconds": 300, "drain_seconds": 50} | changes)),
        launch=BlockLaunch(
            directory=place,
            pilot=["convener", "pilot"],
            worker_arguments=["--handlers", "my agents"],
            template="#!/bin/sh\n{{ nodes }} x {{ command }}\n",
            other_secrets={"CONVENER_LLM_KEY": "s3cret"},
        ),
        make_key=make_key,
        poll_seconds=0,
    )
