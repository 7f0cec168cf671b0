"""Backups of the whole database: made, checked, and restored into an empty one, maybe on another server."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.db import schema
from app.db.database import Database, now
from app.kernel.errors import Refused
from app.memory.service import archives
from app.memory.service.archives import Manifest
from app.memory.service.dumps import Dumps
from app.memory.store import backups
from app.postgres.errors import DumpFailed

_MOVED = "restored from a backup: nobody holds this lease any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is known of a dump in a file; `violations` say why it should not be trusted."""

    manifest: Manifest | None
    revision: str | None
    entries: int
    violations: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore has done; `before` is the revision of the dump, `revision` that of the database now."""

    before: str
    revision: str | None
    released: int
    transaction_offset: int
    checked: bool


async def backup(database: Database, dumps: Dumps, file: Path, say: Callable[[str], object]) -> Manifest:
    """Write a backup into a file that does not exist yet, and its manifest beside it. Work goes on meanwhile.

    Raises Refused, DumpFailed.
    """
    revision = await schema.revision(database.engine)
    if revision is None:
        raise Refused("there is nothing to back up: the database holds no schema of ours")
    async with database.transaction() as connection:
        moment, server = (await now(connection)).isoformat(), await backups.server_version(connection)
    try:
        if archives.manifest_of(file).exists():
            raise FileExistsError(f"{archives.manifest_of(file)} exists already")
        with archives.appearing(file) as draft:
            await asyncio.to_thread(dumps.dump, database.url, draft, lambda size: say(f"backing up: {size:,} bytes"))
            size, digest = draft.stat().st_size, await asyncio.to_thread(archives.checksum, draft)
        manifest = Manifest(
            file=file.name, taken_at=moment, revision=revision, server=server, size_bytes=size, sha256=digest
        )
        archives.write_manifest(manifest, file)
    except FileExistsError as error:
        raise Refused(str(error), "name another file; a backup never replaces one") from None
    except OSError as error:
        raise Refused(f"cannot write {file}: {error.strerror or error}") from error
    return manifest


def inspect(dumps: Dumps, file: Path) -> Inspection:
    """Check the checksum of a backup, and that it can be read. Raises Refused where there is no such file."""
    if not file.is_file():
        raise Refused(f"there is no file {file}")
    try:
        manifest = archives.read_manifest(file)
        wrong = _differences(file, manifest) if manifest else []
        if wrong:
            return Inspection(manifest=manifest, revision=None, entries=0, violations=wrong)
        entries, revision = dumps.contents(file), dumps.revision(file)
    except (ValueError, OSError, DumpFailed) as error:
        return Inspection(manifest=None, revision=None, entries=0, violations=[str(error)])
    lacking = [] if revision else ["it holds no database of ours"]
    count = sum(not line.startswith(";") for line in entries)
    return Inspection(manifest=manifest, revision=revision, entries=count, violations=lacking)


async def restore(database: Database, dumps: Dumps, file: Path, say: Callable[[str], object]) -> Restored:
    """Restore a backup into an empty database, and make it fit for work: see `_settle`.

    The revision is set last, in the transaction that does the rest, and no service works on a database without one:
    whoever is interrupted starts anew with another empty database. Nothing else of this process may have a connection
    to it. Raises Refused, DumpFailed.
    """
    say("checking the backup")
    found = await asyncio.to_thread(inspect, dumps, file)
    if found.violations or found.revision is None:
        raise Refused(f"{file} cannot be restored: " + "; ".join(found.violations))
    if not schema.knows(found.revision):
        raise Refused(
            f"{file} is of revision {found.revision}, which this version does not know",
            "restore it with the version that made it, or a newer one",
        )
    async with database.transaction() as connection:
        if not await backups.is_empty(connection):
            raise Refused("the database is not empty", "make a new one: CREATE DATABASE convener")
    say("restoring")
    await asyncio.to_thread(dumps.restore, database.url, file, lambda: None)
    say("counting on, and releasing leases")
    return await _settle(database, found.revision, checked=found.manifest is not None)


async def _settle(database: Database, revision: str, *, checked: bool) -> Restored:
    """Transactions are counted on from above all that is stored, so that the cursors of readers stay good; leased
    tasks go back to the queue, because no worker holds anything real any more."""
    async with database.transaction() as connection:
        await backups.take_your_time(connection)
        await schema.adopt(connection, revision)
        offset = await backups.count_on(connection)
        released = await backups.release_leases(connection, _MOVED)
        await backups.analyse(connection)
    return Restored(
        before=revision, revision=schema.head(), released=released, transaction_offset=offset, checked=checked
    )


def _differences(file: Path, manifest: Manifest) -> list[str]:
    if file.stat().st_size != manifest.size_bytes:
        return [f"it has {file.stat().st_size:,} bytes; when it was made, it had {manifest.size_bytes:,}"]
    if archives.checksum(file) != manifest.sha256:
        return ["its SHA-256 is not the one it had when it was made"]
    return []
