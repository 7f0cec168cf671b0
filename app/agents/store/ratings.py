"""Ratings of results after they were handed in; folded into the results of the agents by a duty."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.namespaces import WITHIN
from app.db.retention import pruning
from app.kernel.agents import AgentType

_NAME = "judgements"
_FIRST_UNFOLDED = f"coalesce((SELECT transaction FROM folds WHERE name = '{_NAME}'), 0)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """Quality of a result, 0 to 1; without a task, of the agent as such."""

    agent_type: AgentType
    quality: float
    task_id: UUID | None = None
    basis: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRating(Rating):
    """A stored rating."""

    judged_at: datetime


_ADD = text("""
INSERT INTO judgements (request_id, place, request_hash, agent_type, task_id, quality, basis, judged_by)
SELECT :request_id, place, :request_hash, agent_type, task_id, quality, basis, :by
FROM unnest(CAST(:agents AS text[]), CAST(:tasks AS uuid[]), CAST(:qualities AS float8[]), CAST(:bases AS text[]))
    WITH ORDINALITY AS new (agent_type, task_id, quality, basis, place)
ON CONFLICT (request_id, place) DO NOTHING RETURNING id
""")

# Every row of a request bears the digest of its whole body.
_HASH = text("SELECT request_hash FROM judgements WHERE request_id = :request_id LIMIT 1")

# Completed tasks lie in the history; the others are read to tell a task that is not completed from one that is unknown.
_TASK_STATES = text(f"""
SELECT id, agent_type, state FROM task_history WHERE id = ANY (:ids) AND {WITHIN}
UNION ALL SELECT id, agent_type, state FROM tasks WHERE id = ANY (:ids) AND {WITHIN}
""")

# A rating bears a later transaction than the event of its result. So this fold stops at the mark of the fold of events:
# below it all results that are rated have been folded. A batch of about `:limit` ends between two transactions, as the
# mark knows only whole ones; one that is larger is taken all at once.
_FOLD = text(f"""
WITH mark AS MATERIALIZED (
    SELECT {_FIRST_UNFOLDED} AS since,
           coalesce((SELECT transaction FROM folds WHERE name = 'performance'), 0) AS until
), ahead AS MATERIALIZED (
    SELECT j.transaction FROM mark CROSS JOIN LATERAL (
        SELECT transaction FROM judgements WHERE transaction >= mark.since AND transaction < mark.until
        ORDER BY transaction LIMIT :limit + 1
    ) j
), batch AS MATERIALIZED (
    SELECT CASE WHEN (SELECT count(*) FROM ahead) <= :limit THEN until
                ELSE (SELECT greatest(max(transaction), min(transaction) + 1) FROM ahead) END AS until
    FROM mark
), taken AS MATERIALIZED (
    SELECT j.id, j.agent_type, j.task_id, j.quality, j.judged_at FROM judgements j
    WHERE j.transaction >= (SELECT since FROM mark) AND j.transaction < (SELECT until FROM batch)
), folded AS (
    INSERT INTO agent_minutes AS known (minute, agent_type, results, successes, judged, quality, seconds)
    SELECT date_trunc('minute', judged_at), agent_type, 0, 0, count(*), sum(quality), 0 FROM taken GROUP BY 1, 2
    ON CONFLICT (minute, agent_type) DO UPDATE
    SET judged = known.judged + excluded.judged, quality = known.quality + excluded.quality
), marked AS (
    INSERT INTO folds (name, transaction) SELECT '{_NAME}', until FROM batch WHERE EXISTS (SELECT FROM taken)
    ON CONFLICT (name) DO UPDATE SET transaction = excluded.transaction
)
SELECT agent_type, task_id, quality, judged_at FROM taken ORDER BY id
""")

prune = pruning("judgements", "judged_at", condition=f"transaction < {_FIRST_UNFOLDED}")


async def add(
    connection: AsyncConnection, request_id: UUID, request_hash: bytes, by: str, items: Sequence[Rating]
) -> bool:
    """Store the ratings of a request; False when it has some already. Waits for a rival with the same id."""
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
    """The digest of the request with this id; None when there was none."""
    digest: bytes | None = (await connection.execute(_HASH, {"request_id": request_id})).scalar()
    return digest


async def read_task_states(
    connection: AsyncConnection, ids: Collection[UUID], namespace: str | None = None
) -> dict[UUID, tuple[AgentType, str]]:
    """Agent type and state of each of these tasks that exists, in this namespace if one is given."""
    rows = (await connection.execute(_TASK_STATES, {"ids": list(ids), "namespace": namespace})).mappings()
    return {row["id"]: (AgentType(row["agent_type"]), row["state"]) for row in rows}


async def fold(connection: AsyncConnection, limit: int = 5_000) -> list[StoredRating]:
    """Fold about `limit` of the oldest new ratings of folded results; return them, oldest first.

    One at a time: the caller holds a duty's turn.
    """
    rows = (await connection.execute(_FOLD, {"limit": limit})).mappings()
    return [StoredRating(**{**row, "agent_type": AgentType(row["agent_type"])}) for row in rows]
