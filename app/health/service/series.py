"""Taking metrics that workers and agents push: a batch as a whole, and once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import now
from app.health.errors import MetricNotFound, SamplesRefused, TooManySeries
from app.health.rules.series import MetricKind, PushedSample, Series, SeriesPolicy, fold_samples, overflow, refusals
from app.health.store import series
from app.health.store.series import MetricName
from app.queue.errors import IdempotencyMismatch

_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBatch:
    """What somebody sends; `digest` tells it from another batch under the same id."""

    batch_id: UUID
    sent_by: str
    digest: bytes
    samples: Sequence[PushedSample] = field(repr=False)


async def push(connection: AsyncConnection, batch: SampleBatch, policy: SeriesPolicy) -> bool:
    """Take all samples of a batch; False when they were taken before.

    Raises IdempotencyMismatch, SamplesRefused, TooManySeries; then nothing was taken.
    """
    before = await series.register_batch(connection, batch.sent_by, batch.batch_id, batch.digest)
    if before is not None:
        if before != batch.digest:
            raise IdempotencyMismatch("this batch_id was used for other samples")
        return False
    asked = {pushed.series for pushed in batch.samples}
    ids = await series.find_ids(connection, asked)
    if len(ids) < len(asked):
        await series.lock_out_others(connection)
    names = await series.names(connection)
    await _check(connection, batch.samples, names, policy)
    if len(ids) < len(asked):
        ids = await _create(connection, batch.samples, asked, names, policy)
    await series.add_points(connection, fold_samples(batch.samples, await now(connection)), ids)
    return True


async def metric_name(connection: AsyncConnection, wanted: str) -> MetricName:
    """What is known of a name. Raises MetricNotFound."""
    found = next((known for known in await series.names(connection) if known.name == wanted), None)
    if found is None:
        raise MetricNotFound
    return found


async def _check(
    connection: AsyncConnection, samples: Sequence[PushedSample], names: Sequence[MetricName], policy: SeriesPolicy
) -> None:
    wrong = refusals(samples, {known.name: known.kind for known in names}, await now(connection), policy)
    if wrong:
        raise SamplesRefused(wrong[:_SHOWN])


async def _create(
    connection: AsyncConnection,
    samples: Sequence[PushedSample],
    asked: set[Series],
    names: Sequence[MetricName],
    policy: SeriesPolicy,
) -> dict[Series, int]:
    """Add what is new; nobody else adds anything meanwhile."""
    new = asked - (await series.find_ids(connection, asked)).keys()
    known = sum(found.series for found in names)
    why = overflow(new, known, [found.name for found in names], policy)
    if why is not None:
        raise TooManySeries(why)
    kinds: dict[str, MetricKind] = {pushed.series.name: pushed.kind for pushed in samples}
    await series.create_series(connection, new, kinds)
    return await series.find_ids(connection, asked)
