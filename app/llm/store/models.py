"""Language models: a row each, whose lock guards everything that its calls change."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import now
from app.llm.rules.circuit_breaker import Breaker
from app.llm.rules.concurrency import INITIAL_LIMIT, ConcurrencyState
from app.llm.rules.models import Model, ModelLimits
from app.llm.rules.rate_limit import Dimension, Meter


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """A model and its live permits at a moment; `used_at` is None for a model without a row."""

    model: Model
    at: datetime
    used_at: datetime | None
    permits: int


_LIMITS = tuple(ModelLimits.__dataclass_fields__)
_CONCURRENCY = ("ramping", "shrunk_at", "latency_seconds", "cooldown_until")
_SERVICE = f"concurrency, {', '.join(_CONCURRENCY)}, failures, open_until"
_COLUMNS = f"model, version, {', '.join(_LIMITS)}, {_SERVICE}, requests_tat, tokens_tat"

# PostgreSQL locks rows after it has sorted them, so two transactions lock the models they share in one order.
_LOCK = text(f"SELECT {_COLUMNS} FROM llm_models WHERE model = ANY (CAST(:names AS text[])) ORDER BY model FOR UPDATE")

# In the order of names too: an insert waits for a rival that inserts the same name, as for a lock.
_ENSURE = text("""
INSERT INTO llm_models (model, concurrency)
SELECT name, :concurrency FROM unnest(CAST(:names AS text[])) AS wanted (name) ORDER BY name ON CONFLICT DO NOTHING
""")

_READ = text(f"SELECT {_COLUMNS} FROM llm_models WHERE model = ANY (CAST(:names AS text[]))")

_STATUS = f"""
SELECT {_COLUMNS}, used_at, live.permits, now() AS at
FROM llm_models m CROSS JOIN LATERAL (
    SELECT count(*) AS permits FROM llm_permits p WHERE p.model = m.model AND ended_at IS NULL AND expires_at > now()
) live
"""

_READ_STATUS = text(f"{_STATUS} WHERE model = :name")

_PAGE = text(f"{_STATUS} WHERE model > :after_name ORDER BY model LIMIT :limit")

_WRITE_METERS = text("""
UPDATE llm_models SET used_at = now(), requests_tat = coalesce(:requests, requests_tat),
    tokens_tat = coalesce(:tokens, tokens_tat)
WHERE model = :model
""")

_WRITE_STATE = text("""
UPDATE llm_models SET concurrency = :concurrency, ramping = :ramping, shrunk_at = :shrunk_at,
    latency_seconds = :latency_seconds, cooldown_until = :cooldown_until, failures = :failures,
    open_until = :open_until, used_at = now(), requests_tat = coalesce(:requests, requests_tat),
    tokens_tat = coalesce(:tokens, tokens_tat)
WHERE model = :model
""")

_SET_LIMITS = text(f"""
UPDATE llm_models SET version = version + 1,
    {", ".join(f"{name} = :{name}" for name in _LIMITS)}
WHERE model = :model
""")

# Callers make up names of models, so those that hold no settings of people must not pile up.
_PRUNE = text("""
DELETE FROM llm_models WHERE model IN (
    SELECT model FROM llm_models m WHERE version = 0 AND used_at < now() - interval '1 day'
      AND NOT EXISTS (SELECT FROM llm_permits p WHERE p.model = m.model AND ended_at IS NULL)
    ORDER BY model FOR UPDATE SKIP LOCKED
)
""")


async def lock(connection: AsyncConnection, names: Collection[str]) -> dict[str, Model]:
    """Lock and read models, in the order of their names; a name without a row gets one."""
    values = {"names": sorted(set(names))}
    models = await _models(connection, _LOCK, values)
    if len(models) < len(values["names"]):
        await connection.execute(_ENSURE, {**values, "concurrency": INITIAL_LIMIT})
        models = await _models(connection, _LOCK, values)
    return models


async def read(connection: AsyncConnection, names: Collection[str]) -> dict[str, Model]:
    """Those of these models that have a row, without a lock."""
    return await _models(connection, _READ, {"names": sorted(set(names))})


async def read_status(connection: AsyncConnection, name: str) -> ModelStatus:
    """A model and its live permits; a name without a row reads as a model without limits that nobody has called."""
    row = (await connection.execute(_READ_STATUS, {"name": name})).mappings().first()
    if row is not None:
        return _model_status(row)
    return ModelStatus(model=Model(name=name), at=await now(connection), used_at=None, permits=0)


async def status_page(connection: AsyncConnection, *, after_name: str, limit: int) -> list[ModelStatus]:
    """Models with names above `after_name`, by name."""
    rows = (await connection.execute(_PAGE, {"after_name": after_name, "limit": limit})).mappings()
    return [_model_status(row) for row in rows]


async def write_meters(connection: AsyncConnection, name: str, meters: Mapping[Dimension, Meter]) -> None:
    """Store meters of a locked model; a dimension without a meter keeps its value."""
    tats = {dimension.value: meters[dimension].tat if dimension in meters else None for dimension in Dimension}
    await connection.execute(_WRITE_METERS, {"model": name, **tats})


async def write_state(connection: AsyncConnection, model: Model) -> None:
    """Store the state of a locked model: its concurrency, its breaker, and its meters where it has any."""
    concurrency, breaker = model.concurrency, model.breaker
    values = {
        "concurrency": concurrency.limit,
        **{name: getattr(concurrency, name) for name in _CONCURRENCY},
        "failures": breaker.failures,
        "open_until": breaker.open_until,
        **{dimension.value: model.tats.get(dimension) for dimension in Dimension},
    }
    await connection.execute(_WRITE_STATE, {"model": model.name, **values})


async def set_limits(connection: AsyncConnection, name: str, limits: ModelLimits) -> None:
    """Set the limits of a locked model, as a new version."""
    await connection.execute(_SET_LIMITS, {"model": name, **asdict(limits)})


async def prune(connection: AsyncConnection) -> int:
    """Delete models without limits that nobody has called for a day; return the number deleted."""
    return (await connection.execute(_PRUNE)).rowcount


async def _models(connection: AsyncConnection, statement: Any, values: Mapping[str, Any]) -> dict[str, Model]:
    return {row["model"]: _model(row) for row in (await connection.execute(statement, values)).mappings()}


def _model_status(row: Any) -> ModelStatus:
    return ModelStatus(model=_model(row), at=row["at"], used_at=row["used_at"], permits=row["permits"])


def _model(row: Any) -> Model:
    concurrency = {name: row[name] for name in _CONCURRENCY}
    return Model(
        name=row["model"],
        version=row["version"],
        limits=ModelLimits(**{field: row[field] for field in _LIMITS}),
        concurrency=ConcurrencyState(limit=row["concurrency"], **concurrency),
        breaker=Breaker(failures=row["failures"], open_until=row["open_until"]),
        tats={Dimension.REQUESTS: row["requests_tat"], Dimension.TOKENS: row["tokens_tat"]},
    )
