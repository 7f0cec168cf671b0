"""Context Memory: every write names the version that it builds on, and a lost answer may be asked for again."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.errors import VersionStale
from app.memory.errors import ContextNotFound
from app.memory.store import context
from app.memory.store.context import Name, Version, Write

# Versions of an entry that are kept whatever their age.
KEEP = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The version that a write has made; `created` when there was no entry before."""

    version: Version
    created: bool


async def replace(connection: AsyncConnection, name: Name, expected: int, change: Write) -> Written:
    """Write the version after `expected`. Safe to repeat. Raises VersionStale.

    The same write by the same writer is accepted again with the version that it made, also after others have gone on
    from there: what it did has been done. Writers that share a key and may write equal values, as for a lock, tell
    themselves apart by a request id.
    """
    made = await context.write(connection, name, expected, change)
    made = made or await context.repeated(connection, name, expected + 1, change)
    if made is None:
        raise await _stale(connection, name)
    before = await context.read_version(connection, name, expected)
    return Written(version=made, created=before is None or before.deleted)


async def create(connection: AsyncConnection, name: Name, change: Write) -> Written:
    """Write the first version, or the first after a deletion. Safe to repeat. Raises VersionStale."""
    current = await context.read(connection, name)
    if current is None or current.deleted:
        made = await context.write(connection, name, current.version if current else 0, change)
        if made is not None:
            return Written(version=made, created=True)
    first = await context.last_deletion(connection, name) + 1
    again = await context.repeated(connection, name, first, change)
    if again is None:
        raise VersionStale("there is such an entry already")
    return Written(version=again, created=True)


async def delete(connection: AsyncConnection, name: Name, expected: int, change: Write) -> Version:
    """Delete the entry, as a version of its own. Safe to repeat. Raises ContextNotFound, VersionStale."""
    current = await context.read(connection, name)
    if current is None:
        raise ContextNotFound
    if current.deleted and current.version == expected:
        raise ContextNotFound(f"it was deleted already, by version {expected}")
    return (await replace(connection, name, expected, change)).version


async def read(connection: AsyncConnection, name: Name, version: int | None = None) -> Version:
    """The entry as it is, or a certain version of it. Raises ContextNotFound."""
    if version is not None:
        found = await context.read_version(connection, name, version)
        if found is None:
            raise ContextNotFound(f"there is no version {version}, or it has been pruned")
        return found
    current = await context.read(connection, name)
    if current is None:
        raise ContextNotFound
    if current.deleted:
        raise ContextNotFound(f"it was deleted by version {current.version}")
    return current


async def _stale(connection: AsyncConnection, name: Name) -> VersionStale:
    current = await context.read(connection, name)
    if current is None:
        return VersionStale("there is no such entry; send `If-None-Match: *` to create it")
    what = "it was deleted by" if current.deleted else "it is at"
    return VersionStale(f"{what} version {current.version} now")
