"""What the person who brings a machine up wants of its pool, written down as a version of the configuration."""

from dataclasses import dataclass, replace

from app.admin.rules.config import ConfigAction, Document
from app.admin.service import config
from app.admin.service.config import ChangeRequest
from app.admin.store.config import Version
from app.db.database import Database
from app.kernel.modes import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A mode and bounds of the pool; None leaves what is there."""

    mode: Mode | None = None
    min_workers: int | None = None
    max_workers: int | None = None
    reason: str = "asked for when the machine was brought up"


async def grant(database: Database, initial: Mode, wish: Wish, by: str) -> Version:
    """Put the wish in force where it differs; returns what is in force then. Raises ConfigRefused."""
    async with database.transaction() as connection:
        found = await config.current(connection, wish.mode or initial)
        if wish.mode is not None and wish.mode is not found.mode:
            found = (await config.switch(connection, initial, _order(found, wish, by), wish.mode)).version
        document = _bounded(found.document, wish)
        if document == found.document:
            return found
        order = _order(found, wish, by)
        return (await config.change(connection, initial, order, ConfigAction.PATCH, document)).version


def _order(found: Version, wish: Wish, by: str) -> ChangeRequest:
    return ChangeRequest(expected_version=found.version, by=by, reason=wish.reason)


def _bounded(document: Document, wish: Wish) -> Document:
    pool = document.worker_pool
    least = pool.min_workers if wish.min_workers is None else wish.min_workers
    most = pool.max_workers if wish.max_workers is None else wish.max_workers
    return replace(document, worker_pool=replace(pool, min_workers=least, max_workers=most))
