"""Context Memory: compare-and-set of versioned entries, in writes that are safe to repeat."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.kernel.errors import DatabaseUnavailable, VersionStale
from app.memory.errors import ContextNotFound
from app.memory.store import context
from app.memory.store.context import EntryKey, Version, Write

# Versions of an entry that are kept whatever their age.
KEPT_VERSIONS = 100
# Each failure means that somebody else has written.
_MAX_ATTEMPTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """The version that a write has made; `is_new` when there was no entry before."""

    version: Version
    is_new: bool


async def replace(connection: AsyncConnection, entry: EntryKey, expected_version: int, change: Write) -> WriteResult:
    """Write the version after `expected_version`. Safe to repeat. Raises VersionStale.

    The same write by the same writer is accepted again, with the version that it made, even after others have written
    later ones: a client whose answer was lost must learn that its write took place. Writers that share a key and may
    write equal values, as for a lock, tell themselves apart by a request id.
    """
    previous = await context.read_version(connection, entry, expected_version)
    is_new = previous is None or previous.deleted
    version = await context.write(connection, entry, expected_version, change)
    if version is not None:
        _record(connection, entry, version)
        return WriteResult(version=version, is_new=is_new)
    repetition = await context.find_repetition(connection, entry, expected_version + 1, change)
    if repetition is None:
        raise await _version_stale(connection, entry)
    return WriteResult(version=repetition, is_new=is_new)


async def create(connection: AsyncConnection, entry: EntryKey, change: Write) -> WriteResult:
    """Write the first version, or the first after a deletion. Safe to repeat. Raises VersionStale."""
    current = await context.read(connection, entry)
    if current is None or current.deleted:
        version = await context.write(connection, entry, current.version if current else 0, change)
        if version is not None:
            _record(connection, entry, version)
            return WriteResult(version=version, is_new=True)
    # The entry exists. Perhaps this very write has created it, in a request whose answer was lost.
    first = await context.last_deleted_version(connection, entry) + 1
    repetition = await context.find_repetition(connection, entry, first, change)
    if repetition is None:
        raise VersionStale("there is such an entry already")
    return WriteResult(version=repetition, is_new=True)


async def overwrite(connection: AsyncConnection, entry: EntryKey, change: Write) -> WriteResult:
    """Write over whatever is there: of several writers at once the last one wins. Raises DatabaseUnavailable."""
    for _ in range(_MAX_ATTEMPTS):
        current = await context.read(connection, entry)
        version = await context.write(connection, entry, current.version if current else 0, change)
        if version is not None:
            _record(connection, entry, version)
            return WriteResult(version=version, is_new=current is None or current.deleted)
    raise DatabaseUnavailable("others are writing this entry at this moment; send it again")


async def delete(connection: AsyncConnection, entry: EntryKey, expected_version: int, change: Write) -> Version:
    """Delete an entry by writing a version without a value. Safe to repeat. Raises ContextNotFound, VersionStale."""
    current = await context.read(connection, entry)
    if current is None:
        raise ContextNotFound
    if current.deleted and current.version == expected_version:
        raise ContextNotFound(f"it was deleted already, by version {expected_version}")
    return (await replace(connection, entry, expected_version, change)).version


async def read(connection: AsyncConnection, entry: EntryKey, number: int | None = None) -> Version:
    """The current version of an entry, or the one of this number. Raises ContextNotFound."""
    if number is not None:
        version = await context.read_version(connection, entry, number)
        if version is None:
            raise ContextNotFound(f"there is no version {number}, or it has been pruned")
        return version
    current = await context.read(connection, entry)
    if current is None:
        raise ContextNotFound
    if current.deleted:
        raise ContextNotFound(f"it was deleted by version {current.version}")
    return current


def _record(connection: AsyncConnection, entry: EntryKey, version: Version) -> None:
    """The audit entry of a write. It has no value, which is in the history of the entry for as long as that is kept."""
    action = "context.delete" if version.deleted else "context.write"
    written = {"namespace": entry.namespace, "key": entry.key, "version": version.version}
    audit.record(connection, action, by=version.written_by, new_state=written)


async def _version_stale(connection: AsyncConnection, entry: EntryKey) -> VersionStale:
    current = await context.read(connection, entry)
    if current is None:
        return VersionStale("there is no such entry; send `If-None-Match: *` to create it")
    state = "it was deleted by" if current.deleted else "it is at"
    return VersionStale(f"{state} version {current.version} now")
