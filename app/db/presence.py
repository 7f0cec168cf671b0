"""Notes of each process of the API that it is there, by which a pause of it is told from silence of its callers."""

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import hot_path
from app.db.database import Database
from app.db.hot_path import HotConnection
from app.db.uuids import time_ordered_uuid
from app.kernel.errors import DatabaseUnavailable
from app.kernel.presence import ApiProcess, PresencePolicy

log = logging.getLogger(__name__)
# Between two notes, of the time after which a process without any counts as away.
_NOTE_SHARE = 1 / 3
_RETRY_SECONDS = 0.5
# A process whose callers get no answer for so long is not there to them.
_STALLED_SECONDS = 0.5

_NOTE = """
INSERT INTO api_processes AS process (id, began_at, present_since, seen_at, backend)
VALUES ($1, now(), now(), now(), coalesce($3::int, pg_backend_pid()))
ON CONFLICT (id) DO UPDATE SET seen_at = now(), backend = excluded.backend, began_at = least(process.began_at, now()),
    present_since = CASE WHEN process.seen_at < now() - make_interval(secs => $2::float8) THEN now()
                         ELSE least(process.present_since, now()) END
"""

_FORGET = "DELETE FROM api_processes WHERE seen_at < now() - interval '1 hour'"

# Not for ever, as the API may be of an older version by now, which notes nothing. A note of a time to come is one of
# before the clock was set back, since when its process has not been heard of.
_READ = text("""
SELECT abs(extract(epoch FROM now() - seen_at))::float8 AS silent_seconds,
       extract(epoch FROM now() - present_since)::float8 AS present_seconds,
       present_since > began_at AS was_away,
       EXISTS (SELECT FROM pg_stat_activity session WHERE session.pid = backend) AS is_connected
FROM api_processes WHERE seen_at > now() - interval '1 hour'
""")


async def note(connection: HotConnection, process_id: UUID, policy: PresencePolicy, backend: int | None = None) -> None:
    """Note that a process of the API is there, and whether it has been away since its last note.

    `backend` is the process of the server whose session ends with this process; by default that of this connection.
    """
    await connection.execute(_NOTE, process_id, policy.away_after_seconds, backend)


async def keep_noting(
    database: Database, policy: Callable[[], PresencePolicy], stalled_seconds: Callable[[], float]
) -> None:
    """Note until canceled that this process is there, unless its callers have got no answer for `stalled_seconds`."""
    process_id = time_ordered_uuid()

    def backend() -> int | None:
        # Behind a connection pooler a session of the server outlives its client. That of announcements does not.
        return None if database.direct_url is None else database.announcer.backend

    has_forgotten = False
    while True:
        pause = _RETRY_SECONDS
        try:
            if stalled_seconds() < _STALLED_SECONDS:
                await hot_path.run(database, lambda connection: note(connection, process_id, policy(), backend()))
                pause = max(_RETRY_SECONDS, _NOTE_SHARE * policy().away_after_seconds)
                if not has_forgotten:
                    # Only once it is there itself: without any row nobody would know that the API was away.
                    await hot_path.run(database, lambda connection: connection.execute(_FORGET))
                    has_forgotten = True
        except DatabaseUnavailable:
            pass
        except Exception:
            log.exception("could not note that the API is there, trying again")
        await asyncio.sleep(pause)


async def read(connection: AsyncConnection) -> list[ApiProcess]:
    """The processes of the API that have been there within the last hour."""
    return [ApiProcess(**row) for row in (await connection.execute(_READ)).mappings()]
