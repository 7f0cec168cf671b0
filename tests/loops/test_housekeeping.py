"""Housekeeping: each step for itself, in batches, in nobody's way, and done by one replica at a time."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from app.agents.service import performance
from app.db import retention
from app.db.database import Database
from app.db.retention import BATCH
from app.goals.store import compute
from app.loops import housekeeping
from app.queue.store import lease_ledger
from app.workers.store import workers
from tests.support.plans import explained_database
from tests.support.sql import execute, fetch, value
from tests.support.turns import fold_events

_EVENT = (
    "INSERT INTO events (at, kind, task_id, agent_type) VALUES ($1, 'task.submitted', gen_random_uuid(), 'ranking')"
)
_FINGERPRINTS = """
INSERT INTO fingerprints (digest, task_id, seen_at)
SELECT int8send(n), gen_random_uuid(), now() - interval '2 days' FROM generate_series(1, $1) AS n
"""
_LAST = r"SELECT max(relname) FROM pg_class WHERE relname ~ '^events_\d+$'"
_DUE = "UPDATE loop_ticks SET last_run_at = last_run_at - interval '1 h' WHERE duty = 'housekeeping'"
_MINUTES_AGO = "SELECT extract(epoch FROM now() - last_run_at) / 60 FROM loop_ticks WHERE duty = 'housekeeping'"


async def _round(database: Database) -> dict[str, Any]:
    return await housekeeping.run(database, history_days=30, events_days=7)


async def _due(database: Database) -> dict[str, Any] | None:
    return await housekeeping.run_when_due(database, history_days=30, events_days=7)


async def _old_partition(database: Database) -> str:
    """An old partition with one row, which all sums have counted."""
    today: date = await value(database, "SELECT (now() AT TIME ZONE 'UTC')::date")
    day = today - timedelta(days=9)
    for statement in retention._creation("events", day):
        await execute(database, statement)
    await execute(database, _EVENT, datetime.combine(day, datetime.min.time(), UTC))
    await fold_events(database)
    return f"events_{day:%Y%m%d}"


async def test_what_ended_long_ago_is_forgotten(own_database: Database) -> None:
    """The key of a worker with its worker, that of a launch as soon as it is over."""
    await execute(
        own_database,
        """INSERT INTO workers (id, name, incarnation, state, capabilities, labels, ended_at)
        SELECT gen_random_uuid(), 'old', n, 'stopped', '{}', '{}', now() - make_interval(days => n * 20)
        FROM generate_series(1, 2) AS n""",
    )
    await execute(
        own_database,
        """INSERT INTO keys (id, role, label, secret_hash, worker_id, launches)
        SELECT 'worker ' || incarnation, 'worker', '', ''::bytea, id, NULL::uuid FROM workers
        UNION ALL SELECT 'launch ' || incarnation, 'pool', '', ''::bytea, NULL::uuid, id FROM workers
        UNION ALL VALUES ('person', 'admin', '', ''::bytea, NULL::uuid, NULL::uuid)""",
    )
    done = await _round(own_database)
    assert (done["workers"], done["keys"], done["failed"]) == (1, 2, [])
    assert [row["id"] for row in await fetch(own_database, "SELECT id FROM keys ORDER BY id")] == ["person", "worker 1"]


async def test_workers_are_forgotten_in_batches_with_their_keys(own_database: Database) -> None:
    await execute(
        own_database,
        """INSERT INTO workers (id, name, incarnation, state, capabilities, labels, ended_at)
        SELECT gen_random_uuid(), 'old', n, 'stopped', '{}', '{}', now() - make_interval(days => 40 + n)
        FROM generate_series(1, 3) AS n""",
    )
    await execute(
        own_database,
        """INSERT INTO keys (id, role, label, secret_hash, worker_id)
        SELECT incarnation::text, 'worker', '', ''::bytea, id FROM workers""",
    )
    async with own_database.transaction() as connection:
        assert await workers.prune(connection, days=31, limit=2) == 2
    assert [row["id"] for row in await fetch(own_database, "SELECT id FROM keys")] == ["1"]


async def test_lines_of_the_ledger_go_before_their_workers(own_database: Database) -> None:
    """A batch at a time; a worker that is left has its lines."""
    await execute(
        own_database,
        """INSERT INTO workers (id, name, incarnation, state, capabilities, labels, ended_at)
        SELECT gen_random_uuid(), 'old', n, 'stopped', '{}', '{}', now() - make_interval(days => 20 * n)
        FROM generate_series(1, 2) AS n""",
    )
    await execute(
        own_database,
        """INSERT INTO leases (worker_id, n, task_id, token, request_id)
        SELECT id, n, id, n, id FROM workers, generate_series(1, 5) AS n""",
    )
    async with own_database.transaction() as connection:
        assert await lease_ledger.prune(connection, days=31, limit=3) == 3
        assert await workers.prune(connection, days=31) == 0
        assert await lease_ledger.prune(connection, days=31, limit=3) == 2
        assert await workers.prune(connection, days=31) == 1
    rows = await fetch(own_database, "SELECT w.incarnation FROM leases l LEFT JOIN workers w ON w.id = l.worker_id")
    assert [row["incarnation"] for row in rows] == [1] * 5


_MANY_GOALS = """
WITH named AS (SELECT 'goal ' || n AS id FROM generate_series(1, 400) AS n), goal AS (
    INSERT INTO goals (id) SELECT id FROM named WHERE id <> 'goal 1'
), compute AS (
    INSERT INTO goal_compute (goal_id, agent_type, attempts, seconds) SELECT id, 'ranking', 1, 1 FROM named
), worker AS (
    INSERT INTO workers (id, name, incarnation, state, capabilities, labels)
    SELECT gen_random_uuid(), id, 1, 'ready', '{}', '{}' FROM named RETURNING id
)
INSERT INTO leases (worker_id, n, task_id, token, request_id)
SELECT id, n, gen_random_uuid(), 1, id FROM worker, generate_series(1, 20) AS n
"""


@pytest.mark.slow
async def test_nothing_is_looked_up_for_goals_and_workers_that_stay(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20,000 goals the tasks in every day of history: 113,000 pages in each round."""
    await execute(own_database, _MANY_GOALS)
    async with (
        explained_database(own_database, monkeypatch) as (database, log),
        database.transaction() as connection,
    ):
        assert await compute.prune(connection) == 1
        computed = log.take().pages
        assert await lease_ledger.prune(connection, days=31) == 0
        assert await workers.prune(connection, days=31) == 0
        ended = log.take().pages
    assert 0 < computed < 200
    assert 0 < ended < 20


