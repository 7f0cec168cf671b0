"""Identifiers of the class that the driver of the database has, which are equal to Python's own."""

from uuid import UUID

from asyncpg.pgproto import pgproto

from app.db.uuids import time_ordered_bytes


def parse_uuid(text: str) -> UUID:
    """The UUID in a text of any of its forms. Raises ValueError."""
    try:
        # That of the driver, which is equal to Python's own and made in a twentieth of the time.
        identifier: UUID = pgproto.UUID(text)
    except ValueError:
        identifier = UUID(text)
    return identifier


def new_uuid() -> UUID:
    """A UUID version 7, made, hashed and written in a tenth of the time that one of Python's own takes."""
    identifier: UUID = pgproto.UUID(time_ordered_bytes())
    return identifier
