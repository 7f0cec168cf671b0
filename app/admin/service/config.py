"""The deployment configuration: read, changed by compare-and-set, and known to every process within a moment."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.errors import ConfigRefused, ConfigVersionNotFound
from app.admin.rules import config as rules
from app.admin.rules.config import Conduct, ConfigAction, Document
from app.admin.service import audit
from app.admin.store import config as store
from app.admin.store.config import NewVersion, Version
from app.db import notify
from app.db.database import Database
from app.kernel import changes as change_kernel
from app.kernel.agents import AgentType
from app.kernel.changes import Change
from app.kernel.errors import VersionStale
from app.kernel.modes import Mode

# Who wrote the first version, which nobody asked for.
_NOBODY = "convener"
_TRUST_SECONDS = 2.0
# Taken before a version is written, so that whoever works by the limits of the one before finishes first.
_LOCKS: list[Callable[[AsyncConnection], Awaitable[object]]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A change that somebody wants: built on the version `expected`; a dry run only shows what it would do."""

    expected: int
    by: str
    reason: str = ""
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The version that an order has made, and how it differs from the one before.

    Of a dry run: the version that it builds on, with the values that it would have.
    """

    version: Version
    changes: Sequence[Change]


def lock_before_change(lock: Callable[[AsyncConnection], Awaitable[object]]) -> None:
    """Let every change of the configuration take this lock first: for features whose limits it sets."""
    _LOCKS.append(lock)


async def current(connection: AsyncConnection, initial: Mode) -> Version:
    """The version in force. Whoever first looks into a new database writes the preset of the mode `initial`."""
    found = await store.last(connection)
    if found is not None:
        return found
    document = rules.balanced(rules.preset(initial))
    new = NewVersion(mode=initial, document=document, changed_by=_NOBODY, reason="preset", action=ConfigAction.INITIAL)
    made = await store.write(connection, 0, new)
    if made is not None:
        await _record(connection, None, made)
        return made
    found = await store.last(connection)
    assert found is not None, "somebody else wrote the first version, and versions are never deleted"
    return found


async def version(connection: AsyncConnection, number: int) -> Version:
    """A certain version. Raises ConfigVersionNotFound."""
    found = await store.read(connection, number)
    if found is None:
        raise ConfigVersionNotFound
    return found


async def base(connection: AsyncConnection, initial: Mode, expected: int) -> Version:
    """The version that a change builds on. Raises VersionStale."""
    last = await current(connection, initial)
    found = await store.read(connection, expected)
    if found is None:
        raise _stale(last)
    return found


async def change(
    connection: AsyncConnection, initial: Mode, order: Order, action: ConfigAction, document: Document
) -> Outcome:
    """Put this document in force. Raises ConfigRefused, VersionStale."""
    before = await base(connection, initial, order.expected)
    return await _carry_out(connection, order, action, before, before.mode, document)


async def roll_back(connection: AsyncConnection, initial: Mode, order: Order, number: int) -> Outcome:
    """Put mode and document of a former version in force. Raises ConfigVersionNotFound, ConfigRefused, VersionStale."""
    before = await base(connection, initial, order.expected)
    former = await version(connection, number)
    return await _carry_out(connection, order, ConfigAction.ROLLBACK, before, former.mode, former.document)


async def switch(connection: AsyncConnection, initial: Mode, order: Order, mode: Mode) -> Outcome:
    """Change to a mode and its pool; to the mode that is on already, nothing. Raises ConfigRefused, VersionStale."""
    before = await base(connection, initial, order.expected)
    document = before.document if mode is before.mode else rules.switched(before.document, mode)
    return await _carry_out(connection, order, ConfigAction.MODE, before, mode, document)


async def note_read(connection: AsyncConnection, initial: Mode, by: str, what: str) -> None:
    """Record that somebody has read it, where the mode wants that. Call it last."""
    mode = (await current(connection, initial)).mode
    if rules.conduct(mode).audits_reads:
        await audit.record(connection, what, by=by)


async def _carry_out(
    connection: AsyncConnection, order: Order, action: ConfigAction, before: Version, mode: Mode, document: Document
) -> Outcome:
    _check(before.mode, order, mode, document)
    document = rules.balanced(document)
    new = NewVersion(mode=mode, document=document, changed_by=order.by, reason=order.reason, action=action)
    made = replace(before, mode=mode, document=document)
    changes = change_kernel.changes(content(before), content(made))
    if order.dry_run or not changes:
        last = await store.last(connection)
        if last is None or last.version == before.version:
            return Outcome(version=made, changes=changes)
    if order.dry_run:
        raise _stale(last)
    return Outcome(version=await _write(connection, before, new), changes=changes)


async def _write(connection: AsyncConnection, before: Version, new: NewVersion) -> Version:
    """Safe to repeat: the same change by the same caller is accepted again with the version that it has made."""
    for lock in _LOCKS:
        await lock(connection)
    made = await store.write(connection, before.version, new)
    if made is not None:
        notify.note(connection, notify.CONFIG)
        await _record(connection, before, made)
        return made
    made = await store.read(connection, before.version + 1)
    if made is None or any(getattr(made, name) != getattr(new, name) for name in NewVersion.__dataclass_fields__):
        raise _stale(await store.last(connection))
    return made


def _check(present: Mode, order: Order, mode: Mode, document: Document) -> None:
    found = [(remark.path, remark.message) for remark in rules.problems(document, mode)]
    if rules.conduct(present).wants_reasons and not order.reason.strip():
        found.append(("reason", f"say why; the mode {present.value} wants a reason for every change"))
    if found:
        raise ConfigRefused(found)


async def _record(connection: AsyncConnection, before: Version | None, after: Version) -> None:
    await audit.record(
        connection,
        f"config.{after.action.value}",
        by=after.changed_by,
        before=None if before is None else {"version": before.version, **content(before)},
        after={"version": after.version, **content(after)},
        reason=after.reason,
    )


def content(version: Version) -> dict[str, Any]:
    """What a version decides, without who decided it."""
    return {"mode": version.mode.value, **rules.plain(version.document)}


def _stale(last: Version | None) -> VersionStale:
    return VersionStale(f"the configuration is at version {last.version} now" if last else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """The configuration as the rules take it; the weights sum to 1, and none is under the floor."""

    version: int
    mode: Mode
    document: Document
    weights: Mapping[AgentType, float]
    conduct: Conduct


def effective(version: Version) -> Effective:
    """What this version means."""
    weights, _ = rules.effective_weights(version.document)
    return Effective(
        version=version.version,
        mode=version.mode,
        document=version.document,
        weights=weights,
        conduct=rules.conduct(version.mode),
    )


class CurrentConfig:
    """The configuration in force, for loops and hot paths: at most 2 s old, and mostly of the moment.

    A change is announced, so a process that hears of it reads anew when it next asks; one that does not, after 2 s.
    """

    def __init__(self, database: Database, initial: Mode) -> None:
        self.initial = initial
        self._database = database
        self._known: Effective | None = None
        self._until = 0.0
        self._heard = 0
        self._reading = asyncio.Lock()
        database.announcer.subscribe(self._hear)

    async def read(self) -> Effective:
        """The configuration; costs nothing while it is known. Raises DatabaseUnavailable."""
        if self._known is None or time.monotonic() >= self._until:
            async with self._reading:
                if self._known is None or time.monotonic() >= self._until:
                    self._known = await self._read()
        return self._known

    async def _read(self) -> Effective:
        heard, began = self._heard, time.monotonic()
        async with self._database.transaction() as connection:
            found = effective(await current(connection, self.initial))
        # What was announced meanwhile may not have been seen.
        self._until = began + _TRUST_SECONDS if heard == self._heard else 0.0
        return found

    def _hear(self, topics: Collection[str]) -> None:
        if notify.CONFIG in topics:
            self._heard += 1
            self._until = 0.0
