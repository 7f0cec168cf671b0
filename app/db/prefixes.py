"""Ids by their first digits: a range on the index of the ids, of which a bounded number of rows is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_DIGITS = 32
_MAX_IDS = 10
# However many have the prefix that the caller may not see.
_MAX_ROWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Ids that begin with a prefix, in order; `more`: there are, or may be, others."""

    ids: Sequence[UUID]
    more: bool


async def matches(
    connection: AsyncConnection, prefix: str, tables: Sequence[str], *, condition: str = "true", **values: Any
) -> Matches:
    """The first ids in these tables that begin with these hexadecimal digits, of rows for which the condition holds.

    The condition may name the goal of a row, where every table has one.
    """
    columns = "id" if condition == "true" else "id, goal_id"
    near = " UNION ALL ".join(
        f"(SELECT {columns} FROM {table} WHERE id BETWEEN :low AND :high ORDER BY id LIMIT {_MAX_ROWS})"
        for table in tables
    )
    statement = text(f"""
        WITH near AS MATERIALIZED ({near})
        SELECT ARRAY(SELECT id FROM near WHERE {condition} ORDER BY id LIMIT {_MAX_IDS + 1}) AS ids,
               (SELECT count(*) FROM near) >= {_MAX_ROWS} AS is_full
    """)
    bounds = {"low": UUID(prefix.ljust(_DIGITS, "0")), "high": UUID(prefix.ljust(_DIGITS, "f"))}
    row = (await connection.execute(statement, bounds | values)).one()
    return Matches(ids=row.ids[:_MAX_IDS], more=row.is_full or len(row.ids) > _MAX_IDS)
