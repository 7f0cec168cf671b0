"""Sessions by which people use the pages of the service, opened with a key or a link; the audit log has both ends."""

import secrets
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.keys import digest, read_session, write_session
from app.admin.service import audit
from app.admin.store import sessions
from app.kernel.errors import Unauthenticated

# A working day. A link waits for the person before whom it was printed.
SESSION_SECONDS = 12 * 3600.0
LINK_SECONDS = 15 * 60.0
_MAX_SESSIONS = 50


async def open_session(connection: AsyncConnection, key_id: str, shown_secret: str) -> str:
    """Open a session that acts for a key, and ends with this secret of it; return its text, which is stored nowhere."""
    return await _open(connection, key_id, shown_hash=digest(shown_secret))


async def create_link(connection: AsyncConnection, key_id: str) -> str:
    """Make the text of a link that opens one session of a key, once."""
    return await _create(connection, key_id, is_link=True, seconds=LINK_SECONDS)


async def open_by_link(connection: AsyncConnection, link: str) -> str:
    """Open the session that a link stands for. Raises Unauthenticated."""
    parts = read_session(link)
    taken = await sessions.take_link(connection, parts[0], digest(parts[1])) if parts else None
    if taken is None:
        raise Unauthenticated("the link has been used, or is too old")
    key_id, created_at = taken
    return await _open(connection, key_id, created_at=created_at)


async def _open(
    connection: AsyncConnection, key_id: str, *, shown_hash: bytes | None = None, created_at: datetime | None = None
) -> str:
    session = await _create(
        connection, key_id, is_link=False, seconds=SESSION_SECONDS, shown_hash=shown_hash, created_at=created_at
    )
    audit.record(connection, "session.open", by=key_id)
    return session


async def end_session(connection: AsyncConnection, session: str) -> None:
    """End a session; one that has ended stays so."""
    parts = read_session(session)
    key_id = await sessions.end(connection, parts[0]) if parts else None
    if key_id is not None:
        audit.record(connection, "session.end", by=key_id)


async def _create(
    connection: AsyncConnection,
    key_id: str,
    *,
    is_link: bool,
    seconds: float,
    shown_hash: bytes | None = None,
    created_at: datetime | None = None,
) -> str:
    await sessions.tidy(connection, key_id, kept=_MAX_SESSIONS - 1)
    session_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    await sessions.insert(
        connection,
        session_id,
        key_id,
        digest(secret),
        is_link=is_link,
        seconds=seconds,
        shown_hash=shown_hash,
        created_at=created_at,
    )
    return write_session(session_id, secret)