async def test_partitions_are_made_and_dropped(own_database: Database) -> None:
    old = await _old_partition(own_database)
    last = await value(own_database, _LAST)
    await execute(own_database, f"DROP TABLE {last}")
    done = await _round(own_database)
    assert done["events dropped"] == [old]
    assert done["events made"]
    assert await value(own_database, _LAST) >= last


async def test_a_reader_of_an_old_partition_keeps_it_and_nobody_waits(own_database: Database) -> None:
    """Not even a writer, who would stand behind a drop that stands behind the reader."""
    old = await _old_partition(own_database)
    await execute(own_database, _FINGERPRINTS, 3)
    async with own_database.transaction() as reader:
        await reader.exec_driver_sql(f"SELECT * FROM {old}")
        done = await _round(own_database)
        assert (done["events dropped"], done["fingerprints"], done["failed"]) == ([], 3, [])
        await execute(own_database, _EVENT, datetime.now(UTC))
    assert (await _round(own_database))["events dropped"] == [old]
    assert await value(own_database, "SELECT count(*) FROM every_event") == 1


async def test_a_table_in_use_gets_its_partition_in_another_round(own_database: Database) -> None:
    last = await value(own_database, _LAST)
    await execute(own_database, f"DROP TABLE {last}")
    async with own_database.transaction() as reader:
        await reader.exec_driver_sql("SELECT * FROM every_event")
        done = await _round(own_database)
        assert (done["events made"], done["failed"]) == ([], [])
        await execute(own_database, _EVENT, datetime.now(UTC))
    assert (await _round(own_database))["events made"]


