"""What each migration reads, writes and locks in a database with many tasks: `python -m benchmarks.migration_locks`.

The database of the environment (CONVENER_DATABASE_URL) must be empty. It is filled as the first version had it, and
then migrated step by step.
"""

import argparse
import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg
from sqlalchemy import Connection, text

from app.db import schema
from app.db.database import Database
from app.db.migration_steps import Migration, Step

FIRST = "2026_11_23_first_schema"
_CHUNK = 100_000
_TASK = """gen_random_uuid(), (ARRAY['generation', 'ranking'])[1 + n % 2], 'goal-' || (n / 100), 1 + n % 4,
    '{"topic": "planetary motion"}'::jsonb, '{}'::jsonb, 600, 3, '{5,30}'::float8[], ''::bytea, now()"""
_COLUMNS = """id, agent_type, goal_id, priority, payload, labels, timeout_seconds, max_attempts, retry_delays,
    request_hash, created_at"""
# One task in a hundred is leased.
_FILL = (
    f"""INSERT INTO tasks ({_COLUMNS}, state, token, worker_id, lease_request_id, leased_at, lease_expires_at,
                          deadline_at)
    SELECT {_TASK}, CASE WHEN n % 100 = 0 THEN 'executing' ELSE 'pending' END, (n % 100 = 0)::int,
           CASE WHEN n % 100 = 0 THEN gen_random_uuid() END, gen_random_uuid(), now(), now(), now()
    FROM generate_series($1::int, $2::int - 1) AS n""",
    f"""INSERT INTO task_history ({_COLUMNS}, seq, state, token, finished_at)
    SELECT {_TASK}, n, 'completed', 1, now() FROM generate_series($1::int, $2::int - 1) AS n""",
    """INSERT INTO events (kind, task_id, agent_type, goal_id)
    SELECT kind, gen_random_uuid(), 'ranking', 'goal-' || (n / 100)
    FROM generate_series($1::int, $2::int - 1) AS n, unnest(ARRAY['task.submitted', 'task.completed']) AS kind""",
)
# Rows of all tables that this transaction has read or written so far; of a table that is written anew as a whole, all.
_TOUCHED = text("""
SELECT relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) + n_tup_ins + n_tup_upd + n_tup_del AS rows
FROM pg_stat_xact_user_tables
""")


@dataclass(kw_only=True)
class Watched:
    """What the migrations declared, what each touched (table -> rows), and what each needed."""

    declared: dict[str, str | None] = field(default_factory=dict)
    touched: dict[str, Mapping[str, int]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def watch(self) -> schema.Watch:
        """The watch that notes it."""
        return schema.Watch(pending=self._pending, applied=self.steps.append, before_commit=self._touch)

    def rows(self, step: Step) -> int:
        """Number of rows that it read or wrote in its transaction."""
        return sum(self.touched[step.revision].values())

    def _pending(self, migrations: Sequence[Migration]) -> None:
        self.declared = {migration.revision: migration.offline for migration in migrations}

    def _touch(self, connection: Connection) -> None:
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        self.touched[revision] = {row.relname: row.rows for row in connection.execute(_TOUCHED) if row.rows}
        # Otherwise the next transaction would count these as well.
        connection.execute(text("SELECT pg_stat_force_next_flush()"))


async def fill(url: str, tasks: int, finished: int) -> None:
    """Fill the tables of the first version: tasks that wait, finished ones, and two events of each of those."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET synchronous_commit = off")
        for statement, count in zip(_FILL, (tasks, finished, finished), strict=True):
            for first in range(0, count, _CHUNK):
                await connection.execute(statement, first, min(first + _CHUNK, count))
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


async def migrate(url: str, tasks: int, finished: int, *, is_alone: bool = False) -> Watched:
    """Fill an empty database as the first version had it, and migrate it to the newest one, which may take its time."""
    watched, database = Watched(), Database(url)
    try:
        await schema.migrate(database.engine, FIRST)
        await fill(database.url, tasks, finished)
        await schema.migrate(database.engine, watch=watched.watch(), is_alone=is_alone)
    finally:
        await database.close()
    return watched


def _table(watched: Watched) -> str:
    lines = [f"{'migration':34}{'attempts':>10}{'ms':>10}{'rows':>14}  locked tables"]
    for step in watched.steps:
        mark = "offline: " if watched.declared[step.revision] else ""
        lines.append(
            f"{step.revision:34}{step.attempts:10}{step.seconds * 1000:10.0f}{watched.rows(step):14,}"
            f"  {mark}{', '.join(step.locked)}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print what each migration did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=3_000_000, help="that wait")
    parser.add_argument("--finished", type=int, default=300_000, help="tasks in history, with two events each")
    options = parser.parse_args()
    print(_table(asyncio.run(migrate(os.environ["CONVENER_DATABASE_URL"], options.tasks, options.finished))))


if __name__ == "__main__":
    main()
