"""Language models: a row each, whose lock guards all that changes with its calls."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import now
from app.llm.rules.circuit_breaker import Breaker
from app.llm.rules.concurrency import FIRST_LIMIT, Pressure
from app.llm.rules.models import Limits, Model
from app.llm.rules.rate_limit import Dimension, Meter

_LIMITS = (
    "requests_per_window, tokens_per_window, window_seconds, burst, token_burst, max_concurrency, fallback_models,"
    " input_price, output_price"
)
_STATE = "concurrency, ramping, shrunk_at, latency_seconds, cooldown_until, failures, open_until"
_COLUMNS = f"model, version, {_LIMITS}, {_STATE}, requests_tat, tokens_tat"

_LOCK = text(f"SELECT {_COLUMNS} FROM llm_models WHERE model = ANY (CAST(:names AS text[])) ORDER BY model FOR UPDATE")

_ENSURE = text("""
INSERT INTO llm_models (model, concurrency)
SELECT name, :concurrency FROM unnest(CAST(:names AS text[])) AS asked (name) ORDER BY name ON CONFLICT DO NOTHING
""")

_READ = text(f"SELECT {_COLUMNS} FROM llm_models WHERE model = ANY (CAST(:names AS text[]))")

_PORTRAIT = f"""
SELECT {_COLUMNS}, used_at, live.permits, now() AS at
FROM llm_models m CROSS JOIN LATERAL (
    SELECT count(*) AS permits FROM llm_permits p WHERE p.model = m.model AND ended_at IS NULL AND expires_at > now()
) live
"""

_ONE = text(f"{_PORTRAIT} WHERE model = :name")

_PAGE = text(f"{_PORTRAIT} WHERE model > :after ORDER BY model LIMIT :limit")

_CHARGE = text("""
UPDATE llm_models SET used_at = now(), requests_tat = coalesce(:requests, requests_tat),
    tokens_tat = coalesce(:tokens, tokens_tat)
WHERE model = :model
""")

_LEARN = text("""
UPDATE llm_models SET concurrency = :concurrency, ramping = :ramping, shrunk_at = :shrunk_at,
    latency_seconds = :latency_seconds, cooldown_until = :cooldown_until, failures = :failures,
    open_until = :open_until, used_at = now(), requests_tat = coalesce(:requests, requests_tat),
    tokens_tat = coalesce(:tokens, tokens_tat)
WHERE model = :model
""")

_SET = text(f"""
UPDATE llm_models SET version = version + 1,
    {", ".join(f"{name} = :{name}" for name in _LIMITS.split(", "))}
WHERE model = :model
""")

_PRUNE = text("""
DELETE FROM llm_models WHERE model IN (
    SELECT model FROM llm_models m WHERE version = 0 AND used_at < now() - interval '1 day'
      AND NOT EXISTS (SELECT FROM llm_permits p WHERE p.model = m.model AND ended_at IS NULL)
    ORDER BY model FOR UPDATE SKIP LOCKED
)
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Portrait:
    """A model as it is at a moment, with how many permits are live; `used_at` is None where nobody has heard of it."""

    model: Model
    at: datetime
    used_at: datetime | None
    permits: int


async def lock(connection: AsyncConnection, names: Collection[str]) -> dict[str, Model]:
    """Lock models, in the order of their names; those that nobody has heard of become known."""
    wanted = {"names": sorted(set(names))}
    found = await _models(connection, _LOCK, wanted)
    if len(found) < len(wanted["names"]):
        await connection.execute(_ENSURE, {**wanted, "concurrency": FIRST_LIMIT})
        found = await _models(connection, _LOCK, wanted)
    return found


async def read(connection: AsyncConnection, names: Collection[str]) -> dict[str, Model]:
    """Those of these models that are known, as they stand."""
    return await _models(connection, _READ, {"names": sorted(set(names))})


async def portrait(connection: AsyncConnection, name: str) -> Portrait:
    """A model as it is; one that nobody has heard of is like any that nobody has set limits for."""
    row = (await connection.execute(_ONE, {"name": name})).mappings().first()
    if row is not None:
        return _portrait(row)
    return Portrait(model=Model(name=name), at=await now(connection), used_at=None, permits=0)


async def page(connection: AsyncConnection, *, after: str, limit: int) -> list[Portrait]:
    """Models by name."""
    return [_portrait(row) for row in (await connection.execute(_PAGE, {"after": after, "limit": limit})).mappings()]


async def charge(connection: AsyncConnection, name: str, meters: Mapping[Dimension, Meter]) -> None:
    """Write down how the meters of a locked model stand; those of other dimensions stay as they are."""
    tats = {dimension.value: meters[dimension].tat if dimension in meters else None for dimension in Dimension}
    await connection.execute(_CHARGE, {"model": name, **tats})


async def learn(connection: AsyncConnection, model: Model) -> None:
    """Write down what a locked model's service has shown, and how its meters stand where it has any."""
    pressure, breaker = model.pressure, model.breaker
    values = {
        "concurrency": pressure.limit,
        **{name: getattr(pressure, name) for name in ("ramping", "shrunk_at", "latency_seconds", "cooldown_until")},
        "failures": breaker.failures,
        "open_until": breaker.open_until,
        **{dimension.value: model.tats.get(dimension) for dimension in Dimension},
    }
    await connection.execute(_LEARN, {"model": model.name, **values})


async def set_limits(connection: AsyncConnection, name: str, limits: Limits) -> None:
    """Give a locked model its limits, which makes a new version."""
    values = {field: getattr(limits, field) for field in Limits.__dataclass_fields__}
    values["fallback_models"] = list(limits.fallback_models)
    await connection.execute(_SET, {"model": name, **values})


async def prune(connection: AsyncConnection) -> int:
    """Forget models that nobody has set limits for and nobody has called for a day; returns how many."""
    return (await connection.execute(_PRUNE)).rowcount


async def _models(connection: AsyncConnection, statement: Any, values: Mapping[str, Any]) -> dict[str, Model]:
    return {row["model"]: _model(row) for row in (await connection.execute(statement, values)).mappings()}


def _portrait(row: Any) -> Portrait:
    return Portrait(model=_model(row), at=row["at"], used_at=row["used_at"], permits=row["permits"])


def _model(row: Any) -> Model:
    pressure = {name: row[name] for name in ("ramping", "shrunk_at", "latency_seconds", "cooldown_until")}
    return Model(
        name=row["model"],
        version=row["version"],
        limits=Limits(**{field: row[field] for field in Limits.__dataclass_fields__}),
        pressure=Pressure(limit=row["concurrency"], **pressure),
        breaker=Breaker(failures=row["failures"], open_until=row["open_until"]),
        tats={Dimension.REQUESTS: row["requests_tat"], Dimension.TOKENS: row["tokens_tat"]},
    )
