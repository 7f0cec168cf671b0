"""Pushed metrics: a batch is taken as a whole and once, and the bound on series holds between rivals."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database, now
from app.health.errors import SamplesRefused, TooManySeries
from app.health.rules.series import MetricKind, PushedSample, Series, SeriesPolicy, WorkerLabels
from app.health.service import series as service
from app.health.service.series import SampleBatch
from app.health.store import series
from app.queue.errors import IdempotencyMismatch
from tests.support.sql import early_in_a_minute, execute, fetch, until_blocked, value

_POLICY = SeriesPolicy()
_TIGHT = SeriesPolicy(max_series=3)


def _pushed(
    name: str = "depth", number: float = 1.0, kind: MetricKind = MetricKind.GAUGE, **labels: str
) -> PushedSample:
    return PushedSample(series=Series(name=name, **labels), kind=kind, value=number)


def _batch(
    *samples: PushedSample,
    batch_id: UUID | None = None,
    digest: bytes = b"one",
    labels: WorkerLabels | None = None,
) -> SampleBatch:
    return SampleBatch(
        batch_id=batch_id or uuid4(), sent_by="key", principal="key", digest=digest, labels=labels, samples=samples
    )


async def _push(database: Database, *samples: PushedSample, policy: SeriesPolicy = _POLICY, **batch: Any) -> bool:
    async with database.transaction() as connection:
        return await service.push(connection, _batch(*samples, **batch), policy)


async def _count(database: Database, table: str) -> int:
    return int(await value(database, f"SELECT count(*) FROM {table}"))


async def test_samples_end_up_in_their_minute(database: Database) -> None:
    async with database.transaction() as connection:
        moment = await now(connection)
    early = [
        PushedSample(
            series=Series(name="depth"), kind=MetricKind.GAUGE, value=n, at=moment - timedelta(minutes=10, seconds=n)
        )
        for n in (2.0, 1.0, 3.0)
    ]
    await _push(database, *early, _pushed("writes", 5, MetricKind.COUNTER, agent="ranking"))
    await _push(database, early[0])
    rows = await fetch(
        database, "SELECT * FROM metric_minutes JOIN metric_series ON id = series_id WHERE name = 'depth'"
    )
    assert sum(row["samples"] for row in rows) == 4
    assert sum(row["total"] for row in rows) == 8.0
    assert min(row["low"] for row in rows) == 1.0
    assert max(rows, key=lambda row: row["minute"])["last"] == 1.0


async def test_a_batch_counts_once(database: Database) -> None:
    batch_id = uuid4()
    assert await _push(database, _pushed(number=4), batch_id=batch_id)
    assert not await _push(database, _pushed(number=4), batch_id=batch_id)
    with pytest.raises(IdempotencyMismatch):
        await _push(database, _pushed(number=5), batch_id=batch_id, digest=b"other")
    assert await value(database, "SELECT sum(total) FROM metric_minutes") == 4.0


async def test_rivals_with_the_same_batch_count_once(database: Database) -> None:
    batch_id = uuid4()
    async with database.transaction() as connection:
        assert await service.push(connection, _batch(_pushed(), batch_id=batch_id), _POLICY)
        rival = asyncio.create_task(_push(database, _pushed(), batch_id=batch_id))
        await until_blocked(database)
    assert await rival is False
    assert await value(database, "SELECT sum(samples) FROM metric_minutes") == 1


async def test_what_was_rolled_back_may_come_again(database: Database) -> None:
    batch = _batch(_pushed())

    async def and_break_off(connection: AsyncConnection) -> None:
        await service.push(connection, batch, _POLICY)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        async with database.transaction() as connection:
            await and_break_off(connection)
    assert await _count(database, "metric_batches") == await _count(database, "metric_series") == 0
    async with database.transaction() as connection:
        assert await service.push(connection, batch, _POLICY)


async def test_a_refused_batch_leaves_nothing_behind(database: Database) -> None:
    await _push(database, _pushed())
    with pytest.raises(SamplesRefused) as caught:
        await _push(database, _pushed("other"), _pushed(kind=MetricKind.COUNTER))
    assert caught.value.fields == [("samples.1.kind", "depth is a gauge")]
    with pytest.raises(TooManySeries):
        await _push(database, *(_pushed(goal=f"g{n}") for n in range(3)), policy=_TIGHT)
    assert await _count(database, "metric_series") == await _count(database, "metric_batches") == 1


async def test_rivals_cannot_exceed_the_bound_together(database: Database) -> None:
    await _push(database, _pushed())
    async with database.transaction() as connection:
        new = _batch(_pushed(goal="a"), _pushed(goal="b"))
        await service.push(connection, new, _TIGHT)
        rival = asyncio.create_task(_push(database, _pushed(goal="c"), policy=_TIGHT))
        await until_blocked(database)
        # Whoever adds no series need not wait.
        await _push(database, _pushed(), policy=_TIGHT)
    with pytest.raises(TooManySeries):
        await rival
    assert await _count(database, "metric_series") == 3


async def test_rivals_do_not_make_a_name_two_kinds(database: Database) -> None:
    async with database.transaction() as connection:
        await service.push(connection, _batch(_pushed(agent="ranking")), _POLICY)
        rival = asyncio.create_task(_push(database, _pushed(kind=MetricKind.COUNTER, agent="evolution")))
        await until_blocked(database)
    with pytest.raises(SamplesRefused):
        await rival


async def test_senders_do_not_wait_for_each_other_in_a_circle(database: Database) -> None:
    await early_in_a_minute(database)
    one, other = _pushed("one"), _pushed("other")
    await _push(database, one, other)
    async with database.transaction() as connection:
        await service.push(connection, _batch(one), _POLICY)
        rival = asyncio.create_task(_push(database, other, one))
        await until_blocked(database)
        # The rival waits without having written anything that we still want.
        await service.push(connection, _batch(other), _POLICY)
    await rival
    assert await value(database, "SELECT sum(samples) FROM metric_minutes") == 6


async def test_what_is_old_is_forgotten_and_may_come_back(database: Database) -> None:
    batch_id = uuid4()
    await _push(database, _pushed("old"), batch_id=batch_id)
    await _push(database, _pushed("new"))
    old = "WHERE id = series_id AND name = 'old'"
    await execute(database, f"UPDATE metric_minutes SET minute = minute - interval '8 days' FROM metric_series {old}")
    await execute(database, "UPDATE metric_series SET last_at = now() - interval '8 days' WHERE name = 'old'")
    await execute(database, "UPDATE metric_batches SET received_at = now() - interval '2 days'")
    async with database.transaction() as connection:
        assert await series.prune_points(connection, 7) == 1
        assert await series.prune_names(connection, 7) == 1
        assert await series.prune_batches(connection, 1) == 2
        assert [existing.name for existing in await series.names(connection)] == ["new"]
    assert await _push(database, _pushed("old"), batch_id=batch_id)


async def test_a_series_that_is_written_to_is_not_forgotten_just_then(database: Database) -> None:
    await _push(database, _pushed())
    await execute(database, "UPDATE metric_series SET last_at = now() - interval '9 days'")
    async with database.transaction() as connection:
        await service.push(connection, _batch(_pushed()), _POLICY)
        async with database.transaction() as other:
            assert await series.prune_names(other, 7) == 0
    async with database.transaction() as connection:
        assert await series.prune_names(connection, 7) == 0
    assert await _count(database, "metric_series") == 1


async def test_the_present_is_the_last_minute(database: Database) -> None:
    await early_in_a_minute(database)
    await _push(database, _pushed(number=10, worker="a"), _pushed(number=20, worker="b"))
    await _push(database, _pushed("writes", 30, MetricKind.COUNTER, agent="ranking", goal="x"))
    await _push(database, _pushed("writes", 90, MetricKind.COUNTER, agent="ranking", goal="y"))
    await _push(database, _pushed("gone", 1))
    await execute(
        database,
        "UPDATE metric_minutes SET minute = minute - CASE WHEN name = 'gone' THEN interval '3 min'"
        " ELSE interval '1 min' END FROM metric_series WHERE id = series_id AND name <> 'depth'",
    )
    async with database.transaction() as connection:
        values = {(c.name, c.agent): c.value for c in await series.current_values(connection)}
    assert values.pop(("depth", None)) == 15.0
    assert values == {("writes", "ranking"): 2.0}


_LABELS = WorkerLabels(worker="w", agents=frozenset(), goals=frozenset())


async def test_no_worker_and_no_key_with_all_its_workers_uses_up_all_series(connection: AsyncConnection) -> None:
    policy = SeriesPolicy(max_series=100, max_series_of_worker=2, max_series_of_key=5, max_names_of_key=3)
    number = 0

    async def begin(worker: str, key: str = "pool", name: str = "a") -> None:
        nonlocal number
        number += 1
        sample = PushedSample(series=Series(name=name, agent=str(number)), kind=MetricKind.GAUGE, value=1.0)
        labels = replace(_LABELS, agents=frozenset({str(number)}))
        batch = SampleBatch(
            batch_id=uuid4(), sent_by=worker, principal=key, digest=b"x", labels=labels, samples=[sample]
        )
        assert await service.push(connection, batch, policy)

    await begin("one")
    await begin("one", name="b")
    with pytest.raises(TooManySeries, match="this worker"):
        await begin("one")
    await begin("two", name="c")
    with pytest.raises(TooManySeries, match="as many names"):
        await begin("two", name="d")
    await begin("other's", "other")
    await begin("two", name="d")
    await begin("three")
    with pytest.raises(TooManySeries, match="as many series"):
        await begin("three")
    await begin("other's", "other", name="e")


async def test_a_worker_names_itself_its_agents_and_the_goals_of_its_tasks(database: Database) -> None:
    labels = WorkerLabels(worker="w", agents=frozenset({"ranking"}), goals=frozenset({"g"}))
    await _push(database, _pushed(worker="w", agent="ranking", goal="g"), _pushed(), labels=labels)
    others = [_pushed(worker="v"), _pushed(agent="evolution"), _pushed(goal="h")]
    with pytest.raises(SamplesRefused) as caught:
        await _push(database, *others, labels=labels)
    assert [field for field, _ in caught.value.fields] == ["samples.0.worker", "samples.1.agent", "samples.2.goal"]
