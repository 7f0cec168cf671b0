"""Language models: a row each, whose lock guards everything that its calls change."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify, pages
from app.db.database import now
from app.db.pages import Page
from app.llm.rules.callers import CallerState
from app.llm.rules.circuit_breaker import Breaker
from app.llm.rules.concurrency import INITIAL_LIMIT, ConcurrencyState
from app.llm.rules.key_reports import LONG_AGO, KeyReport
from app.llm.rules.models import Model, ModelLimits
from app.llm.rules.rate_limit import Dimension, Meter


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """A model and its live permits at a moment; `used_at` is None where nobody has called it."""

    model: Model
    is_listed: bool
    at: datetime
    used_at: datetime | None
    permits: int


_LIMITS = tuple(ModelLimits.__dataclass_fields__)
_CONCURRENCY = ("ramping", "shrunk_at", "latency_seconds", "cooldown_until")
_BREAKER = ("failures", "open_until", "cause", "until")
_KEY = ("key_expires_at", "key_reported_by", "key_reported_at")
_SERVICE = f"concurrency, {', '.join(_CONCURRENCY)}, {', '.join(_BREAKER)}, callers, worker_tats, {', '.join(_KEY)}"
# In the audit log, with the model and its version as the state before.
REMOVAL = "llm_model.remove"
# Of what a caller has reported, all other texts are times.
_WORDS = ("principal", "condition")
_COLUMNS = f"model, version, {', '.join(_LIMITS)}, {_SERVICE}, requests_tat, tokens_tat"

# What people have set, as a row of a service of which nothing has been reported.
SETTINGS = f"SELECT model, version, {', '.join(_LIMITS)}, {INITIAL_LIMIT} AS concurrency FROM llm_models"

# PostgreSQL locks rows after it has sorted them, so two transactions lock the models they share in one order.
_LOCK = text(f"SELECT {_COLUMNS} FROM llm_models WHERE model = ANY (CAST(:names AS text[])) ORDER BY model FOR UPDATE")

# In the order of names too: an insert waits for a rival that inserts the same name, as for a lock.
_ADD = text("""
INSERT INTO llm_models (model, concurrency)
SELECT name, :concurrency FROM unnest(CAST(:names AS text[])) AS listed (name) ORDER BY name ON CONFLICT DO NOTHING
""")

_REMOVE = text("DELETE FROM llm_models WHERE model = :model")

_NAMES = text("SELECT model FROM llm_models ORDER BY model LIMIT :limit")

_READ = text(f"SELECT {_COLUMNS} FROM llm_models WHERE model = ANY (CAST(:names AS text[]))")

_STATUS = f"""
SELECT {_COLUMNS}, greatest(used_at, live.since) AS used_at, coalesce(live.permits, 0) AS permits, now() AS at
FROM llm_models LEFT JOIN (
    SELECT model, count(*) AS permits, max(granted_at) AS since
    FROM llm_permits WHERE ended_at IS NULL AND expires_at > now() GROUP BY model
) live USING (model)
"""

_READ_STATUS = text(f"{_STATUS} WHERE model = :name")

_PAGE = f"{_STATUS} WHERE model > :after_name ORDER BY model"

_TROUBLED = text(f"""
SELECT {_COLUMNS}, clock_timestamp() AS at FROM llm_models
WHERE open_until IS NOT NULL OR cooldown_until > now() OR callers <> '{{}}' OR key_expires_at IS NOT NULL ORDER BY model
""")

_WRITE_METERS = text("""
UPDATE llm_models SET used_at = now(), requests_tat = coalesce(:requests, requests_tat),
    tokens_tat = coalesce(:tokens, tokens_tat), worker_tats = CAST(:worker_tats AS jsonb)
WHERE model = :model
""")

_WRITE_STATE = text(f"""
UPDATE llm_models SET concurrency = :concurrency, ramping = :ramping, shrunk_at = :shrunk_at,
    latency_seconds = :latency_seconds, cooldown_until = :cooldown_until, failures = :failures,
    open_until = :open_until, cause = :cause, until = :until, {", ".join(f"{name} = :{name}" for name in _KEY)},
    callers = CAST(:callers AS jsonb), worker_tats = CAST(:worker_tats AS jsonb),
    used_at = now(), requests_tat = coalesce(:requests, requests_tat),
    tokens_tat = coalesce(:tokens, tokens_tat)
WHERE model = :model
""")

# Above all that a removed model of this name has had, which the audit log keeps: an ETag stands for one version.
_SET_LIMITS = text(f"""
UPDATE llm_models SET version = 1 + greatest(version, (
        SELECT max((before ->> 'version')::bigint) FROM audit
        WHERE action = '{REMOVAL}' AND before ->> 'model' = :model)),
    {", ".join(f"{name} = :{name}" for name in _LIMITS)}
WHERE model = :model RETURNING version
""")

_RESET = text(f"""
UPDATE llm_models SET concurrency = :concurrency, ramping = true, shrunk_at = NULL, latency_seconds = NULL,
    cooldown_until = NULL, failures = 0, open_until = NULL, cause = NULL, until = NULL,
    {", ".join(f"{name} = NULL" for name in _KEY)}, callers = '{{}}', requests_tat = NULL, tokens_tat = NULL,
    worker_tats = '{{}}'
