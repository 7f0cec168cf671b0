"""The audit log: written in the transaction of the recorded change, and checked from its first entry on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.errors import ReasonRequired
from app.admin.rules.audit import AuditEntry, Entry, Link, flaw, next_entry
from app.admin.rules.config import conduct
from app.admin.store import audit
from app.db import schema
from app.db.database import Database, before_commit
from app.http import computing


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Result of a check: number of sound entries, the last of them, and the flaw of the next one (None: no flaw)."""

    entries: int
    end: Link
    violation: str | None


def record(
    connection: AsyncConnection,
    action: str,
    *,
    by: str,
    old_state: Any = None,
    new_state: Any = None,
    reason: str | None = None,
) -> None:
    """Add to the log, as the last work of the transaction of the change itself: both are kept, or neither.

    `reason` is None for what needs none. The transaction raises ReasonRequired where it is blank, and the mode wants
    one.
    """

    async def add() -> None:
        # The last lock that any transaction takes: its holder waits for no other, so it is never part of a deadlock,
        # and it is held for no statement but these, as every other transaction that records something waits meanwhile.
        tail = await audit.lock_tail(connection, by)
        if reason is not None and not reason.strip() and tail.mode is not None and conduct(tail.mode).wants_reasons:
            raise ReasonRequired([("reason", f"say why; the mode {tail.mode.value} wants a reason for every change")])
        content = AuditEntry(
            by=by, label=tail.label, action=action, before=old_state, after=new_state, reason=reason or ""
        )
        await audit.append(connection, next_entry(tail.link, tail.at, content))

    before_commit(connection, add)


async def migrate(
    database: Database, to: str = "head", *, by: str, watch: schema.Watch | None = None, is_alone: bool = False
) -> tuple[str | None, str | None]:
    """Migrate the schema and record how far that went; return the revisions before and after it. Raises Refused."""

    async def note(old_revision: str | None, new_revision: str | None) -> None:
        # A revision of before the last release may have no log yet, or one of another shape.
        if new_revision in schema.served():
            async with database.transaction() as connection:
                record(connection, "db.migrate", by=by, old_state=old_revision, new_state=new_revision)

    watch = replace(watch or schema.Watch(), moved=note)
    return await schema.migrate(database.engine, to, watch, is_alone=is_alone)


async def verify(database: Database, noted_end: Link | None = None) -> Verdict:
    """Compute every digest anew, up to the first entry that is not as it was; `noted_end` must still be there.

    Only a noted end shows that entries were cut off, because what is left of them is a sound chain.
    """
    link, violation = Link(), None
    while violation is None:
        try:
            # A transaction for each batch: entries are only added, so the batches fit together without one snapshot.
            async with database.transaction() as connection:
                entries = await audit.entries_after(connection, link)
            if not entries:
                break
            # In a thread and without a connection: hashing a long log would hold up every other request.
            link, violation = await computing.run(_check_entries, link, entries, noted_end)
        except (ValueError, OverflowError, RecursionError):
            # A number, a moment or a depth that the database takes, and nothing here has written.
            violation = f"an entry after {link.seq} cannot be read, so it is not what was written"
    if violation is None and noted_end is not None and noted_end.seq > link.seq:
        violation = f"entry {noted_end.seq} is missing; the log ends with {link.seq}"
    return Verdict(entries=link.seq, end=link, violation=violation)


def _check_entries(link: Link, entries: Sequence[Entry], noted_end: Link | None) -> tuple[Link, str | None]:
    """The last sound entry of those after `link`, and the flaw of the next one."""
    for entry in entries:
        violation = flaw(link, entry) or _differs(noted_end, entry)
        if violation is not None:
            return link, violation
        link = Link(seq=entry.seq, digest=entry.digest)
    return link, None


def _differs(noted_end: Link | None, entry: Entry) -> str | None:
    if noted_end is None or entry.seq != noted_end.seq or entry.digest == noted_end.digest:
        return None
    return f"entry {entry.seq} has another digest than the one that was noted"
