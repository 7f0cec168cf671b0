"""Samples of the utilisation of this host, the workers and the pool."""

import asyncio
import logging
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.health.rules.utilisation import Measure, Sample, UtilisationPolicy, host_subject, single_sample
from app.health.store import utilisation
from app.kernel.errors import DatabaseUnavailable
from app.workers.provisioners.host import Machine

log = logging.getLogger(__name__)
# Several processes of one host sample it: one that comes within this part of the interval after another adds nothing.
_APART = 0.6


async def sample_host(database: Database, machine: Machine, name: str, policy: UtilisationPolicy) -> list[Sample]:
    """Measure this host and store the samples; what cannot be measured leaves none."""
    reading, subject = machine.read(), host_subject(name)
    values = {Measure.CPU: reading.cpu, Measure.MEMORY: reading.memory}
    samples = [single_sample(subject, measure, value) for measure, value in values.items() if value is not None]
    async with database.transaction() as connection:
        await utilisation.add_samples(connection, samples, apart_seconds=_APART * policy.every_seconds)
    return samples


async def sample_pool(connection: AsyncConnection, policy: UtilisationPolicy, silent_seconds: float) -> dict[str, Any]:
    """Store what the workers report to use, and how many of them are busy; return the means."""
    busy = await utilisation.sample_pool(connection)
    samples = await utilisation.sample_workers(connection, fresh_seconds=silent_seconds)
    samples += [busy] if busy else []
    await utilisation.add_samples(connection, samples, apart_seconds=_APART * policy.every_seconds)
    return {f"{sample.subject} {sample.measure}": round(sample.mean, 2) for sample in samples}


async def keep_sampling(database: Database, machine: Machine, name: str, policy: UtilisationPolicy) -> None:
    """Sample the host of a process that runs no loops, until canceled."""
    while True:
        await asyncio.sleep(policy.every_seconds)
        try:
            await sample_host(database, machine, name, policy)
        except DatabaseUnavailable:
            # Readiness and the health report tell of it; a missing sample needs no log of its own.
            continue
        except Exception:
            log.exception("could not sample this host, trying again")
