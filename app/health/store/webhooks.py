"""Statements on the outbox of webhooks: a delivery is added with its alert, claimed by one process, then confirmed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.db.retention import pruning
from app.health.rules.webhooks import WebhookPolicy
from app.kernel.events import AlertKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedDelivery:
    """A delivery that only the caller attempts until its claim is over; `attempts` counts this attempt."""

    id: UUID
    body: str
    attempts: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """State of a delivery; with `due_at` it is attempted again."""

    id: UUID
    kind: AlertKind
    created_at: datetime
    attempts: int
    due_at: datetime | None
    delivered_at: datetime | None
    given_up_at: datetime | None
    last_error: str | None


_ADD = text("""
INSERT INTO webhook_deliveries (id, alert_id, kind, body, created_at, due_at)
VALUES (:id, :alert_id, :kind, :body, now(), now())
""")

# Deliveries of one alert go one after the other, so that no receiver hears of its end before its beginning. A crash
# after the claim costs one attempt: the delivery is due again when the claim is over. Due later than any pause, it was
# postponed before the clock was set back.
_CLAIM = text("""
UPDATE webhook_deliveries SET attempts = attempts + 1, due_at = now() + make_interval(secs => :claim)
WHERE id IN (
    SELECT d.id FROM webhook_deliveries d
    WHERE (d.due_at <= now() OR d.due_at > now() + make_interval(secs => :longest)) AND NOT EXISTS (
        SELECT FROM webhook_deliveries e WHERE e.alert_id = d.alert_id AND e.seq < d.seq AND e.due_at IS NOT NULL
    )
    ORDER BY d.due_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
RETURNING id, body, attempts, now() AS at
""")

# The number of attempts is the fence: a later claim has raised it.
_CONFIRM = text("""
UPDATE webhook_deliveries SET delivered_at = now(), due_at = NULL, last_error = NULL
WHERE id = :id AND attempts = :attempts AND due_at IS NOT NULL RETURNING id
""")

_POSTPONE = text("""
UPDATE webhook_deliveries SET due_at = :due_at, last_error = :error,
    given_up_at = CASE WHEN CAST(:due_at AS timestamptz) IS NULL THEN now() END
WHERE id = :id AND attempts = :attempts AND due_at IS NOT NULL RETURNING id
""")

_OF_ALERT = text("""
SELECT id, kind, created_at, attempts, due_at, delivered_at, given_up_at, last_error FROM webhook_deliveries
WHERE alert_id = :alert_id ORDER BY seq LIMIT 100
""")

prune = pruning("webhook_deliveries", "created_at")


async def add_delivery(
    connection: AsyncConnection, delivery_id: UUID, *, alert_id: int, kind: AlertKind, body: str
) -> None:
    """Put a message in the outbox, in the transaction of the change that it reports."""
    values = {"id": delivery_id, "alert_id": alert_id, "kind": kind.value, "body": body}
    await connection.execute(_ADD, values)
    notify.note(connection, notify.WEBHOOKS)


async def claim(connection: AsyncConnection, policy: WebhookPolicy) -> Sequence[ClaimedDelivery]:
    """Claim deliveries that are due, at most `at_once`; nobody else attempts them until the claim is over."""
    values = {"claim": policy.claim_seconds, "limit": policy.at_once, "longest": policy.cap + policy.claim_seconds}
    return [ClaimedDelivery(**row) for row in (await connection.execute(_CLAIM, values)).mappings()]


async def confirm(connection: AsyncConnection, delivery: ClaimedDelivery) -> bool:
    """Note that a delivery has arrived; False when somebody else has claimed it since."""
    values = {"id": delivery.id, "attempts": delivery.attempts}
    return (await connection.execute(_CONFIRM, values)).first() is not None


async def postpone(connection: AsyncConnection, delivery: ClaimedDelivery, due_at: datetime | None, error: str) -> bool:
    """Note a failed attempt and the time of the next; None gives up. False when somebody else has claimed it since."""
    values = {"id": delivery.id, "attempts": delivery.attempts, "due_at": due_at, "error": error[:500]}
    return (await connection.execute(_POSTPONE, values)).first() is not None


async def read_deliveries(connection: AsyncConnection, alert_id: int) -> list[Delivery]:
    """The deliveries of an alert, oldest first."""
    rows = (await connection.execute(_OF_ALERT, {"alert_id": alert_id})).mappings()
    return [Delivery(**{**row, "kind": AlertKind(row["kind"])}) for row in rows]
