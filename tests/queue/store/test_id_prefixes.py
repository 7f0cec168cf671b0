"""Tasks by the beginning of their ids: live and finished ones, and a bounded number of rows however many have it."""

from app.db.database import Database
from app.queue.store import listing
from tests.support.sql import execute

_FIELDS = "agent_type, priority, payload, labels, timeout_seconds, max_attempts, retry_delays, request_hash, created_at"
_VALUES = "'ranking', 2, '{}', '{}', 60, 3, '{}', '', now()"


async def test_looking_for_a_beginning_reads_a_bounded_number_of_rows(own_database: Database) -> None:
    tables = {
        "tasks": ("seq, state, tag", "n, 'pending', n"),
        "task_history": ("seq, state, finished_at, failures, rescues", "n, 'completed', now(), 0, 0"),
    }
    for table, (names, values) in tables.items():
        override = "OVERRIDING SYSTEM VALUE" if table == "tasks" else ""
        query = f"""
            INSERT INTO {table} (id, {_FIELDS}, {names}) {override}
            SELECT CAST('0190a5b2' || lpad(to_hex(n), 24, '0') AS uuid), {_VALUES}, {values}
            FROM generate_series(1, 3000) n
        """
        await execute(own_database, query)
    await execute(own_database, "ANALYZE")
    async with own_database.transaction() as connection:
        everything = await listing.ids(connection, "0190a5b2", None)
        others = await listing.ids(connection, "0190a5b2", "lab-a")
        one = await listing.ids(connection, "0190a5b2" + "0" * 21 + "bb8", None)
        nothing = await listing.ids(connection, "0190a5b3", None)
    assert (len(everything.ids), everything.more) == (10, True)
    assert (list(others.ids), others.more) == ([], True)
    assert ([str(task_id)[-3:] for task_id in one.ids], one.more) == (["bb8", "bb8"], False)
    assert (list(nothing.ids), nothing.more) == ([], False)
