"""Places in long lanes, plans of the statements, and locks that others hold."""

import asyncio
from datetime import timedelta
from math import inf
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text

from app.db.database import Database, hold_moment
from app.diagnosis.rules import causes
from app.diagnosis.rules.causes import Code
from app.diagnosis.rules.facts import Place
from app.diagnosis.service.diagnosis import Diagnosis, diagnose
from app.diagnosis.store import facts
from app.queue.rules.tasks import LeasePolicy
from tests.support.factories import ready_worker, submitted
from tests.support.sql import execute, value

_FILL = """
INSERT INTO tasks (id, state, agent_type, goal_id, priority, payload, labels, max_attempts, retry_delays, request_hash,
                   created_at, tag)
SELECT gen_random_uuid(), 'pending', 'generation', 'g' || n % 7, $2, '{}', '{}', 3, '{}', '', now(), n
FROM generate_series(1, $1) AS n
"""


async def _why(database: Database, task_id: UUID) -> Diagnosis:
    async with database.reading() as connection:
        await hold_moment(connection)
        return await diagnose(connection, task_id, policy=LeasePolicy())


async def _place(database: Database, tag: int, priority: int = 2) -> Place:
    query = "SELECT id FROM tasks WHERE tag = $1 AND priority = $2"
    place = (await _why(database, await value(database, query, float(tag), priority))).place
    assert place is not None
    return place


@pytest.mark.slow
async def test_a_place_is_exact_near_both_ends_of_a_lane_and_about_right_between(own_database: Database) -> None:
    await ready_worker(own_database)
    await execute(own_database, _FILL, 20_000, 2)
    await execute(own_database, _FILL, 3, 4)
    assert await _place(own_database, 220) == Place(higher=3, same=219)
    assert await _place(own_database, 19_800) == Place(higher=3, same=19_799, is_exact=False)
    middle = await _place(own_database, 9_000)
    assert not middle.is_exact
    assert middle.same == pytest.approx(8_999, rel=0.01)
    await execute(own_database, "INSERT INTO holds (goal_id, reason) VALUES ('g1', 'paused')")
    assert (await _place(own_database, 210)).same == 179
    await execute(own_database, "INSERT INTO lanes VALUES ('generation', 2, 10000)")
    assert (await _place(own_database, 10_210)).same == 180
    await execute(own_database, "ANALYZE")
    values = {"agent_type": "generation", "priority": 2, "limit": 251, "tag": 9e3, "seq": 9_000, "floor": 0.0}
    values |= {"resource_class": 0, "bottom": 0.0, "ceiling": inf}
    statements = [facts._AHEAD, facts._BEHIND, facts._HIGHER]
    async with own_database.reading() as connection:
        for statement in statements:
            bound = {name: value for name, value in values.items() if name in statement._bindparams}
            rows = await connection.execute(text(f"EXPLAIN {statement.text}"), bound)
            plan = "\n".join(rows.scalars())
            assert "using tasks_claim on tasks" in plan
            assert "Seq Scan on tasks" not in plan


async def test_a_task_that_somebody_has_locked_is_told_of_with_the_session(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ready_worker(database)
    (task_id,) = await submitted(database)
    assert (await _why(database, task_id)).causes[0].code is Code.NEXT
    monkeypatch.setattr(causes, "MOMENTARY", timedelta())
    holder = await asyncpg.connect(database.url, server_settings={"application_name": "a forgotten psql"})
    try:
        await holder.execute("BEGIN")
        await holder.fetch("SELECT FROM tasks FOR UPDATE")
        await asyncio.sleep(0.01)
        cause = (await _why(database, task_id)).causes[0]
        assert (cause.code, "a forgotten psql" in cause.text) == (Code.LOCKED, True)
        assert str(await holder.fetchval("SELECT pg_backend_pid()")) in cause.mends[0].text
    finally:
        await holder.close()
    assert (await _why(database, task_id)).causes[0].code is Code.NEXT
