"""Iterations of research goals: rows with the report, the inputs of the decision, and the decision; append-only."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import pages
from app.db.pages import Page
from app.goals.rules.stopping import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class NewIteration:
    """An iteration and its decision, to store; `report`, `inputs` and `decision` are JSON text."""

    goal_id: str
    number: int
    claimed_seconds: float | None
    tasks: int | None
    request_hash: bytes
    report: str
    inputs: str
    decision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration(NewIteration):
    """A stored iteration."""

    reported_at: datetime


_FIELDS = tuple(NewIteration.__dataclass_fields__)
_JSON_COLUMNS = ("report", "inputs", "decision")
_COLUMNS = ", ".join(
    [*(f"CAST({name} AS text) AS {name}" if name in _JSON_COLUMNS else name for name in _FIELDS), "reported_at"]
)
# OFFSET 0 keeps it one look for each goal that lives: joined, the iterations of all goals would be read.
OF_LIVE_GOALS = """
SELECT i.* FROM goals live CROSS JOIN LATERAL (
    SELECT * FROM goal_iterations WHERE goal_iterations.goal_id = live.id OFFSET 0
) i WHERE live.state IN ('running', 'paused')"""
# The inputs of a decision hold the whole history before it.
_BRIEF = _COLUMNS.replace("CAST(inputs AS text)", "''")
_VALUES = ", ".join(f"CAST(:{name} AS json)" if name in _JSON_COLUMNS else f":{name}" for name in _FIELDS)

# Cast to json rather than jsonb, which would not preserve the text of the numbers that a replay is compared with.
_ADD = text(f"INSERT INTO goal_iterations ({', '.join(_FIELDS)}) VALUES ({_VALUES})")

_READ_UP_TO = text(f"""
SELECT {_COLUMNS} FROM goal_iterations WHERE goal_id = :goal_id AND number <= :number ORDER BY number
""")

_READ = text(f"SELECT {_COLUMNS} FROM goal_iterations WHERE goal_id = :goal_id AND number = :number")

_UNIT = text("""
SELECT inputs #>> '{policy, stopping, unit}' FROM goal_iterations WHERE goal_id = :goal_id AND number = :number
""")

_PAGE = f"SELECT {_BRIEF} FROM goal_iterations WHERE goal_id = :goal_id AND number > :after ORDER BY number"


async def add(connection: AsyncConnection, new: NewIteration) -> None:
    """Insert an iteration; the caller holds the lock of its goal."""
    await connection.execute(_ADD, {name: getattr(new, name) for name in _FIELDS})


async def read(connection: AsyncConnection, goal_id: str, number: int) -> Iteration | None:
    """Read one iteration; None when it was never reported."""
    row = (await connection.execute(_READ, {"goal_id": goal_id, "number": number})).mappings().first()
    return _iteration(row) if row else None


async def read_unit(connection: AsyncConnection, goal_id: str, number: int) -> Unit | None:
    """Read the unit by which an iteration was judged; None when it was never reported."""
    name = (await connection.execute(_UNIT, {"goal_id": goal_id, "number": number})).scalar_one_or_none()
    return Unit(name) if name else None


async def read_up_to(connection: AsyncConnection, goal_id: str, number: int) -> Sequence[Iteration]:
    """Read the iterations of a goal up to and including `number`, in order."""
    rows = (await connection.execute(_READ_UP_TO, {"goal_id": goal_id, "number": number})).mappings()
    return [_iteration(row) for row in rows]


async def page(connection: AsyncConnection, goal_id: str, *, after_number: int, limit: int) -> Page[Iteration]:
    """Read up to `limit` iterations beyond `after_number`, in order and without inputs."""
    return await pages.read(connection, _PAGE, {"goal_id": goal_id, "after": after_number}, limit, _iteration)


def _iteration(row: Any) -> Iteration:
    return Iteration(**row)
