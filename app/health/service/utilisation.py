"""Sampling how busy this host, the workers and the pool are."""

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
# Processes of one host that sample by turns leave out whatever comes within this part of the interval.
_APART = 0.6


async def sample_host(database: Database, machine: Machine, name: str, policy: UtilisationPolicy) -> list[Sample]:
    """Measure this host and keep it. What cannot be measured leaves no sample."""
    reading, subject = machine.read(), host_subject(name)
    values = {Measure.CPU: reading.cpu, Measure.MEMORY: reading.memory}
    samples = [single_sample(subject, measure, value) for measure, value in values.items() if value is not None]
    async with database.transaction() as connection:
        await utilisation.add_samples(connection, samples, apart_seconds=_APART * policy.every_seconds)
    return samples


async def sample_pool(connection: AsyncConnection, policy: UtilisationPolicy, silent_seconds: float) -> dict[str, Any]:
    """Measure what the workers use, by their own word, and how many of them work."""
    busy = await utilisation.sample_pool(connection)
    samples = await utilisation.sample_workers(connection, fresh_seconds=silent_seconds)
    samples += [busy] if busy else []
    await utilisation.add_samples(connection, samples, apart_seconds=_APART * policy.every_seconds)
    return {f"{found.subject} {found.measure}": round(found.mean, 2) for found in samples}


async def keep_sampling(database: Database, machine: Machine, name: str, policy: UtilisationPolicy) -> None:
    """Until cancelled: sample the host of a process that runs no loops."""
    while True:
        await asyncio.sleep(policy.every_seconds)
        try:
            await sample_host(database, machine, name, policy)
        except DatabaseUnavailable:
            continue
        except Exception:
            log.exception("could not sample this host, trying again")
