"""Invariants of the database, each as a query for its violations. They read every row: for checks by an operator."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import disable_time_limits, hold_moment
from app.queue.store import lease_ledger

_MAX_EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """An invariant in words, and a query that returns a sentence for each violation."""

    name: str
    description: str
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Result of a check: the number of violations, with a few of them as examples."""

    check: Check
    violations: int
    examples: Sequence[str]


CHECKS: Sequence[Check] = (
    Check(
        name="counters",
        description="the counters of the queue equal the tasks that are there",
        query="""
            SELECT format('%s %s %s: counted %s, there are %s', agent_type, priority, phase, sum(counted), sum(there))
            FROM (
                SELECT agent_type, priority, phase, tasks AS counted, 0 AS there FROM queue_counts
                UNION ALL SELECT agent_type, priority, phase, tasks, 0 FROM queue_changes
                WHERE transaction >= coalesce((SELECT transaction FROM folds WHERE name = 'counts'), 0)
                UNION ALL
                SELECT agent_type, priority, convener_counted(goal_id, state, run_at, submitted_priority), 0, 1
                FROM tasks
            ) counts GROUP BY agent_type, priority, phase HAVING sum(counted) <> sum(there)""",
    ),
    Check(
        name="one lease per worker",
        description="no worker holds more than one task",
        query="""
            SELECT format('worker %s holds %s tasks', worker_id, count(*)) FROM tasks
            WHERE worker_id IS NOT NULL GROUP BY worker_id HAVING count(*) > 1""",
    ),
    Check(
        name="ledger",
        description="every leased task is the last lease of its worker",
        query=f"""
            SELECT format('task %s, token %s, is not the last lease of worker %s', t.id, t.token, t.worker_id)
            FROM tasks t LEFT JOIN LATERAL {lease_ledger.last_lease("t.worker_id")} last ON true
            WHERE t.worker_id IS NOT NULL AND (last.task_id, last.token) IS DISTINCT FROM (t.id, t.token)""",
    ),
    Check(
        name="blockers",
        description="every task waits for as many others as it says",
        query="""
            SELECT format('task %s says %s, and waits for %s', t.id, t.blockers, coalesce(unmet.edges, 0))
            FROM tasks t LEFT JOIN (SELECT task_id, count(*) AS edges FROM task_dependencies GROUP BY task_id) unmet
                ON unmet.task_id = t.id
            WHERE t.blockers <> coalesce(unmet.edges, 0)""",
    ),
    Check(
        name="edges",
        description="tasks wait for living tasks only, which know of it",
        query="""
            SELECT format('task %s waits for %s', d.task_id, d.depends_on) FROM task_dependencies d
            LEFT JOIN tasks t ON t.id = d.task_id LEFT JOIN tasks o ON o.id = d.depends_on
            WHERE t.id IS NULL OR o.id IS NULL OR NOT o.has_dependents""",
    ),
    Check(
        name="holds",
        description="every task that is held back is of a goal that is",
        query="""
            SELECT format('task %s of the goal %s is held back, and the goal is not', t.id, t.goal_id) FROM tasks t
            WHERE t.run_at = 'infinity' AND NOT EXISTS (SELECT FROM holds h WHERE h.goal_id = t.goal_id)""",
    ),
    Check(
        name="one life",
        description="no task is live and finished at once, or finished twice",
        query="""
            SELECT format('task %s is live and finished', t.id) FROM tasks t JOIN task_history h ON h.id = t.id
            UNION ALL
            SELECT format('task %s has finished %s times', id, count(*)) FROM task_history
            GROUP BY id HAVING count(*) > 1""",
    ),
    Check(
        name="tokens",
        description="the token of a task is at least that of its last attempt, and no two attempts share one",
        query="""
            SELECT format('task %s: token %s, but an attempt had %s', t.id, t.token, max(a.token))
            FROM (SELECT id, token FROM tasks UNION ALL SELECT id, token FROM task_history) t
            JOIN task_attempts a ON a.task_id = t.id GROUP BY t.id, t.token HAVING max(a.token) > t.token
            UNION ALL
            SELECT format('task %s: %s attempts have the token %s', task_id, count(*), token)
            FROM task_attempts GROUP BY task_id, token HAVING count(*) > 1""",
    ),
    Check(
        name="partitions",
        description="there is a partition for what is written today and tomorrow",
        query=" UNION ALL ".join(
            f"""
            SELECT format('{table} has no partition for %s', day::date)
            FROM generate_series((now() AT TIME ZONE 'UTC')::date, (now() AT TIME ZONE 'UTC')::date + 1, '1 day') AS day
            WHERE to_regclass(format('{table}_%s', to_char(day, 'YYYYMMDD'))) IS NULL
              AND NOT EXISTS (SELECT FROM {table}_default kept WHERE (kept.{moment} AT TIME ZONE 'UTC')::date = day)"""
            for table, moment in (("task_history", "finished_at"), ("events", "at"))
        ),
    ),
    Check(
        name="weights",
        description="weights sum to 1, none is under the floor, and none has changed by more than half at once",
        query="""
            WITH shares AS MATERIALIZED (
                SELECT version, agent, CAST(weight AS float8) AS weight,
                       lag(CAST(weight AS float8)) OVER (PARTITION BY agent ORDER BY version) AS before
                FROM weights CROSS JOIN LATERAL jsonb_each_text(weights.weights) AS share (agent, weight)
            )
            SELECT format('version %s: %s went from %s to %s', version, agent, before, weight) FROM shares
            WHERE abs(weight - before) > 0.5 * before + 1e-9 OR weight < 0.02 - 1e-9
            UNION ALL
            SELECT format('version %s: the weights sum to %s', version, sum(weight)) FROM shares
            GROUP BY version HAVING abs(sum(weight) - 1) > 1e-6""",
    ),
    Check(
        name="transactions",
        description="every stored transaction number lies below what the next one takes, so that readers miss nothing",
        query="""
            SELECT format('%s hold %s, and the next one is %s', kind, highest, following) FROM (
                SELECT 'events' AS kind, max(transaction) AS highest FROM events
                UNION ALL SELECT 'queue_changes', max(transaction) FROM queue_changes
                UNION ALL SELECT 'judgements', max(transaction) FROM judgements
                UNION ALL SELECT 'folds', max(transaction) - 1 FROM folds
            ) stored CROSS JOIN (
                SELECT (pg_snapshot_xmax(pg_current_snapshot())::text)::bigint + convener_transaction_offset()
            ) own (following) WHERE highest > following""",
    ),
)


async def run_checks(connection: AsyncConnection, checks: Sequence[Check] = CHECKS) -> list[Verdict]:
    """Check all at one moment, however long it takes, as the first of a transaction that only reads."""
    await hold_moment(connection)
    await disable_time_limits(connection)
    return [await run_check(connection, check) for check in checks]


async def run_check(connection: AsyncConnection, check: Check) -> Verdict:
    """Count the violations of an invariant."""
    query = text(
        f"SELECT count(*) AS violations, (array_agg(sentence))[1:{_MAX_EXAMPLES}] AS examples "
        f"FROM ({check.query}) AS violation (sentence)"
    )
    row = (await connection.execute(query)).mappings().one()
    return Verdict(check=check, violations=row["violations"], examples=row["examples"] or [])
