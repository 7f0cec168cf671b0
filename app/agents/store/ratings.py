"""What is said of results after they were handed in; folded into what is known of the agents by a duty."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.retention import BATCH, deletion
from app.kernel.agents import AgentType

_NAME = "judgements"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How good a result is, 0 to 1; without a task, how good the agent is."""

    agent_type: AgentType
    quality: float
    task_id: UUID | None = None
    basis: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known(Judgement):
    """A judgement as it is kept."""

    judged_at: datetime


_ADD = text("""
INSERT INTO judgements (request_id, place, request_hash, agent_type, task_id, quality, basis, judged_by)
SELECT :request_id, place, :request_hash, agent_type, task_id, quality, basis, :by
FROM unnest(CAST(:agents AS text[]), CAST(:tasks AS uuid[]), CAST(:qualities AS float8[]), CAST(:bases AS text[]))
    WITH ORDINALITY AS new (agent_type, task_id, quality, basis, place)
ON CONFLICT (request_id, place) DO NOTHING RETURNING id
""")

_HASH = text("SELECT request_hash FROM judgements WHERE request_id = :request_id LIMIT 1")

_FINISHED = text("""
SELECT id, agent_type, state FROM task_history WHERE id = ANY (:ids)
UNION ALL SELECT id, agent_type, state FROM tasks WHERE id = ANY (:ids)
""")

# A judgement bears a later transaction than the event of the result that it is about, so whoever has folded all events
# up to a mark has seen the results of all judgements below it.
_FOLD = text(f"""
WITH mark AS MATERIALIZED (
    SELECT coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0) AS since,
           coalesce((SELECT transaction FROM folds WHERE name = 'performance'), 0) AS until
), taken AS MATERIALIZED (
    SELECT j.id, j.agent_type, j.task_id, j.quality, j.judged_at FROM judgements j CROSS JOIN mark
    WHERE j.transaction >= mark.since AND j.transaction < mark.until
), folded AS (
    INSERT INTO agent_minutes AS known (minute, agent_type, results, successes, judged, quality, seconds)
    SELECT date_trunc('minute', judged_at), agent_type, 0, 0, count(*), sum(quality), 0 FROM taken GROUP BY 1, 2
    ON CONFLICT (minute, agent_type) DO UPDATE
    SET judged = known.judged + excluded.judged, quality = known.quality + excluded.quality
), marked AS (
    INSERT INTO folds (name, transaction) SELECT '{_NAME}', until FROM mark WHERE EXISTS (SELECT FROM taken)
    ON CONFLICT (name) DO UPDATE SET transaction = excluded.transaction
)
SELECT agent_type, task_id, quality, judged_at FROM taken ORDER BY id
""")

_PRUNE = deletion("judgements", "judged_at < now() - make_interval(days => :days)", "judged_at")


async def add(
    connection: AsyncConnection, request_id: UUID, request_hash: bytes, by: str, items: Sequence[Judgement]
) -> bool:
    """Keep the judgements of a request; False when there are some of it already. Waits for a rival with the same id."""
    values = {
        "request_id": request_id,
        "request_hash": request_hash,
        "by": by,
        "agents": [item.agent_type.value for item in items],
        "tasks": [item.task_id for item in items],
        "qualities": [item.quality for item in items],
        "bases": [item.basis for item in items],
    }
    return bool((await connection.execute(_ADD, values)).all())


async def request_hash(connection: AsyncConnection, request_id: UUID) -> bytes | None:
    """The digest of what was said under this id before; None when nothing was."""
    found: bytes | None = (await connection.execute(_HASH, {"request_id": request_id})).scalar()
    return found


async def tasks(connection: AsyncConnection, ids: Collection[UUID]) -> dict[UUID, tuple[AgentType, str]]:
    """Agent type and state of these tasks, as far as there are such."""
    rows = (await connection.execute(_FINISHED, {"ids": list(ids)})).mappings()
    return {row["id"]: (AgentType(row["agent_type"]), row["state"]) for row in rows}


async def fold(connection: AsyncConnection) -> list[Known]:
    """The judgements of results that are folded already, oldest first, each once. The caller holds a duty's turn."""
    return [_known(row) for row in (await connection.execute(_FOLD)).mappings()]


async def prune(connection: AsyncConnection, days: int, limit: int = BATCH) -> int:
    """Forget what was said long ago; returns how many rows."""
    return (await connection.execute(_PRUNE, {"days": days, "limit": limit})).rowcount


def _known(row: Any) -> Known:
    return Known(**{**row, "agent_type": AgentType(row["agent_type"])})
