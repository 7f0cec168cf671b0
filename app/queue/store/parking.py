"""Tasks that wait for a language model whose service answers nobody: delayed ones, whose delay may end early."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_PARK = text("""
INSERT INTO parked_tasks AS old (task_id, model, token) VALUES (:task_id, :model, :token)
ON CONFLICT (task_id) DO UPDATE
SET model = excluded.model, token = excluded.token, parked_at = now(), woken_at = NULL
""")

HAS_PARKED = "EXISTS (SELECT FROM parked_tasks)"
_MODELS = text("SELECT DISTINCT model FROM parked_tasks")

# Only the delay with which it was parked: after another lease it waits for something else, such as its next attempt.
# Never waits: a task that somebody has locked is looked at again in the next turn. One whose goal is held stays held,
# and is due as soon as that ends. The duty that promotes delayed tasks takes the others from here.
_WAKE_ALL = text("""
WITH parked AS MATERIALIZED (
    SELECT task_id, token FROM parked_tasks WHERE model = ANY (CAST(:models AS text[])) ORDER BY parked_at LIMIT :limit
    FOR UPDATE SKIP LOCKED
), task AS MATERIALIZED (
    SELECT t.id, t.state, t.run_at, t.token = coalesce(parked.token, t.token) AS is_parked
    FROM parked JOIN tasks t ON t.id = parked.task_id
    ORDER BY t.id FOR UPDATE OF t SKIP LOCKED
), woken AS (
    UPDATE tasks t
    SET run_at = CASE WHEN t.run_at = 'infinity' THEN t.run_at ELSE now() END,
        due_at = CASE WHEN t.run_at = 'infinity' THEN now() ELSE t.due_at END
    FROM task WHERE t.id = task.id AND task.state = 'pending' AND task.run_at > now() AND task.is_parked
    RETURNING t.id
), gone AS (
    DELETE FROM parked_tasks p USING parked
    WHERE p.task_id = parked.task_id
      AND (p.task_id IN (SELECT id FROM task) OR NOT EXISTS (SELECT FROM tasks t WHERE t.id = p.task_id))
)
SELECT count(*) FROM woken
""")

# The most urgent and then the longest parked goes first, and nobody else within the time that it needs.
_WAKE_ONE = text("""
WITH first AS MATERIALIZED (
    SELECT t.id FROM parked_tasks p JOIN tasks t ON t.id = p.task_id
    WHERE p.model = :model AND p.woken_at IS NULL AND t.state = 'pending' AND t.run_at > now()
      AND t.run_at <> 'infinity' AND t.token = coalesce(p.token, t.token)
      AND NOT EXISTS (SELECT FROM parked_tasks other
                      WHERE other.model = :model AND other.woken_at > now() - make_interval(secs => :seconds))
    ORDER BY t.priority DESC, p.parked_at LIMIT 1 FOR UPDATE OF t SKIP LOCKED
), woken AS (
    UPDATE parked_tasks p SET woken_at = now() FROM first WHERE p.task_id = first.id
)
UPDATE tasks t SET run_at = now() FROM first WHERE t.id = first.id
""")

_PRUNE = text("DELETE FROM parked_tasks WHERE parked_at < now() - interval '2 hours'")


async def park(connection: AsyncConnection, task_id: UUID, token: int, model: str) -> None:
    """Note that a task waits for a model from the end of the lease with this token on."""
    await connection.execute(_PARK, {"task_id": task_id, "token": token, "model": model})


async def awaited_models(connection: AsyncConnection) -> list[str]:
    """Models that tasks wait for."""
    return list((await connection.execute(_MODELS)).scalars())


async def wake_all(connection: AsyncConnection, models: Collection[str], limit: int = 2000) -> int:
    """End the delay of tasks that wait for these models, at most `limit`; return their number."""
    return int((await connection.execute(_WAKE_ALL, {"models": list(models), "limit": limit})).scalar_one())


async def wake_one(connection: AsyncConnection, model: str, seconds: float) -> int:
    """End the delay of one task that waits for a model, once in so many seconds; return how many, 0 or 1."""
    return (await connection.execute(_WAKE_ONE, {"model": model, "seconds": seconds})).rowcount


async def prune(connection: AsyncConnection) -> int:
    """Forget tasks whose delay is long over; return their number."""
    return (await connection.execute(_PRUNE)).rowcount