WHERE model = :model
""")


async def add(connection: AsyncConnection, names: Collection[str]) -> int:
    """List models, so that permits are granted for them; return how many were not listed before."""
    values = {"names": sorted(set(names)), "concurrency": INITIAL_LIMIT}
    return (await connection.execute(_ADD, values)).rowcount


async def remove(connection: AsyncConnection, name: str) -> None:
    """Take a locked model from the list, with its limits."""
    await connection.execute(_REMOVE, {"model": name})


async def names(connection: AsyncConnection, limit: int = 50) -> list[str]:
    """The first names of listed models."""
    return list((await connection.execute(_NAMES, {"limit": limit})).scalars())


async def lock(connection: AsyncConnection, names: Collection[str]) -> dict[str, Model]:
    """Lock and read those of these models that are listed, in the order of their names."""
    return await _models(connection, _LOCK, {"names": sorted(set(names))})


async def read(connection: AsyncConnection, names: Collection[str]) -> dict[str, Model]:
    """Those of these models that have a row, without a lock."""
    return await _models(connection, _READ, {"names": sorted(set(names))})


async def read_status(connection: AsyncConnection, name: str) -> ModelStatus:
    """A model and its live permits; a name without a row reads as a model without limits that nobody has called."""
    row = (await connection.execute(_READ_STATUS, {"name": name})).mappings().first()
    if row is not None:
        return _model_status(row)
    return ModelStatus(model=Model(name=name), is_listed=False, at=await now(connection), used_at=None, permits=0)


async def read_troubled(connection: AsyncConnection) -> list[tuple[Model, datetime]]:
    """Models of whose services somebody has reported anything, or whose keys are known to expire, by name."""
    rows = (await connection.execute(_TROUBLED)).mappings()
    return [(_model(row), row["at"]) for row in rows]


async def status_page(connection: AsyncConnection, *, after_name: str, limit: int) -> Page[ModelStatus]:
    """Models with names above `after_name`, by name."""
    return await pages.read(connection, _PAGE, {"after_name": after_name}, limit, _model_status)


async def write_meters(
    connection: AsyncConnection, name: str, meters: Mapping[Dimension, Meter], worker_tats: Mapping[str, datetime]
) -> None:
    """Store meters of a locked model, also of single workers; a dimension without a meter keeps its value."""
    tats = {dimension.value: meters[dimension].tat if dimension in meters else None for dimension in Dimension}
    await connection.execute(_WRITE_METERS, {"model": name, "worker_tats": _tats_text(worker_tats), **tats})


async def write_state(connection: AsyncConnection, model: Model) -> None:
    """Store the state of a locked model: its concurrency, its breaker, and its meters where it has any."""
    concurrency, breaker = model.concurrency, model.breaker
    values = {
        "callers": json.dumps({name: _caller_fields(caller) for name, caller in model.callers.items()}),
        "worker_tats": _tats_text(model.worker_tats),
        "concurrency": concurrency.limit,
        **{name: getattr(concurrency, name) for name in _CONCURRENCY},
        **{name: getattr(breaker, name) for name in _BREAKER},
        **_key_columns(model.key_report),
        **{dimension.value: model.tats.get(dimension) for dimension in Dimension},
    }
    await connection.execute(_WRITE_STATE, {"model": model.name, **values})


async def set_limits(connection: AsyncConnection, name: str, limits: ModelLimits) -> int:
    """Set the limits of a locked model, as a new version, which is returned."""
    version: int = (await connection.execute(_SET_LIMITS, {"model": name, **asdict(limits)})).scalar_one()
    notify.note(connection, notify.STATUS)
    return version


async def reset(connection: AsyncConnection, name: str) -> None:
    """Forget all that was reported of a locked model's service, and what its meters were charged."""
    await connection.execute(_RESET, {"model": name, "concurrency": INITIAL_LIMIT})
    notify.note(connection, notify.STATUS)


async def _models(connection: AsyncConnection, statement: Any, values: Mapping[str, Any]) -> dict[str, Model]:
    return {row["model"]: _model(row) for row in (await connection.execute(statement, values)).mappings()}


def _model_status(row: Any) -> ModelStatus:
    values = {"at": row["at"], "used_at": row["used_at"], "permits": row["permits"]}
    return ModelStatus(model=_model(row), is_listed=True, **values)


def _model(row: Any) -> Model:
    concurrency = {name: row[name] for name in _CONCURRENCY}
    return Model(
        name=row["model"],
        version=row["version"],
        limits=ModelLimits(**{field: row[field] for field in _LIMITS}),
        concurrency=ConcurrencyState(limit=row["concurrency"], **concurrency),
        breaker=Breaker(**{name: row[name] for name in _BREAKER}),
        key_report=_key_report(row),
        callers={name: _caller(fields) for name, fields in row["callers"].items()},
        worker_tats={name: datetime.fromisoformat(tat) for name, tat in row["worker_tats"].items()},
        tats={Dimension.REQUESTS: row["requests_tat"], Dimension.TOKENS: row["tokens_tat"]},
    )


def _key_columns(report: KeyReport | None) -> dict[str, Any]:
    values = (None, None, None) if report is None else (report.expires_at, report.caller, report.reported_at)
    return dict(zip(_KEY, values, strict=True))


def _key_report(row: Any) -> KeyReport | None:
    if row["key_expires_at"] is None:
        return None
    # The former version does not say whose it is.
    caller, reported_at = row["key_reported_by"] or "", row["key_reported_at"] or LONG_AGO
    return KeyReport(expires_at=row["key_expires_at"], caller=caller, reported_at=reported_at)


def _tats_text(tats: Mapping[str, datetime]) -> str:
    return json.dumps({name: tat.isoformat() for name, tat in tats.items()})


def _caller_fields(caller: CallerState) -> dict[str, Any]:
    """The state as JSON, without what is as in a new one."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(caller).items()
        if value
    }


def _caller(fields: Mapping[str, Any]) -> CallerState:
    values: dict[str, Any] = {
        name: datetime.fromisoformat(value) if isinstance(value, str) and name not in _WORDS else value
        for name, value in fields.items()
    }
    return CallerState(**values)
