"""Pages of lists: no more rows than were asked for, and no more bytes than PAGE_BYTES unless the first row has more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.turns import turn

Item = TypeVar("Item")
Key = TypeVar("Key")

# Of JSON in UTF-8: what is made of it in the loop, where all others wait for it, takes some tens of milliseconds.
PAGE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Item]):
    """Items in their order, and whether others follow."""

    items: Sequence[Item]
    has_more: bool

    def next(self, key: Callable[[Item], Key]) -> Key | None:
        """The key of the last item, to go on after it; None at the end of the list."""
        return key(self.items[-1]) if self.has_more else None


async def read(
    connection: AsyncConnection,
    query: str,
    values: Mapping[str, Any],
    limit: int,
    make_item: Callable[[dict[str, Any]], Item],
) -> Page[Item]:
    """Up to `limit` rows of an ordered query without a limit, as far as PAGE_BYTES hold them, made into items."""
    bounds = {"page_limit": limit + 1, "page_bytes": PAGE_BYTES}
    rows = (await connection.execute(_statement(query), {**values, **bounds})).mappings().all()
    await turn(connection)
    items = [make_item({name: row[name] for name in row if not name.startswith("page_")}) for row in rows[:limit]]
    return Page(items=items, has_more=bool(rows) and rows[0]["page_rows"] > len(items))


def within_bytes(query: str) -> str:
    """The rows of an ordered query with a limit that `:page_bytes` hold, the first one anyway.

    `page_rows` in each is their number without that bound.
    """
    # As JSON, which is how they are shown: the stored sizes are compressed, by up to a hundred times.
    return f"""
SELECT * FROM (
    SELECT *, count(*) OVER () AS page_rows, row_number() OVER () AS page_place,
           sum(octet_length(CAST(row_to_json(listed) AS text))) OVER (ROWS UNBOUNDED PRECEDING) AS page_size
    FROM ({query}) listed
) measured
WHERE page_size <= :page_bytes OR page_place = 1
"""


@cache
def _statement(query: str) -> TextClause:
    return text(within_bytes(f"{query} LIMIT :page_limit"))
