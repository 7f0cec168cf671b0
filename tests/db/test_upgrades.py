"""An existing database keeps its data when it is brought up to date."""

from app.db import hot_path, schema
from app.db.database import Database
from app.kernel.agents import AgentType
from app.queue.store import completions, counters
from tests.queue.store.test_event_rows import all_events, claimed
from tests.support.factories import GENERATION, submitted
from tests.support.sql import execute, fetch, value


async def test_keys_without_a_worker_become_those_of_pools(own_database: Database) -> None:
    await schema.downgrade(own_database.engine, "2026_11_28_functions")
    insert = "INSERT INTO keys (id, role, label, secret_hash, worker_id) VALUES ($1, $2, 'x', '', {})"
    for role in ("worker", "reader", "admin"):
        await execute(own_database, insert.format("NULL"), role, role)
    await execute(own_database, insert.format("gen_random_uuid()"), "its own", "worker")
    await schema.migrate(own_database.engine)
    roles = {row["id"]: row["role"] for row in await fetch(own_database, "SELECT id, role FROM keys")}
    assert roles == {"worker": "pool", "reader": "reader", "admin": "admin", "its own": "worker"}
    await schema.downgrade(own_database.engine, "2026_11_28_functions")
    assert await value(own_database, "SELECT role FROM keys WHERE id = 'worker'") == "worker"


async def test_rows_of_many_events_are_unfolded_on_the_way_down(own_database: Database) -> None:
    await submitted(own_database, 3)
    await claimed(own_database, 3)
    before = await all_events(own_database)
    await schema.downgrade(own_database.engine, "2026_11_28_ended_calls")
    assert await value(own_database, "SELECT count(*) FROM events WHERE task_id IS NOT NULL") == 9
    await schema.migrate(own_database.engine)
    await submitted(own_database, 2)
    after = await all_events(own_database)
    assert after[: len(before)] == before
    assert len(after) == len(before) + 2
    assert len({event.cursor for event in after}) == len(after)


async def test_rows_of_several_goals_and_lanes_are_unfolded_on_the_way_down(own_database: Database) -> None:
    for goal in ("one", "other"):
        await submitted(own_database, 2, goal_id=goal)
    await submitted(own_database, 2, agent_type=AgentType.RANKING)
    await claimed(own_database, [GENERATION] * 4)
    before = await all_events(own_database)
    await schema.downgrade(own_database.engine, "2026_12_04_few_statistics")
    assert await all_events(own_database) == before
    assert await value(own_database, "SELECT count(*) FROM events WHERE task_ids IS NOT NULL") == 0
    await schema.migrate(own_database.engine)
    assert await all_events(own_database) == before


async def test_leases_and_dependencies_stay_when_the_columns_of_tasks_move(own_database: Database) -> None:
    first, other = await submitted(own_database, 2)
    (last,) = await submitted(own_database, depends_on=(first,))
    results = await claimed(own_database, 1)
    query = """SELECT id, state, token, worker_id, leased_at, lease_expires_at, deadline_at, depends_on FROM tasks
               ORDER BY seq"""
    before = await fetch(own_database, query)
    assert [row["state"] for row in before] == ["executing", "pending", "blocked"]
    await schema.downgrade(own_database.engine, "2026_11_28_event_rows")
    await schema.migrate(own_database.engine)
    assert await fetch(own_database, query.replace("depends_on", "nullif(depends_on, '{}') AS depends_on")) == before
    async with own_database.transaction() as connection:
        assert await counters.differences(connection) == []
    completed, tags = await hot_path.run(own_database, lambda c: completions.complete_and_unblock(c, results))
    assert set(completed) == {first}
    assert tags
    assert {result.task_id for result in await claimed(own_database, 2)} == {other, last}
    async with own_database.transaction() as connection:
        assert await counters.differences(connection) == []


async def test_models_that_nobody_has_called_lose_their_last_use(own_database: Database) -> None:
    await schema.downgrade(own_database.engine, "2026_11_30_weight_steps")
    await execute(
        own_database,
        "INSERT INTO llm_models (model, concurrency, latency_seconds) VALUES ('called', 4, 0.5), ('listed', 4, NULL)",
    )
    await schema.migrate(own_database.engine)
    unused = "SELECT model FROM llm_models WHERE used_at IS NULL"
    assert await value(own_database, unused) == "listed"
    await schema.downgrade(own_database.engine, "2026_11_30_weight_steps")
    assert await value(own_database, unused) is None
