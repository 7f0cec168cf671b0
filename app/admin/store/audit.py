"""The audit log: entries are added at the tail, by one transaction at a time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.audit import AuditEntry, Entry, Link
from app.db import pages
from app.db.pages import Page
from app.kernel.modes import Mode

# So many are made in the loop at once, which others wait for.
_BATCH = 200

# An advisory lock, because a new log has no row to lock. Readers are not held up.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('convener audit', 0))")

# clock_timestamp() instead of now(): transactions may begin in another order than they lock the tail. LEFT JOIN: the
# first entry needs the time too.
_TAIL = text("""
SELECT tail.seq, tail.digest, clock_timestamp() AS at, (SELECT label FROM keys WHERE id = :by) AS label,
       (SELECT mode FROM config_versions ORDER BY version DESC LIMIT 1) AS mode
FROM (SELECT 1) one LEFT JOIN (SELECT seq, digest FROM audit ORDER BY seq DESC LIMIT 1) tail ON true
""")

_APPEND = text("""
INSERT INTO audit (seq, at, by, label, action, before, after, reason, digest)
VALUES (:seq, :at, :by, :label, :action, CAST(:before AS json), CAST(:after AS json), :reason, :digest)
""")

# As text, and without a moment that no clock has: one entry that somebody has damaged must not keep back all others.
_PAGE = """
SELECT seq, by, label, action, reason, digest, CAST(before AS text) AS before, CAST(after AS text) AS after,
       CASE WHEN at BETWEEN '0002-01-01' AND '9998-12-31' THEN at END AS at
FROM audit WHERE seq < :before {only} ORDER BY seq DESC
"""
_ANY, _ONE_ACTION = _PAGE.format(only=""), _PAGE.format(only="AND action = :action")

_ONWARD = """
SELECT seq, at, by, label, action, before, after, reason, digest FROM audit WHERE seq >= :first ORDER BY seq
"""
_LOWEST = -(2**63)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The end of the chain, the database's time, the label of the key that writes, and the mode of the deployment."""

    link: Link
    at: datetime
    label: str | None
    mode: Mode | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedEntry:
    """An entry as it is stored, whoever wrote it: JSON as text, and no moment where that is none."""

    seq: int
    at: datetime | None
    by: str
    label: str | None
    action: str
    before: str
    after: str
    reason: str
    digest: bytes


async def lock_tail(connection: AsyncConnection, by: str) -> Tail:
    """Lock the end of the chain until this transaction ends; return what the next entry goes by."""
    # Two statements: the second must see what was committed while the first one waited.
    await connection.execute(_LOCK)
    row = (await connection.execute(_TAIL, {"by": by})).mappings().one()
    link = Link() if row["seq"] is None else Link(seq=row["seq"], digest=row["digest"])
    return Tail(link=link, at=row["at"], label=row["label"], mode=Mode(row["mode"]) if row["mode"] else None)


async def append(connection: AsyncConnection, entry: Entry) -> None:
    """Add the entry that follows the tail, which must be locked."""
    content = entry.content
    plain = {name: getattr(content, name) for name in ("by", "label", "action", "reason")}
    values = {"seq": entry.seq, "at": entry.at, **plain}
    texts = {"before": json.dumps(content.before), "after": json.dumps(content.after)}
    await connection.execute(_APPEND, {**values, **texts, "digest": entry.digest})


async def page(connection: AsyncConnection, *, below: int, action: str | None, limit: int) -> Page[ListedEntry]:
    """Entries numbered below `below`, of one kind of action or of all, newest first."""
    if action is None:
        return await pages.read(connection, _ANY, {"before": below}, limit, _listed)
    return await pages.read(connection, _ONE_ACTION, {"before": below, "action": action}, limit, _listed)


async def entries_after(connection: AsyncConnection, link: Link) -> Sequence[Entry]:
    """The next entries after `link`, at most a batch; none at the end. At the start also any that precede the first."""
    first = link.seq + 1 if link.seq else _LOWEST
    return (await pages.read(connection, _ONWARD, {"first": first}, _BATCH, _entry)).items


def _entry(row: Any) -> Entry:
    action = AuditEntry(**{name: row[name] for name in AuditEntry.__dataclass_fields__})
    return Entry(seq=row["seq"], at=row["at"], content=action, digest=row["digest"])


def _listed(row: Any) -> ListedEntry:
    return ListedEntry(**row)
