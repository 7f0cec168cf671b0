"""Since when the longest-waiting task of each priority has been waiting."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.tasks import Priority

# Entries of tasks that have left stay at the head of the index while somebody keeps an old snapshot open; from a floor
# on, the look does not begin with them. The bound on the priority is what the index `tasks_waiting` asks for.
_OLDEST = text("""
SELECT asked.priority, head.waiting_since
FROM unnest(CAST(:priorities AS smallint[]), CAST(:floors AS timestamptz[])) AS asked (priority, floor)
CROSS JOIN LATERAL (
    SELECT waiting_since FROM tasks t
    WHERE t.priority = asked.priority AND t.priority <= 4 AND state = 'pending' AND run_at IS NULL
      AND waiting_since >= asked.floor
    ORDER BY waiting_since LIMIT 1
) head
""")


async def oldest(connection: AsyncConnection, floors: Mapping[Priority, datetime]) -> dict[Priority, datetime]:
    """One index probe each: the priorities in which a task may run that waits since its floor or later."""
    values = {"priorities": [priority.value for priority in floors], "floors": list(floors.values())}
    rows = (await connection.execute(_OLDEST, values)).mappings()
    return {Priority(row["priority"]): row["waiting_since"] for row in rows}