async def test_a_step_that_fails_keeps_no_other_from_its_work(own_database: Database) -> None:
    await execute(own_database, "DROP TABLE task_attempts")
    await execute(own_database, _FINGERPRINTS, 3)
    done = await _round(own_database)
    assert (done["failed"], done["fingerprints"]) == (["attempts"], 3)
    assert await value(own_database, "SELECT count(*) FROM fingerprints") == 0


async def test_many_rows_go_in_batches(database: Database) -> None:
    await execute(database, _FINGERPRINTS, 2 * BATCH + 1)
    await execute(database, "INSERT INTO fingerprints (digest, task_id) VALUES ('young', gen_random_uuid())")
    assert (await _round(database))["fingerprints"] == 2 * BATCH + 1
    assert await value(database, "SELECT digest FROM fingerprints") == b"young"


async def test_a_row_in_use_stays_until_the_next_round(database: Database) -> None:
    await execute(database, _FINGERPRINTS, 3)
    async with database.transaction() as other:
        await other.exec_driver_sql("SELECT FROM fingerprints WHERE digest = int8send(2) FOR UPDATE")
        assert (await _round(database))["fingerprints"] == 2
    assert (await _round(database))["fingerprints"] == 1


async def test_what_no_partition_was_prepared_for_goes_with_its_day(own_database: Database) -> None:
    today: date = await value(own_database, "SELECT (now() AT TIME ZONE 'UTC')::date")
    noon = datetime.combine(today, datetime.min.time(), UTC) + timedelta(hours=12)
    for days in (6, 8, 9):
        await execute(own_database, _EVENT, noon - timedelta(days=days))
    assert await value(own_database, "SELECT count(*) FROM events_default") == 3
    await fold_events(own_database)
    assert (await _round(own_database))["events default"] == 2
    assert await value(own_database, "SELECT at FROM events_default") == noon - timedelta(days=6)


async def test_events_stay_until_all_sums_have_counted_them(own_database: Database) -> None:
    """As after weeks without loops, when the first round comes before the folds: what goals have spent was lost."""
    old = await _old_partition(own_database)
    ended = datetime.now(UTC) - timedelta(days=9)
    event = f"{_EVENT.partition('(')[0]}(at, kind, task_id, agent_type, goal_id, seconds) VALUES "
    row = "($1, 'task.completed', gen_random_uuid(), 'ranking', 'goal', 60)"
    for at in (ended, ended - timedelta(days=30)):
        await execute(own_database, event + row, at)
    done = await _round(own_database)
    assert (done["events dropped"], done["events default"], done["failed"]) == ([], 0, [])
    await fold_events(own_database)
    assert await value(own_database, "SELECT sum(seconds) FROM goal_compute WHERE goal_id = 'goal'") == 120
    done = await _round(own_database)
    assert (done["events dropped"], done["events default"]) == ([old], 1)


async def test_judgements_stay_until_the_results_of_their_agents_have_counted_them(own_database: Database) -> None:
    add = """INSERT INTO judgements (request_id, place, request_hash, agent_type, quality, judged_by, judged_at)
        VALUES (gen_random_uuid(), 1, '', 'ranking', 0.5, 'key', now() - interval '31 days')"""
    await execute(own_database, add)
    assert (await _round(own_database))["judgements"] == 0
    async with own_database.transaction() as connection:
        assert (await performance.fold(connection))["judgements"] == 1
    await execute(own_database, add)
    assert (await _round(own_database))["judgements"] == 1
    assert await value(own_database, "SELECT counted FROM agent_results") == 1


async def test_a_round_is_begun_by_one_replica(database: Database) -> None:
    assert await _due(database) is not None
    assert await _due(database) is None
    await execute(database, _DUE)
    assert await _due(database) is not None
    assert await value(database, "SELECT runs FROM loop_ticks WHERE duty = 'housekeeping'") == 2
    assert await value(database, "SELECT result -> 'failed' = '[]' FROM loop_ticks WHERE duty = 'housekeeping'")


async def test_a_round_that_failed_in_part_does_not_count(own_database: Database) -> None:
    """The health report goes by the last turn."""
    assert await _due(own_database) is not None
    await execute(own_database, _DUE)
    await execute(own_database, "DROP TABLE task_attempts")
    done = await _due(own_database)
    assert done is not None
    assert done["failed"] == ["attempts"]
    assert await value(own_database, _MINUTES_AGO) > 59
