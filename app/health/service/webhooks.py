"""Webhooks: a message is put in the outbox with the change of the alert, and delivered outside any transaction."""

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
from app.kernel.events import AlertKind

log = logging.getLogger(__name__)
_POLICY = WebhookPolicy()


async def enqueue(connection: AsyncConnection, kind: AlertKind, alert: Alert) -> None:
    """Put a message about the alert in the outbox, in the transaction that changes it."""
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


async def deliver(database: Database, sender: MessageSender, policy: WebhookPolicy = _POLICY) -> int:
    """Attempt the deliveries that are due, some at a time; return how many have arrived.

    At least once: a crash between the answer and its record has the message sent again, under the same id.
    """
    arrived_count = 0
    while True:
        async with database.transaction() as connection:
            deliveries = await store.claim(connection, policy)
        if not deliveries:
            return arrived_count
        # No transaction is open during a request: a slow receiver would hold back vacuum and use up connections.
        attempts = (_attempt(database, sender, delivery, policy) for delivery in deliveries)
        arrived_count += sum(await asyncio.gather(*attempts))


async def _attempt(database: Database, sender: MessageSender, delivery: ClaimedDelivery, policy: WebhookPolicy) -> bool:
    if delivery.attempts > policy.attempts:
        await _record_failure(database, delivery, "no attempt has come to its end", policy)
        return False
    message = Message(id=str(delivery.id), at=delivery.at, body=delivery.body.encode())
    try:
        await sender.deliver(message)
    except NotDelivered as error:
        await _record_failure(database, delivery, str(error), policy)
        return False
    async with database.transaction() as connection:
        return await store.confirm(connection, delivery)


async def _record_failure(database: Database, delivery: ClaimedDelivery, why: str, policy: WebhookPolicy) -> None:
    chance = random.random()  # noqa: S311 - jitter, not a secret
    async with database.transaction() as connection:
        due_at = retry_at(delivery.attempts, chance, await now(connection), policy)
        await store.postpone(connection, delivery, due_at, why)
    if due_at is None:
        log.error("webhook %s is given up after %d attempts: %s", delivery.id, delivery.attempts, why)
    else:
        log.warning("webhook %s, attempt %d: %s", delivery.id, delivery.attempts, why)
