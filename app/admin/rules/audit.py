"""The audit log: a chain of entries whose digests each cover the previous one, so that changes are detected."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

# Digest that the first entry follows; the API documents it as 32 zero bytes.
GENESIS = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One recorded action: the key with its label, the action, JSON values before and after it, and the reason."""

    by: str
    label: str | None = None
    action: str
    before: Any = None
    after: Any = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An action at its place in the chain; places are counted from 1 without gaps."""

    seq: int
    at: datetime
    content: AuditEntry
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The end of a chain: its last place and digest."""

    seq: int = 0
    digest: bytes = GENESIS


def next_entry(link: Link, at: datetime, action: AuditEntry) -> Entry:
    """The entry for an action at the place after `link`."""
    return Entry(seq=link.seq + 1, at=at, content=action, digest=digest(link.digest, link.seq + 1, at, action))


def digest(previous: bytes, seq: int, at: datetime, action: AuditEntry) -> bytes:
    """SHA-256 of the digest before and of the content as JSON: keys sorted, no blanks, non-ASCII characters escaped.

    A label that is None is left out, as earlier versions recorded none.
    """
    content = {
        "seq": seq,
        # In UTC to the microsecond, so that the stored time gives the same text whatever the session's time zone.
        "at": at.astimezone(UTC).isoformat(timespec="microseconds"),
        "by": action.by,
        "action": action.action,
        "before": action.before,
        "after": action.after,
        "reason": action.reason,
        **({} if action.label is None else {"label": action.label}),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(previous + text.encode()).digest()


def flaw(link: Link, entry: Entry) -> str | None:
    """Reason why the entry cannot follow `link`; None when it can."""
    if entry.seq <= link.seq:
        return f"entry {entry.seq} precedes the first, and was added by another hand"
    if entry.seq != link.seq + 1:
        return f"entry {link.seq + 1} is missing"
    if entry.digest != digest(link.digest, entry.seq, entry.at, entry.content):
        return f"entry {entry.seq} is not what was written, or does not follow the one before"
    return None
