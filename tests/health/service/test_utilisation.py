"""Sampling: what is measured is kept, by the loops and by an API that stands alone."""

import asyncio
import contextlib

from app.db import hot_path
from app.db.database import Database
from app.health.rules.utilisation import UtilisationPolicy
from app.health.service.utilisation import keep_sampling, sample_pool
from app.loops.schedule import host_jobs
from app.workers.provisioners.host import Machine
from app.workers.store import workers
from tests.support.factories import beat, ready_worker
from tests.support.runner import running
from tests.support.sql import fetch, until

_OFTEN = UtilisationPolicy(every_seconds=0.02)


async def _subjects(database: Database) -> set[tuple[str, str]]:
    return {(row["subject"], row["measure"]) for row in await fetch(database, "SELECT * FROM utilisation")}


async def test_the_loops_sample_their_host(database: Database) -> None:
    async with running(database, *host_jobs(Machine(), "lab")):

        async def sampled() -> bool:
            return await _subjects(database) >= {("host:lab", "cpu"), ("host:lab", "memory")}

        await until(sampled)


async def test_an_api_samples_its_host(database: Database) -> None:
    sampling = asyncio.create_task(keep_sampling(database, Machine(), "api", _OFTEN))

    async def sampled() -> bool:
        return ("host:api", "cpu") in await _subjects(database)

    await until(sampled)
    sampling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sampling


async def test_the_pool_is_sampled_as_far_as_it_tells(database: Database) -> None:
    async with database.transaction() as connection:
        assert await sample_pool(connection, _OFTEN, 15.0) == {}
    worker_id = await ready_worker(database)
    await hot_path.run(
        database, lambda c: workers.record_heartbeats(c, [beat(worker_id, cpu_percent=None, memory_mb=512.0)], 15.0)
    )
    async with database.transaction() as connection:
        means = await sample_pool(connection, _OFTEN, 15.0)
    assert means == {"pool busy": 0.0, "workers memory": 50.0, "workers gigabytes": 0.5}
    assert ("workers", "cpu") not in await _subjects(database)
