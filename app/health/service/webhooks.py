"""Webhooks: what is told of an alert is written down with the change, and delivered outside of any transaction."""

import asyncio
import json
import logging
import random

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database, now
from app.db.uuids import time_ordered_uuid
from app.health.rules.webhooks import WebhookPolicy, retry_at
from app.health.service.delivery import Message, MessageSender, NotDelivered
from app.health.store import webhooks as store
from app.health.store.alerts import Alert
from app.health.store.webhooks import ClaimedDelivery
from app.queue.rules.events import AlertKind

log = logging.getLogger(__name__)
_POLICY = WebhookPolicy()


async def enqueue(connection: AsyncConnection, kind: AlertKind, alert: Alert) -> None:
    """Write down that others are to hear of it."""
    delivery_id = time_ordered_uuid()
    body = {
        "id": str(delivery_id),
        "kind": kind.value,
        "at": alert.updated_at.isoformat(),
        "alert": {
            "id": alert.id,
            "rule": alert.rule.value,
            "subject": alert.subject,
            "severity": alert.severity.name.lower(),
            "state": alert.state.value,
            "summary": alert.summary,
            "advice": alert.advice,
            "facts": alert.facts,
            "opened_at": alert.opened_at.isoformat(),
            "resolved_at": alert.resolved_at.isoformat() if alert.resolved_at else None,
        },
    }
    await store.add_delivery(connection, delivery_id, alert_id=alert.id, kind=kind, body=json.dumps(body))


async def deliver(database: Database, courier: MessageSender, policy: WebhookPolicy = _POLICY) -> int:
    """Attempt what is due, some at a time; returns how many have arrived.

    At least once: a crash between the answer and its record has it sent again, under the same id.
    """
    arrived = 0
    while True:
        async with database.transaction() as connection:
            claimed = await store.claim(connection, policy)
        if not claimed:
            return arrived
        arrived += sum(await asyncio.gather(*(_attempt(database, courier, one, policy) for one in claimed)))


async def _attempt(database: Database, courier: MessageSender, claimed: ClaimedDelivery, policy: WebhookPolicy) -> bool:
    message = Message(id=str(claimed.id), at=claimed.at, body=claimed.body.encode())
    try:
        await courier.deliver(message)
    except NotDelivered as error:
        await _record_failure(database, claimed, str(error), policy)
        return False
    async with database.transaction() as connection:
        return await store.confirm(connection, claimed)


async def _record_failure(database: Database, claimed: ClaimedDelivery, why: str, policy: WebhookPolicy) -> None:
    chance = random.random()  # noqa: S311 - jitter, not a secret
    async with database.transaction() as connection:
        planned = retry_at(claimed.attempts, chance, await now(connection), policy)
        await store.postpone(connection, claimed, planned.due_at, why)
    if planned.due_at is None:
        log.error("webhook %s is given up after %d attempts: %s", claimed.id, claimed.attempts, why)
    else:
        log.warning("webhook %s, attempt %d: %s", claimed.id, claimed.attempts, why)
