"""Metrics that workers and agents push: a batch is taken as a whole, and once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import now
from app.health.errors import MetricNotFound, SamplesRefused, TooManySeries
from app.health.rules.series import (
    MetricKind,
    PushedSample,
    Series,
    SeriesPolicy,
    WorkerLabels,
    fold_samples,
    label_refusals,
    overflow,
    refusals,
    share_overflow,
)
from app.health.store import series
from app.health.store.series import MetricName
from app.queue.errors import IdempotencyMismatch

# So many refusals tell a sender enough.
_MAX_REFUSALS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBatch:
    """Samples sent together; `digest` distinguishes them from another batch under the same id.

    `principal` is the key that vouches for the sender, its own or the one by which the worker has registered; `labels`
    are those that a worker may use.
    """

    batch_id: UUID
    sent_by: str
    principal: str
    digest: bytes
    labels: WorkerLabels | None = None
    samples: Sequence[PushedSample] = field(repr=False)


async def push(connection: AsyncConnection, batch: SampleBatch, policy: SeriesPolicy) -> bool:
    """Store all samples of a batch; False when they were stored before.

    Raises IdempotencyMismatch, SamplesRefused, TooManySeries; then nothing is stored.
    """
    # First of all, so that a repeated batch changes nothing, and one of two sent at once waits for the other.
    earlier_digest = await series.register_batch(connection, batch.sent_by, batch.batch_id, batch.digest)
    if earlier_digest is not None:
        if earlier_digest != batch.digest:
            raise IdempotencyMismatch("this batch_id was used for other samples")
        return False
    batch_series = {sample.series for sample in batch.samples}
    ids = await series.find_ids(connection, batch_series)
    if len(ids) < len(batch_series):
        # Locked before names and numbers are read, which would else be out of date when series are added.
        await series.lock_series(connection)
    names = await series.names(connection)
    errors = refusals(batch.samples, {name.name: name.kind for name in names}, await now(connection), policy)
    if batch.labels is not None:
        errors += label_refusals(batch.samples, batch.labels)
    if errors:
        raise SamplesRefused(errors[:_MAX_REFUSALS])
    if len(ids) < len(batch_series):
        ids = await _create(connection, batch, batch_series, names, policy)
    await series.add_points(connection, fold_samples(batch.samples, await now(connection)), ids)
    return True


async def metric_name(connection: AsyncConnection, name: str) -> MetricName:
    """Kind and series of a name. Raises MetricNotFound."""
    metric = next((metric for metric in await series.names(connection) if metric.name == name), None)
    if metric is None:
        raise MetricNotFound
    return metric


async def _create(
    connection: AsyncConnection,
    batch: SampleBatch,
    batch_series: set[Series],
    names: Sequence[MetricName],
    policy: SeriesPolicy,
) -> dict[Series, int]:
    """Add the new series and return the ids of all; no other transaction adds any meanwhile. Raises TooManySeries."""
    new = batch_series - (await series.find_ids(connection, batch_series)).keys()
    series_count = sum(name.series for name in names)
    existing_names = [name.name for name in names]
    begun = await series.count_begun(connection, batch.sent_by, batch.principal)
    is_worker = batch.labels is not None
    reason = overflow(new, series_count, existing_names, policy) or share_overflow(
        new, existing_names, begun, is_worker=is_worker, policy=policy
    )
    if reason is not None:
        raise TooManySeries(reason)
    kinds: dict[str, MetricKind] = {sample.series.name: sample.kind for sample in batch.samples}
    await series.create_series(connection, new, kinds, batch.sent_by, batch.principal)
    return await series.find_ids(connection, batch_series)
