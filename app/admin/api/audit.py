"""The audit log: who did what when, and whether that has stayed as it was."""

import json
import math
from datetime import UTC
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from app.admin.rules.audit import Link
from app.admin.service import audit as service
from app.admin.store import audit as store
from app.admin.store.audit import ListedEntry
from app.http.fields import NEWEST, Below, Body, Limit, Word
from app.http.guard import requires
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Reading
from app.kernel.access import Scope

router = Router(prefix="/audit", tags=["audit"])


class AuditEntryOut(BaseModel):
    """What somebody did. `digest` is the SHA-256 of the digest before (32 zero bytes for the first) and of the members
    `seq` to `reason` as JSON with sorted keys, no blanks and non-ASCII characters escaped, without a `label` of null.
    """

    seq: int = Field(description="place in the log, without gaps")
    at: str | None = Field(
        description="UTC, to the microsecond; null: see `unreadable`", json_schema_extra={"format": "date-time"}
    )
    by: str = Field(description="id of the key that was shown, or the command that worked on the database itself")
    label: str | None = Field(description="of that key at the time; null: it was no key, or an earlier version")
    action: str
    before: Any
    after: Any
    reason: str
    digest: str = Field(description="hexadecimal")
    unreadable: str | None = Field(
        None,
        description="only where somebody has damaged the entry in the database: what of it is null",
    )


class AuditPage(BaseModel):
    """Newest first; pass `next` as `after` for what follows."""

    items: list[AuditEntryOut]
    next: int | None


class EndOut(BaseModel):
    """The end of the log. Keep it elsewhere: entries cut off later are missed then."""

    seq: int
    digest: str


class KnownIn(Body):
    """An end of the log that was noted earlier."""

    seq: int = Field(ge=1, le=NEWEST, strict=True)
    digest: str = Field(max_length=64, pattern="^[0-9a-f]{64}$")


class VerifyIn(Body):
    """What must be there."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})

    known: KnownIn | None = None


class VerdictOut(BaseModel):
    """Whether the log is as it was written."""

    ok: bool
    entries: int = Field(description="so many are sound")
    end: EndOut
    violation: str | None


@router.get(
    "",
    operation_id="list_audit_entries",
    summary="Read the audit log",
    dependencies=[requires(Scope.READ)],
    response_model_exclude_unset=True,
)
async def page(
    connection: Reading,
    action: Annotated[Word | None, Query(description="of this kind only, like `config.patch`")] = None,
    after: Below = NEWEST,
    limit: Limit = 100,
) -> AuditPage:
    """Who changed what, when and why; for trusted testers also who read it. Nothing is ever forgotten."""
    entries = await store.page(connection, below=after, action=action, limit=limit)
    return AuditPage(items=[_entry_out(entry) for entry in entries.items], next=entries.next(lambda entry: entry.seq))


@router.post(
    "/verify",
    operation_id="verify_audit",
    summary="Check the audit log",
    dependencies=[requires(Scope.READ, costly=True)],
)
async def verify(body: VerifyIn, services: ServicesDep) -> VerdictOut:
    """Computes every digest anew, up to the first entry that is not as it was written; changes nothing."""
    noted_end = Link(seq=body.known.seq, digest=bytes.fromhex(body.known.digest)) if body.known else None
    # The check opens a short transaction for each batch, so the request must hold none of its own meanwhile.
    verdict = await service.verify(services.database, noted_end)
    end = EndOut(seq=verdict.end.seq, digest=verdict.end.digest.hex())
    return VerdictOut(ok=verdict.violation is None, entries=verdict.entries, end=end, violation=verdict.violation)


def _entry_out(entry: ListedEntry) -> AuditEntryOut:
    fields = {name: getattr(entry, name) for name in ("seq", "by", "label", "action", "reason")}
    fields["at"] = None if entry.at is None else entry.at.astimezone(UTC).isoformat(timespec="microseconds")
    unreadable = [] if entry.at is not None else ["at"]
    for name in ("before", "after"):
        try:
            fields[name] = _value(getattr(entry, name))
        except (ValueError, RecursionError):
            fields[name] = None
            unreadable.append(name)
    if unreadable:
        fields["unreadable"] = " and ".join(unreadable)
    return AuditEntryOut(digest=entry.digest.hex(), **fields)


def _value(text: str) -> Any:
    """The value of JSON that can be sent. Raises ValueError, RecursionError: the database takes more than that."""
    value = json.loads(text, parse_float=_finite)
    to_json({"items": [{"after": value}]})  # at the depth at which it is sent
    return value


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large a number")
    return number
