"""Mode and bounds that `convener up` and `demo` ask for, applied as a version of the configuration."""

from dataclasses import dataclass, replace

from app.admin.rules.config import ConfigAction, Document
from app.admin.service import config
from app.admin.service.config import ChangeRequest
from app.admin.store.config import Version
from app.db.database import Database
from app.kernel.modes import Mode
from app.llm.service import grant  # noqa: F401 - registers the lock that a change of the configuration takes first


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """A mode and bounds of the pool; None leaves a value as it is."""

    mode: Mode | None = None
    min_workers: int | None = None
    max_workers: int | None = None
    reason: str = "asked for when the machine was brought up"


async def apply(database: Database, initial: Mode, options: PoolOptions, by: str) -> Version:
    """Put options in force that differ; return the version in force afterwards. Raises ConfigRefused."""
    async with database.transaction() as connection:
        version = await config.current(connection, options.mode or initial)
        if options.mode is not None and options.mode is not version.mode:
            version = (await config.switch(connection, initial, _request(version, options, by), options.mode)).version
        # A version of its own after that of the mode, whose rules its bounds must obey.
        document = _with_bounds(version.document, options)
        if document == version.document:
            return version
        request = _request(version, options, by)
        return (await config.change(connection, initial, request, ConfigAction.PATCH, document)).version


def _request(version: Version, options: PoolOptions, by: str) -> ChangeRequest:
    return ChangeRequest(expected_version=version.version, by=by, reason=options.reason)


def _with_bounds(document: Document, options: PoolOptions) -> Document:
    pool = document.worker_pool
    min_workers = pool.min_workers if options.min_workers is None else options.min_workers
    max_workers = pool.max_workers if options.max_workers is None else options.max_workers
    return replace(document, worker_pool=replace(pool, min_workers=min_workers, max_workers=max_workers))
