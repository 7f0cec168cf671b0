"""The longest-waiting task of a priority is one index probe away, however many wait and whatever the planner knows."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from app.db.database import Database, now
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.queue.rules.status import oldest_wait_floors
from app.queue.store import waits
from tests.support.sql import execute, value

_FILL = """
INSERT INTO tasks (id, state, agent_type, priority, payload, labels, timeout_seconds, max_attempts, retry_delays,
                   request_hash, created_at, waiting_since)
SELECT gen_random_uuid(), 'pending', (ARRAY['generation', 'ranking'])[1 + n % 2], 1 + n % 3, '{}', '{}', 60, 3, '{}',
       '', now(), now() - n * interval '1 s'
FROM generate_series(1, 20000) AS n
"""


@pytest.fixture(params=["never analysed", "analysed"])
async def full(own_database: Database, request: pytest.FixtureRequest) -> Database:
    await execute(own_database, "ALTER TABLE tasks SET (autovacuum_enabled = off)")
    await execute(own_database, _FILL)
    if request.param == "analysed":
        await execute(own_database, "ANALYZE")
    return own_database


async def test_a_probe_reads_one_entry_of_the_index(full: Database) -> None:
    asked = oldest_wait_floors({}, None)
    values: dict[str, Any] = {"priorities": [p.value for p in asked], "floors": list(asked.values())}
    async with full.transaction() as connection:
        plan = "\n".join((await connection.execute(text(f"EXPLAIN {waits._OLDEST.text}"), values)).scalars())
        found = await waits.oldest_waits(connection, asked)
    assert "Scan using tasks_waiting on tasks" in plan
    assert "Sort" not in plan
    assert set(found) == {Priority.LOW, Priority.MEDIUM, Priority.HIGH}
    assert min(found.values()) == await value(full, "SELECT min(waiting_since) FROM tasks")


async def test_nothing_below_the_floor_is_looked_at(full: Database) -> None:
    floor = await value(full, "SELECT now() - interval '1 h'")
    async with full.transaction() as connection:
        found = await waits.oldest_waits(connection, dict.fromkeys(Priority, floor))
        assert all(since >= floor for since in found.values())
        assert await waits.oldest_waits(connection, dict.fromkeys(Priority, datetime(2100, 1, 1, tzinfo=UTC))) == {}


async def test_the_oldest_of_each_type_is_told_from_a_bounded_number_of_tasks(full: Database) -> None:
    asked = oldest_wait_floors({}, None)
    values: dict[str, Any] = {"priorities": [p.value for p in asked], "floors": list(asked.values()), "limit": 250}
    async with full.transaction() as connection:
        plan = "\n".join((await connection.execute(text(f"EXPLAIN {waits._OLDEST_OF_TYPES.text}"), values)).scalars())
        at = await now(connection)
        every = await waits.oldest_of_types(connection, asked)
    assert "Scan using tasks_waiting on tasks" in plan
    ages = {agent: (at - oldest.since).total_seconds() for agent, oldest in every.items()}
    assert ages[AgentType.GENERATION] == pytest.approx(20_000, abs=30)
    assert ages[AgentType.RANKING] == pytest.approx(19_999, abs=30)
    assert every[AgentType.RANKING].is_exact
    # Nothing is known of a type that is not among those that were looked at but that it has no older one.
    assert not every[AgentType.EVOLUTION].is_exact
    assert ages[AgentType.EVOLUTION] == pytest.approx(20_000 - 250 * 3, abs=30)


async def test_a_type_without_tasks_has_no_oldest_where_all_were_looked_at(database: Database) -> None:
    await execute(database, _FILL.replace("20000", "5"))
    async with database.transaction() as connection:
        every = await waits.oldest_of_types(connection, oldest_wait_floors({}, None))
    assert set(every) == {AgentType.GENERATION, AgentType.RANKING}
    assert all(oldest.is_exact for oldest in every.values())
