"""A pool for tests of the scaling loop: a host, its workers with heartbeats, and decisions taken at once."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from app.admin.rules.config import ConfigAction, balance_weights, preset
from app.admin.service import config
from app.admin.service.config import ChangeRequest
from app.db import hot_path
from app.db.database import Database
from app.kernel.ids import WorkerId
from app.kernel.modes import Mode
from app.scaling.service import tick
from app.workers.rules.workers import Directive
from app.workers.service import pool, workers
from app.workers.store import directives
from app.workers.store import workers as worker_store
from app.workers.store.directives import WorkerSelector
from tests.support.factories import beat, registration, report
from tests.support.sql import execute, fetch, value


async def bounds(database: Database, least: int, most: int, mode: Mode = Mode.PRODUCTION) -> None:
    """Put a configuration in force: this mode, with these bounds."""
    async with database.transaction() as connection:
        before = await config.current(connection, mode)
    pool = replace(before.document.worker_pool, min_workers=least, max_workers=most)
    document = balance_weights(replace(preset(mode), worker_pool=pool))
    async with database.transaction() as connection:
        order = ChangeRequest(expected_version=before.version, by="test", reason="test")
        await config.change(connection, mode, order, ConfigAction.SET, document)


async def keep_up(database: Database, size: int = 1, host: str = "here", **changes: Any) -> dict[str, Any]:
    """The turn of a host's fleet duty."""
    async with database.transaction() as connection:
        return await pool.tick(connection, Mode.PRODUCTION, report(size, host=host, **changes))


async def arrive(database: Database, *, cpu_percent: float = 0.0, **changes: Any) -> list[WorkerId]:
    """Everybody who was asked for registers and passes the first health report."""
    rows = await fetch(database, "SELECT id, name FROM workers WHERE state = 'starting' ORDER BY slot")
    for row in rows:
        async with database.transaction() as connection:
            await workers.register(connection, registration(row["name"], **changes), row["id"])
    await beats(database, [row["id"] for row in rows], cpu_percent=cpu_percent)
    return [WorkerId(row["id"]) for row in rows]


async def beats(database: Database, worker_ids: Sequence[UUID], **changes: Any) -> None:
    """A heartbeat of each."""
    said = [beat(worker_id, **changes) for worker_id in worker_ids]
    if said:
        await hot_path.run(database, lambda c: worker_store.record_heartbeats(c, said, 15.0))


async def crew(database: Database, size: int, *, cpu_percent: float = 0.0, **changes: Any) -> list[WorkerId]:
    """A host with so many workers that are ready."""
    await keep_up(database, size, **changes)
    return await arrive(database, cpu_percent=cpu_percent)


async def decided(database: Database, *, seconds: float = 5.0) -> dict[str, Any]:
    """Let so many seconds pass since the last decision, decide, and return what was kept of it."""
    await passed(database, seconds)
    async with database.transaction() as connection:
        result = await tick.tick(connection, database, Mode.PRODUCTION)
    assert result, "no decision was due"
    return await kept(database, result["decision"])


async def passed(database: Database, seconds: float) -> None:
    """What the loop remembers was so many seconds earlier than it was."""
    await execute(
        database,
        """
        UPDATE scaling_state SET decided_at = decided_at - passed.time, content = content || jsonb_build_object(
            'moved_at', to_jsonb(CAST(content ->> 'moved_at' AS timestamptz) - passed.time))
        FROM (SELECT make_interval(secs => $1) AS time) passed
        """,
        float(seconds),
    )


async def kept(database: Database, decision_id: int) -> dict[str, Any]:
    """A decision as it is kept."""
    return dict(json.loads(await value(database, "SELECT output::text FROM decisions WHERE id = $1", decision_id)))


async def living(database: Database) -> int:
    """How many workers there are, starting and draining ones included."""
    return int(await value(database, "SELECT count(*) FROM workers WHERE state IN ('starting', 'ready', 'draining')"))


async def drain(database: Database, worker_ids: Sequence[UUID]) -> None:
    """Somebody tells these workers to go, which the pool did not want."""
    async with database.transaction() as connection:
        await directives.direct(connection, WorkerSelector(ids=worker_ids), Directive.DRAIN, "by hand")
