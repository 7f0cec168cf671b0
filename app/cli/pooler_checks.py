"""The check of what lies between us and the database: whether LISTEN works, and what a connection pooler lacks."""

import asyncio
from collections.abc import Iterator

import asyncpg

from app.cli.checks import Check, Status
from app.db import pooler
from app.db.database import Database
from app.terminal.failures import first_line

_NAME = "connections"


def pooler_checks(url: str, direct_url: str | None) -> Iterator[Check]:
    """Yield a check for each thing that a pooler takes away, or one that says that all is there."""
    try:
        remedies = asyncio.run(_shortcomings(url, direct_url))
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        reason = first_line(error)
        # The database itself answers, or there would be no check of this.
        detail = f"CONVENER_DATABASE_URL leads nowhere: {reason}" if direct_url else f"no others can be made: {reason}"
        yield Check(name=_NAME, status=Status.FAILED, detail=detail, remedy="start the connection pooler, and repeat")
        return
    for sentence, remedy in remedies.items():
        yield Check(name=_NAME, status=Status.FAILED, detail=sentence, remedy=remedy)
    if not remedies:
        way = "past the connection pooler, which keeps statements and settings" if direct_url else "at once"
        yield Check(name=_NAME, status=Status.OK, detail=f"announcements arrive {way}")


async def _shortcomings(url: str, direct_url: str | None) -> dict[str, str]:
    database = Database(url, direct_url=direct_url)
    try:
        return await pooler.shortcomings(database)
    finally:
        await database.close()
