"""Statements under the gate's lock touch live permits only, whatever the statistics say."""

import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from app.db.database import Database
from app.llm.store import gate, permits
from tests.conftest import empty_database, run_on
from tests.support.sql import execute, fetch

_FILL = """
INSERT INTO llm_permits (id, key_id, request_id, token, model, agent_type, priority, estimated_tokens, is_probe,
                         granted_at, expires_at, ended_at, ending)
SELECT gen_random_uuid(), 'key', gen_random_uuid(), '', 'm', 'ranking', 2, 1, false, now(), now() + interval '1 min',
       CASE WHEN n > 20 THEN now() END, CASE WHEN n > 20 THEN 'settled' END
FROM generate_series(1, 20000) AS n
"""
_BUDGETS = """
INSERT INTO llm_budgets (scope, name, token_budget, period)
SELECT 'agent', name, 1000, 'day' FROM unnest(ARRAY['generation', 'reflection', 'ranking', 'evolution']) name
UNION ALL SELECT 'key', 'key ' || n, 1000, 'day' FROM generate_series(1, 1000) n UNION ALL SELECT 'key', 'key', 9, 'day'
"""
# An index page or two, the pages of the live ones, and what is read of the other tables; the table has hundreds.
_FEW_PAGES = 60


@pytest.fixture(scope="module", params=["never analysed", "analysed when empty", "analysed"])
async def full(server_url: str, template: str, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """An hour of a busy system, about which the planner knows nothing, something that was true once, or the truth."""
    async with empty_database(server_url, template) as database:
        await execute(database, "ALTER TABLE llm_permits SET (autovacuum_enabled = off)")
        if request.param == "analysed when empty":
            await execute(database, "VACUUM ANALYZE llm_permits")
        await run_on(database.url, _FILL)  # without the limit of a hot statement
        await run_on(database.url, _BUDGETS)
        if request.param == "analysed":
            await run_on(database.url, "ANALYZE")
        yield database


async def _pages(database: Database, statement: str, values: dict[str, Any]) -> int:
    """Pages touched when the statement runs, once it has stopped looking at values."""
    for number, name in enumerate(values, 1):
        statement = re.sub(rf"(?<!:):{name}\b", f"${number}", statement)
    connection = await database.connect()
    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        rows = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", *values.values())
    finally:
        await connection.close()
    buffers = next(line for (line,) in rows if "Buffers:" in line)
    return sum(int(pages) for pages in re.findall(r"(?:hit|read)=(\d+)", buffers))


async def test_a_decision_reads_live_permits_only(full: Database) -> None:
    unknown = {"keys": ["key"] * 20, "requests": [UUID(int=n) for n in range(20)]}
    values = {"default_limit": 20, "probe": 30.0, "workers": [UUID(int=n) for n in range(20)], **unknown}
    values |= {"goals": [f"goal {n}" for n in range(20)]}
    assert await _pages(full, str(gate.STATE), values) <= 20 * 4 + _FEW_PAGES
    assert await _pages(full, str(gate.LOAD), {"default_limit": 20}) <= _FEW_PAGES
    assert await _pages(full, permits.EXPIRE, {}) <= _FEW_PAGES
    (table,) = await fetch(full, "SELECT pg_relation_size('llm_permits') / 8192 AS pages")
    assert table["pages"] > 10 * _FEW_PAGES, "the test would see a walk through the table"


async def test_a_lost_worker_costs_a_probe(full: Database) -> None:
    assert await _pages(full, str(permits.END_LOST), {"worker_id": UUID(int=1)}) <= _FEW_PAGES
