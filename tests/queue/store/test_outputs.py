"""Pages of results, among many."""

import pytest

from app.db.database import Database
from app.queue.store import outputs
from app.queue.store.events import BEGINNING
from tests.support.plans import explained_database
from tests.support.sql import execute

_FILL = """
WITH finished AS (
    INSERT INTO task_history (id, seq, state, agent_type, priority, payload, labels, max_attempts, retry_delays,
                              request_hash, created_at, finished_at, result)
    SELECT gen_random_uuid(), n, 'completed', 'ranking', 2, '{}', '{}', 3, '{}', '', now(), now(), '{"a": 1}'
    FROM generate_series(1, 300) AS n RETURNING id, finished_at
)
INSERT INTO events (kind, task_id, agent_type, priority, at)
SELECT 'task.completed', id, 'ranking', 2, finished_at FROM finished
"""


@pytest.mark.parametrize("is_analysed", [False, True])
async def test_a_page_looks_at_each_result_a_few_times(
    own_database: Database, monkeypatch: pytest.MonkeyPatch, *, is_analysed: bool
) -> None:
    """Joined to those of the page before it was walked, a page of 450 results touched 737,000 pages of 8 KiB."""
    await execute(own_database, _FILL)
    if is_analysed:
        await execute(own_database, "ANALYZE")
    async with explained_database(own_database, monkeypatch, "force_custom_plan") as (database, log):
        async with database.transaction() as connection:
            page = await outputs.page(connection, BEGINNING, agent_type=None, goal_id=None, limit=250)
        cost = log.take()
    assert len(page.items) == 250
    assert 250 < cost.pages < 40 * 250
