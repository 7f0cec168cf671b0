"""Backups of the whole database: written to a file, inspected, and restored into an empty database on any server."""

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.db import schema
from app.db.database import Database, disable_time_limits, now
from app.kernel.errors import DatabaseUnavailable, Locked, Refused
from app.kernel.refused_writes import MEANINGS, WriteTrouble
from app.memory.service import archives
from app.memory.service.archives import Manifest
from app.memory.service.dumps import Dumps, Target, table_schema
from app.memory.store import backups
from app.postgres.binaries import major_version
from app.postgres.errors import DumpFailed, ProgramSilent

log = logging.getLogger(__name__)
_ATTEMPTS, _PAUSE_SECONDS = 30, 0.05
_RELEASE_REASON = "restored from a backup: nobody holds this lease any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Result of inspecting the file of a dump: its major version of PostgreSQL, and reasons not to trust it.

    `schema`: the one that our tables are in.
    """

    manifest: Manifest | None
    revision: str | None
    schema: str | None = None
    server: int | None = None
    entries: int
    violations: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredBackup:
    """Result of a restore: revisions of the dump and of the database now, and the number of leases released."""

    dump_revision: str
    revision: str | None
    released_leases: int
    transaction_offset: int
    is_verified: bool


async def backup(database: Database, dumps: Dumps, file: Path, report: Callable[[str], object], by: str) -> Manifest:
    """Write a backup into a new file, and its manifest beside it, while the service works on.

    It is recorded in the audit log where that can be written: not on a standby, nor by a role that may only read, nor
    in a schema of another version. Raises Refused, DumpFailed.
    """
    revision = await schema.revision(database.engine)
    if revision is None:
        raise Refused("there is nothing to back up: the database holds no schema of ours")
    async with database.transaction() as connection:
        moment, server = (await now(connection)).isoformat(), await backups.server_version(connection)
    _check_programs(dumps, server)
    try:
        # Both get their names at the end, so that a full disk leaves no dump without its manifest.
        with archives.new_file(archives.manifest_path(file)) as manifest_draft, archives.new_file(file) as draft:
            await dumps.dump(database.url, draft, lambda size: report(f"backing up: {size:,} bytes"))
            size, digest = draft.stat().st_size, await asyncio.to_thread(archives.checksum, draft)
            manifest = Manifest(
                file=file.name, taken_at=moment, revision=revision, server=server, size_bytes=size, sha256=digest
            )
            archives.write_manifest(manifest, manifest_draft)
    except FileExistsError as error:
        raise Refused(str(error), "name another file; a backup never replaces one") from None
    except OSError as error:
        raise Refused(f"cannot write {file}: {error.strerror or error}", _room_hint(error)) from error
    except DumpFailed as error:
        raise Refused(str(error), _room_hint(error)) from error
    await _record_backup(database, manifest, by)
    return manifest


def _room_hint(error: Exception) -> str | None:
    """The remedy where the file has no room."""
    is_full = os.strerror(errno.ENOSPC) in str(error)
    return "make room on that disk, or name a file on another; nothing of this backup is left" if is_full else None


async def _record_backup(database: Database, manifest: Manifest, by: str) -> None:
    try:
        async with database.transaction() as connection:
            if manifest.revision == schema.head() and await backups.is_log_writable(connection):
                copied = {"file": manifest.file, "size_bytes": manifest.size_bytes, "sha256": manifest.sha256}
                audit.record(connection, "db.backup", by=by, new_state=copied)
    except DatabaseUnavailable as error:
        # Its disk may be full, which is when a backup is wanted most.
        if error.reason is None:
            raise
        log.warning("the backup is complete, and not in the audit log: %s", MEANINGS[WriteTrouble(error.reason)])


def inspect(dumps: Dumps, file: Path) -> Inspection:
    """Check the checksum of a backup, and that it can be read. Raises Refused where there is no such file."""
    if not file.is_file():
        raise Refused(f"there is no file {file}")
    try:
        manifest = archives.read_manifest(file)
        violations = _manifest_violations(file, manifest) if manifest else []
        # A damaged file is not handed to pg_restore, which may well read it without complaint.
        if violations:
            return Inspection(manifest=manifest, revision=None, entries=0, violations=violations)
        entries, revision = dumps.contents(file), dumps.revision(file)
    except (ValueError, OSError, DumpFailed) as error:
        # Which the backup has no part in.
        if isinstance(error, ProgramSilent) or os.strerror(errno.ENOSPC) in str(error):
            hint = "make room for temporary files, or name a directory with more as TMPDIR"
            raise Refused(f"{file} cannot be checked: {error}", hint) from error
        return Inspection(manifest=None, revision=None, entries=0, violations=[str(error)])
    violations = [] if revision else ["it holds no database of ours"]
    count = sum(not line.startswith(";") for line in entries)
    server = server_of(entries)
    return Inspection(
        manifest=manifest,
        revision=revision,
        schema=table_schema(entries),
        server=server,
        entries=count,
        violations=violations,
    )


def server_of(entries: Sequence[str]) -> int | None:
    """The major version of the server that a dump is of, by its table of contents."""
    versions = [line.partition("database version:")[2] for line in entries if "Dumped from database version:" in line]
    return major_version(versions[0].strip()) if versions else None


def _check_programs(dumps: Dumps, server: str) -> None:
    """Raise Refused unless the programs are of the server's major version."""
    version = major_version(server)
    if dumps.binaries.version != version:
        raise Refused(
            f"the server is PostgreSQL {server}, and the programs in {dumps.binaries.directory} are of "
            f"{dumps.binaries.version}",
            f"install postgresql-client-{version}, or name the directory of its programs as CONVENER_POSTGRES_BIN",
        )


