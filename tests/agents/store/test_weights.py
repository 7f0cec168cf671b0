"""Versions of the weights at the size that a Supervisor makes which renews its order for weeks."""

from sqlalchemy import text

from app.agents.store import weights
from app.db.database import Database
from tests.support.sql import execute

_ORDERS = """
INSERT INTO weights (version, cause, weights, target, adjustments, configured, base, heading, override, results, reason,
                     changed_by)
SELECT n, 'override', '{}', '{}', '{}', '{}', '{}', 'ordered', '{}', 0, 'again', 'k'
FROM generate_series(1, 5000) AS n
"""


async def test_the_last_step_is_found_behind_any_number_of_orders(own_database: Database) -> None:
    # Not among the dead rows of other tests, which are read as well until they are cleaned up.
    await execute(own_database, _ORDERS)
    await execute(own_database, "ANALYZE weights")
    async with own_database.transaction() as connection:
        explained = await connection.execute(
            text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {weights._ADJUSTMENTS.text}")
        )
        plan = explained.scalar_one()[0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= 4
