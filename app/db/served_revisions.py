"""Versions of the program that a schema serves besides its own: those of former releases, which may still run."""

from sqlalchemy import Column, Connection, Table, Text, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.columns import metadata

served_revisions = Table(
    "served_revisions",
    metadata,
    Column("revision", Text, primary_key=True, comment="the schema that such a version was made for"),
    comment="versions of the program that may work with this schema",
)

_IS_THERE = text("SELECT to_regclass('served_revisions') IS NOT NULL")
_WITHDRAW = text("DELETE FROM served_revisions WHERE revision <> ALL (:served)")
_GRANT = text("INSERT INTO served_revisions SELECT unnest(CAST(:served AS text[])) ON CONFLICT DO NOTHING")
_INCLUDES = text("SELECT EXISTS (SELECT FROM served_revisions WHERE revision = :revision)")


async def includes(connection: AsyncConnection, revision: str) -> bool:
    """Return whether the schema serves programs that were made for this revision."""
    if not (await connection.execute(_IS_THERE)).scalar_one():
        return False
    return bool((await connection.execute(_INCLUDES, {"revision": revision})).scalar_one())


def withdraw(connection: Connection, served: list[str]) -> None:
    """Serve none but these of those that have been served, in the transaction of the caller."""
    if connection.execute(_IS_THERE).scalar_one():
        connection.execute(_WITHDRAW, {"served": served})


def grant(connection: Connection, served: list[str]) -> None:
    """Serve these and no others, in the transaction of the caller."""
    withdraw(connection, served)
    if connection.execute(_IS_THERE).scalar_one():
        connection.execute(_GRANT, {"served": served})