async def restore(
    database: Database, dumps: Dumps, file: Path, report: Callable[[str], object], by: str
) -> RestoredBackup:
    """Restore a backup into an empty database, and prepare it for work as `_finish_restore` says.

    The revision is set last, in the transaction of that preparation, and no service works on a database without one:
    after a crash before that, start again with another empty database. This process must have no other connection to
    it. Raises Refused, DumpFailed.
    """
    report("checking the backup")
    inspection = await asyncio.to_thread(inspect, dumps, file)
    if inspection.violations or inspection.revision is None:
        raise Refused(f"{file} cannot be restored: " + "; ".join(inspection.violations))
    if not schema.knows(inspection.revision):
        raise Refused(
            f"{file} is of revision {inspection.revision}, which this version does not know",
            "restore it with the version that made it, or a newer one",
        )
    async with database.transaction() as connection:
        if not await backups.is_empty(connection):
            revision = await connection.run_sync(schema.revision_of)
            holds = f"a schema at {revision}" if revision else "other tables, or what a restore that was cut off left"
            raise Refused(f"the database is not empty: it has {holds}", "make a new one: CREATE DATABASE convener")
        server = await backups.server_version(connection)
        target = Target(schemas=await backups.schemas(connection), extensions=await backups.extensions(connection))
    _check_programs(dumps, server)
    if inspection.server is not None and inspection.server > major_version(server):
        raise Refused(
            f"{file} is of PostgreSQL {inspection.server}, and this server is {server}",
            f"restore it into PostgreSQL {inspection.server} or newer",
        )
    report("restoring")
    await dumps.restore(database.url, file, target)
    report("counting on, and releasing leases")
    return await _finish_restore(database, inspection, file.name, by)


async def follow_promotion(connection: AsyncConnection) -> dict[str, int]:
    """Do what `advance` does where the server was promoted; note its timeline where none is noted yet.

    Raises an error of a lock that cannot be had.
    """
    timelines = await backups.read_timelines(connection)
    if timelines is None or timelines.noted == timelines.present:
        return {}
    if timelines.noted is None:
        await backups.note_timeline(connection)
        return {}
    return {"transaction_offset": await _advance(connection, "convener loops")}


async def advance(database: Database, by: str) -> int:
    """Number what comes above all that a former primary may have given out; return the new offset.

    Readers with cursors of what a promoted standby had not received miss nothing that comes, beside a service at work.
    Raises Refused.
    """
    if await schema.revision(database.engine) != schema.head():
        raise Refused("the schema is not the one of this version", "`convener db status` tells of both")
    for attempt in range(_ATTEMPTS):
        try:
            async with database.transaction() as connection:
                return await _advance(connection, by)
        except Locked:
            # Others have the tables in another order, so neither waits for the other until one is given up.
            await asyncio.sleep(_PAUSE_SECONDS * (attempt + 1))
    raise Refused("others write events all the time", "`convener doctor` names whoever keeps locks; then repeat this")


async def _advance(connection: AsyncConnection, by: str) -> int:
    await backups.lock_out_numbering(connection)
    offset = await backups.advance_transactions(connection)
    audit.record(connection, "db.advance", by=by, new_state={"transaction_offset": offset})
    return offset


async def _finish_restore(database: Database, inspection: Inspection, name: str, by: str) -> RestoredBackup:
    """Set the revision, number transactions above all stored ones, and release all leases, in one transaction.

    Readers of events keep their cursors, and no worker of the old server holds anything of this one.
    """
    manifest, revision = inspection.manifest, str(inspection.revision)
    async with database.transaction() as connection:
        await disable_time_limits(connection)
        await backups.look_into_schema(connection, str(inspection.schema))
        await schema.adopt(connection, revision)
        offset = await backups.advance_transactions(connection)
        released_leases = await backups.release_leases(connection, _RELEASE_REASON)
        # A restored database has no statistics: without them the first claims would read whole tables.
        await backups.analyze(connection)
        source = {"file": name, "sha256": manifest and manifest.sha256, "released_leases": released_leases}
        audit.record(connection, "db.restore", by=by, new_state=source)
    # Sessions of before may look for the tables elsewhere.
    await database.engine.dispose()
    return RestoredBackup(
        dump_revision=revision,
        revision=schema.head(),
        released_leases=released_leases,
        transaction_offset=offset,
        is_verified=manifest is not None,
    )


def _manifest_violations(file: Path, manifest: Manifest) -> list[str]:
    if file.stat().st_size != manifest.size_bytes:
        return [f"it has {file.stat().st_size:,} bytes; when it was made, it had {manifest.size_bytes:,}"]
    if archives.checksum(file) != manifest.sha256:
        return ["its SHA-256 is not the one it had when it was made"]
    return []
