"""Lists of workers among many that have ended."""

import pytest

from app.db.database import Database
from app.workers.store import workers
from app.workers.store.workers import WorkerFilter
from tests.support.factories import holding, ready_worker
from tests.support.plans import explained_database
from tests.support.sql import execute

_FILL = """
INSERT INTO workers (id, name, incarnation, state, capabilities, labels, ended_at)
SELECT gen_random_uuid(), 'old ' || n, 1, 'stopped', '{}', '{}', now() FROM generate_series(1, 2000) AS n
"""


async def test_what_a_worker_holds_is_looked_up_for_those_of_the_states_alone(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was looked up for all that are stored: 16,000 pages of 8 KiB for a list that is empty."""
    busy, _ = await holding(own_database)
    idle = await ready_worker(own_database)
    await execute(own_database, _FILL)
    await execute(own_database, "ANALYZE")
    found, pages = {}, 0
    async with explained_database(own_database, monkeypatch, "force_custom_plan") as (database, log):
        for state in ("busy", "ready", "lost"):
            async with database.transaction() as connection:
                selection = WorkerFilter(states=[state])
                page = await workers.page(connection, selection, start_after=None, limit=100)
            found[state] = [row["id"] for row in page.items]
            pages = max(pages, log.take().pages)
    assert found == {"busy": [busy], "ready": [idle], "lost": []}
    assert 0 < pages < 500


@pytest.mark.slow
async def test_the_look_for_silent_workers_reads_none_that_ended(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of their ids it read all of 30,000, of which 10,000 were live."""
    await execute(
        own_database,
        """INSERT INTO workers (id, name, incarnation, state, capabilities, labels, ended_at)
           SELECT gen_random_uuid(), n::text, 1, CASE WHEN n % 3 = 0 THEN 'ready' ELSE 'stopped' END, '{}', '{}',
                  CASE WHEN n % 3 > 0 THEN now() END
           FROM generate_series(1, 30000) AS n""",
    )
    await execute(own_database, "VACUUM ANALYZE workers")
    async with explained_database(own_database, monkeypatch) as (database, log):
        async with database.transaction() as connection:
            assert len(await workers.liveness(connection)) == 10_000
        assert log.take().pages < 30_000
