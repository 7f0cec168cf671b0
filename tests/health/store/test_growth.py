"""A series of a large batch of metrics costs the database no more than one of a small batch."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from app.agents.store import ratings
from app.agents.store.ratings import Rating
from app.db.database import Database
from app.health.rules.series import MetricKind, Point, Series
from app.health.store import series as store
from app.kernel.agents import AgentType
from tests.support.plans import Costs, explained_database
from tests.support.sql import execute

_BATCHES = (8, 64, 256)
_MINUTE = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["never analysed", "analysed"])
@pytest.mark.parametrize("plan_cache_mode", ["force_custom_plan", "force_generic_plan"])
async def test_points(
    own_database: Database, plan_cache_mode: str, statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await execute(
        own_database,
        "INSERT INTO metric_series (name, kind, agent, worker, goal, created_by, principal, last_at)"
        " SELECT 'old', 'gauge', '', n::text, '', 'me', 'me', now() - interval '1 day' FROM generate_series(1, 5000) n",
    )
    if statistics == "analysed":
        await execute(own_database, "ANALYZE")
    async with explained_database(own_database, monkeypatch, plan_cache_mode) as (database, log):
        costs, begun = Costs(log), 0
        for batch in (min(_BATCHES), *_BATCHES):
            series = [Series(name=f"m{n % 20}", goal=str(begun + n)) for n in range(batch)]
            begun += batch
            kinds = {entry.name: MetricKind.GAUGE for entry in series}
            async with database.transaction() as connection:
                with costs.of("create", batch):
                    await store.create_series(connection, series, kinds, "me", "me")
            await execute(own_database, "UPDATE metric_series SET last_at = last_at - interval '1 day'")
            with costs.of("find", batch):
                async with database.transaction() as connection:
                    ids = await store.find_ids(connection, series)
            assert len(ids) == batch
            points = [
                Point(series=entry, minute=_MINUTE, samples=1, total=1, low=1, high=1, last=1, last_at=_MINUTE)
                for entry in series
            ]
            for call in ("first points", "more points"):
                async with database.transaction() as connection:
                    with costs.of(call, batch):
                        await store.add_points(connection, points, ids)
            judged = [Rating(agent_type=AgentType.RANKING, quality=0.5, task_id=uuid4()) for _ in range(batch)]
            async with database.transaction() as connection:
                with costs.of("ratings", batch):
                    assert await ratings.add(connection, uuid4(), b"", "me", judged)
        costs.check()
