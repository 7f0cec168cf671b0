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
from app.http.callers import ReadLog
from app.kernel import changes as change_kernel
from app.kernel.access import Principal
from app.kernel.agents import AgentType
from app.kernel.changes import Change
from app.kernel.errors import VersionStale
from app.kernel.modes import Mode

# Author of the first version, which no key has asked for.
_NOBODY = "convener"
_TRUST_SECONDS = 2.0  # bounds the age of a configuration whose change was not heard of
# Taken before a version is written, so that transactions that work by the previous limits finish first.
_LOCKS: list[Callable[[AsyncConnection], Awaitable[object]]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRequest:
    """A requested change, built on the version `expected_version`; a dry run only shows its effect."""

    expected_version: int
    by: str
    reason: str = ""
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeResult:
    """The version that a change has made, and its differences from the previous one.

    After a dry run: the version that it builds on, with the values that the change would give it.
    """

    version: Version
    changes: Sequence[Change]


def lock_before_change(lock: Callable[[AsyncConnection], Awaitable[object]]) -> None:
    """Make every change of the configuration take this lock first; for features whose limits it sets."""
    _LOCKS.append(lock)


async def current(connection: AsyncConnection, initial: Mode) -> Version:
    """The version in force; in a new database, the preset of the mode `initial`, which this call then writes."""
    version_in_force = await store.last(connection)
    if version_in_force is not None:
        return version_in_force
    document = rules.balance_weights(rules.preset(initial))
    new = NewVersion(mode=initial, document=document, changed_by=_NOBODY, reason="preset", action=ConfigAction.INITIAL)
    first = await store.write(connection, 0, new)
    if first is not None:
        _record(connection, None, first)
        return first
    # Another process has written the first version meanwhile; versions are never deleted, so it is there.
    version_in_force = await store.last(connection)
    assert version_in_force is not None
    return version_in_force


async def document(connection: AsyncConnection) -> Document:
    """The document in force; in a new database the preset of production, which is not written."""
    last = await store.last(connection)
    return last.document if last else rules.preset(Mode.PRODUCTION)


async def version(connection: AsyncConnection, number: int) -> Version:
    """The version with this number. Raises ConfigVersionNotFound."""
    former = await store.read(connection, number)
    if former is None:
        raise ConfigVersionNotFound
    return former


async def base(connection: AsyncConnection, initial: Mode, expected_number: int) -> Version:
    """The version that a change builds on. Raises VersionStale."""
    last = await current(connection, initial)
    # It need not be the last one: a repeated request builds on the version before its own (see `_write`).
    expected_version = await store.read(connection, expected_number)
    if expected_version is None:
        raise _stale(last)
    return expected_version


async def change(
    connection: AsyncConnection, initial: Mode, request: ChangeRequest, action: ConfigAction, document: Document
) -> ChangeResult:
    """Put this document in force. Raises ConfigRefused, VersionStale."""
    previous = await base(connection, initial, request.expected_version)
    return await _carry_out(connection, request, action, previous, previous.mode, document)


async def roll_back(connection: AsyncConnection, initial: Mode, request: ChangeRequest, number: int) -> ChangeResult:
    """Put mode and document of a former version in force. Raises ConfigVersionNotFound, ConfigRefused, VersionStale."""
    previous = await base(connection, initial, request.expected_version)
    former = await version(connection, number)
    return await _carry_out(connection, request, ConfigAction.ROLLBACK, previous, former.mode, former.document)


async def switch(connection: AsyncConnection, initial: Mode, request: ChangeRequest, mode: Mode) -> ChangeResult:
    """Change to a mode and its pool; to the mode that is on already, nothing. Raises ConfigRefused, VersionStale."""
    previous = await base(connection, initial, request.expected_version)
    document = previous.document if mode is previous.mode else rules.with_mode(previous.document, mode)
    return await _carry_out(connection, request, ConfigAction.MODE, previous, mode, document)


async def _carry_out(
    connection: AsyncConnection,
    request: ChangeRequest,
    action: ConfigAction,
    previous: Version,
    mode: Mode,
    document: Document,
) -> ChangeResult:
    _check(previous, request, mode, document)
    document = rules.balance_weights(document)
    new = NewVersion(mode=mode, document=document, changed_by=request.by, reason=request.reason, action=action)
    planned_version = replace(previous, mode=mode, document=document)
    changes = change_kernel.changes(content(previous), content(planned_version))
    if request.dry_run or not changes:
        # Nothing to write, but what is shown must still be built on the version in force.
        last = await store.last(connection)
        if last is None or last.version == previous.version:
            return ChangeResult(version=planned_version, changes=changes)
    if request.dry_run:
        raise _stale(last)
    return ChangeResult(version=await _write(connection, previous, new), changes=changes)


async def _write(connection: AsyncConnection, previous: Version, new: NewVersion) -> Version:
    """Write the version after `previous`; the same change by the same caller is accepted again. Raises VersionStale."""
    # Lock order of every change: the features' locks, the primary key of the new version, the tail of the audit log.
    for lock in _LOCKS:
        await lock(connection)
    new_version = await store.write(connection, previous.version, new)
    if new_version is not None:
        notify.note(connection, notify.CONFIG)
        _record(connection, previous, new_version)
        return new_version
    # Another version follows already. If it is this very change, the answer to the first request was lost.
    new_version = await store.read(connection, previous.version + 1)
    if new_version is None or any(
        getattr(new_version, name) != getattr(new, name) for name in NewVersion.__dataclass_fields__
    ):
        raise _stale(await store.last(connection))
    return new_version


def _check(previous: Version, request: ChangeRequest, mode: Mode, document: Document) -> None:
    remarks = rules.problems(document, mode)
    if mode is previous.mode:
        remarks += rules.step_problems(previous.document, document, mode)
    problems = [(remark.path, remark.message) for remark in remarks]
    if rules.conduct(previous.mode).wants_reasons and not request.reason.strip():
        problems.append(("reason", f"say why; the mode {previous.mode.value} wants a reason for every change"))
    if problems:
        raise ConfigRefused(problems)


def _record(connection: AsyncConnection, previous: Version | None, current_version: Version) -> None:
    audit.record(
        connection,
        f"config.{current_version.action.value}",
        by=current_version.changed_by,
        old_state=None if previous is None else {"version": previous.version, **content(previous)},
        new_state={"version": current_version.version, **content(current_version)},
        # The mode that was in force has been asked already whether it wants a reason.
        reason=current_version.reason or None,
    )


def content(version: Version) -> dict[str, Any]:
    """Mode and values of a version, without author, reason and time."""
    return {"mode": version.mode.value, **rules.as_json(version.document)}


def _stale(last: Version | None) -> VersionStale:
    return VersionStale(f"the configuration is at version {last.version} now" if last else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """The configuration as other features use it; the weights sum to 1, and none is under the floor."""

    version: int
    mode: Mode
    document: Document
    weights: Mapping[AgentType, float]
    conduct: Conduct


def effective(version: Version) -> Effective:
    """The version with its weights scaled to sum 1, and the conduct of its mode."""
    weights, _ = rules.effective_weights(version.document)
    return Effective(
        version=version.version,
        mode=version.mode,
        document=version.document,
        weights=weights,
        conduct=rules.conduct(version.mode),
    )


class CurrentConfig:
    """The configuration in force, cached for loops and hot paths.

    A process that hears the announcement of a change reads again on its next call; one that does not, after 2 s.
    """

    def __init__(self, database: Database, initial: Mode) -> None:
        self.initial = initial
        self._database = database
        self._config: Effective | None = None
        self._until = 0.0
        self._changes_heard = 0
        self._readers: list[Callable[[Effective], None]] = []
        self._reading = asyncio.Lock()
        database.announcer.subscribe(self._hear)

    def subscribe(self, reader: Callable[[Effective], None]) -> None:
        """Hand every configuration that is read from now on to `reader`, for what must not wait for a read."""
        self._readers.append(reader)

    async def read(self) -> Effective:
        """The configuration, at most 2 s old. Raises DatabaseUnavailable."""
        if self._config is None or time.monotonic() >= self._until:
            async with self._reading:
                # Checked again: another caller may have read it while this one waited.
                if self._config is None or time.monotonic() >= self._until:
                    self._config = await self._read()
                    for reader in self._readers:
                        reader(self._config)
        return self._config

    async def _read(self) -> Effective:
        changes_heard, began = self._changes_heard, time.monotonic()
        async with self._database.transaction() as connection:
            config = effective(await current(connection, self.initial))
        # The read may have missed a change that was announced during it, so the next call reads again.
        self._until = began + _TRUST_SECONDS if changes_heard == self._changes_heard else 0.0
        return config

    def _hear(self, topics: Collection[str]) -> None:
        if notify.CONFIG in topics:
            self._changes_heard += 1
            self._until = 0.0


# Of an address in the audit log, which nothing prunes: callers may add any parameters to it.
_MAX_ADDRESS = 2000


class AuditedReads(ReadLog):
    """Records reads in the audit log in the mode that wants that."""

    def __init__(self, database: Database, config: CurrentConfig) -> None:
        self._database = database
        self._config = config

    async def note(self, principal: Principal, action: str, address: str) -> None:
        """Record that the caller has read what is at this address, by the mode in force a moment ago."""
        if (await self._config.read()).conduct.audits_reads:
            async with self._database.transaction() as connection:
                audit.record(connection, action, by=principal.key_id, new_state={"address": address[:_MAX_ADDRESS]})
