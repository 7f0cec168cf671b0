"""A worker of a large pool costs a decision, a start or a directive no more than one of a small pool."""

from uuid import uuid4

import pytest

from app.db.database import Database, now
from app.kernel.agents import AgentType
from app.workers.rules.assignment import Assignment
from app.workers.rules.workers import Directive
from app.workers.store import directives, roster
from app.workers.store.directives import WorkerSelector
from app.workers.store.roster import NewWorker
from tests.support.plans import Costs, explained_database
from tests.support.sql import execute

_BATCHES = (8, 64, 256)


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["never analysed", "analysed"])
@pytest.mark.parametrize("plan_cache_mode", ["force_custom_plan", "force_generic_plan"])
async def test_starts_decisions_and_directives(
    own_database: Database, plan_cache_mode: str, statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Those of before, which have ended, and of whom each name had two.
    await execute(
        own_database,
        "INSERT INTO workers (id, name, incarnation, state, provisioner, host, slot, capabilities, labels)"
        " SELECT gen_random_uuid(), 'here-' || n % 2000, 1 + n / 2000, 'stopped', 'process', 'here', n % 2000, '{}',"
        " '{}'"
        " FROM generate_series(0, 3999) n",
    )
    if statistics == "analysed":
        await execute(own_database, "ANALYZE")
    async with explained_database(own_database, monkeypatch, plan_cache_mode) as (database, log):
        costs, slot = Costs(log), 0
        for batch in (min(_BATCHES), *_BATCHES):
            new = [NewWorker(id=uuid4(), provisioner="process", host="here", slot=slot + n) for n in range(batch)]
            slot += batch
            ids = [worker.id for worker in new]
            async with database.transaction() as connection:
                await now(connection)
                with costs.of("request", batch):
                    await roster.request(connection, new)
            async with database.transaction() as connection:
                await now(connection)
                with costs.of("assign", batch):
                    await roster.assign(connection, dict.fromkeys(ids, Assignment(AgentType.RANKING, 1.0, 1.0, 1.0)))
            with costs.of("lock", batch):
                async with database.transaction() as connection:
                    await now(connection)
                    await roster.lock(connection, ids)
            async with database.transaction() as connection:
                with costs.of("direct", batch):
                    selected = WorkerSelector(ids=ids)
                    assert len(await directives.direct(connection, selected, Directive.DRAIN, "test")) == batch
        costs.check()
