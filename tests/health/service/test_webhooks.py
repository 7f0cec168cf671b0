"""The outbox: written with what it tells of, delivered at least once and in order, and given up after a while."""

import asyncio
import json
from typing import Any
from uuid import UUID

import pytest

from app.db.database import Database
from app.health.rules.alerts import AlertResolution
from app.health.rules.webhooks import WebhookPolicy
from app.health.service import alerts, webhooks
from app.health.service.delivery import Message, NotDelivered
from app.health.store import alerts as alert_store
from app.health.store import webhooks as store
from app.health.store.alerts import Alert
from app.kernel.events import AlertKind
from tests.health.service.test_alerts import SYMPTOM
from tests.support.sql import execute, fetch, value
from tests.support.watching import AT_ONCE, empty_queue, neglect_task, observe

EAGER = WebhookPolicy(attempts=3, base=0.0, cap=0.0)


class Recorder:
    """A sender that remembers, and fails as often as asked to."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.messages: list[Message] = []

    async def deliver(self, message: Message) -> None:
        self.messages.append(message)
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise NotDelivered("hooks.example.org answered 500")

    @property
    def kinds(self) -> list[str]:
        return [json.loads(message.body)["kind"] for message in self.messages]


async def observe_with_webhooks(database: Database) -> dict[str, Any]:
    """One turn of the duty of a service that has a webhook."""
    from app.queue.rules.admission import CapacityPolicy

    async with database.transaction() as connection:
        return await alerts.watch(connection, CapacityPolicy(), AT_ONCE, with_webhooks=True)


async def opened(database: Database) -> Alert:
    """An alert that has just been opened, with its delivery in the outbox."""
    async with database.transaction() as connection:
        alert = await alert_store.open_alert(connection, SYMPTOM)
        assert alert is not None
        await webhooks.enqueue(connection, AlertKind.OPENED, alert)
    return alert


async def resolved(database: Database, alert: Alert) -> None:
    async with database.transaction() as connection:
        over = await alert_store.resolve(connection, AlertResolution(alert_id=alert.id, reason="gone"))
        assert over is not None
        await webhooks.enqueue(connection, AlertKind.RESOLVED, over)


async def deliveries(database: Database, alert: Alert) -> list[store.Delivery]:
    async with database.transaction() as connection:
        return await store.read_deliveries(connection, alert.id)


async def test_opening_and_end_are_told_with_all_that_is_known(database: Database) -> None:
    await neglect_task(database, 11)
    await observe_with_webhooks(database)
    await neglect_task(database, 40)
    await observe_with_webhooks(database)
    await empty_queue(database)
    await observe_with_webhooks(database)
    sender = Recorder()
    await webhooks.deliver(database, sender)
    assert sender.kinds == ["alert.opened", "alert.worsened", "alert.resolved"]
    first = json.loads(sender.messages[0].body)
    assert first["id"] == sender.messages[0].id
    assert (first["alert"]["rule"], first["alert"]["severity"], first["alert"]["state"]) == (
        "oldest_task",
        "warning",
        "open",
    )
    assert first["alert"]["advice"]
    assert json.loads(sender.messages[2].body)["alert"]["resolved_at"]
    assert await webhooks.deliver(database, sender) == 0


async def test_attempts_that_never_come_to_an_end_are_given_up_as_well(database: Database) -> None:
    alert = await opened(database)
    for _ in range(EAGER.attempts):
        async with database.transaction() as connection:
            assert len(await store.claim(connection, EAGER)) == 1
        await execute(database, "UPDATE webhook_deliveries SET due_at = now()")
    sender = Recorder()
    assert await webhooks.deliver(database, sender, EAGER) == 0
    (given_up,) = await deliveries(database, alert)
    assert (sender.messages, given_up.due_at) == ([], None)
    assert given_up.given_up_at is not None


async def test_without_a_webhook_nothing_is_written(database: Database) -> None:
    await neglect_task(database, 11)
    await observe(database)
    assert await value(database, "SELECT count(*) FROM webhook_deliveries") == 0


async def test_a_kill_between_the_alert_and_the_outbox_leaves_neither(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    await neglect_task(database, 11)
    monkeypatch.setattr(webhooks, "enqueue", killed)
    with pytest.raises(RuntimeError):
        await observe_with_webhooks(database)
    monkeypatch.undo()
    counts = "SELECT ARRAY[(SELECT count(*) FROM alerts), (SELECT count(*) FROM webhook_deliveries)]"
    assert await value(database, counts) == [0, 0]
    await observe_with_webhooks(database)
    assert await value(database, counts) == [1, 1]


async def test_a_failure_is_tried_again_under_the_same_id(database: Database) -> None:
    alert, sender = await opened(database), Recorder(failures=2)
    assert await webhooks.deliver(database, sender, EAGER) == 1
    assert len({message.id for message in sender.messages}) == 1
    assert len({message.body for message in sender.messages}) == 1
    (delivery,) = await deliveries(database, alert)
    assert (delivery.attempts, delivery.due_at, delivery.last_error) == (3, None, None)
    assert delivery.delivered_at is not None


async def test_it_is_given_up_after_a_while_and_shown(database: Database) -> None:
    alert, sender = await opened(database), Recorder(failures=99)
    assert await webhooks.deliver(database, sender, EAGER) == 0
    assert len(sender.messages) == EAGER.attempts
    (delivery,) = await deliveries(database, alert)
    assert delivery.due_at is delivery.delivered_at is None
    assert delivery.given_up_at is not None
    assert delivery.last_error == "hooks.example.org answered 500"


async def test_a_wait_is_kept(database: Database) -> None:
    alert, sender = await opened(database), Recorder(failures=1)
    await webhooks.deliver(database, sender, WebhookPolicy(base=3600, cap=3600))
    await execute(database, "UPDATE webhook_deliveries SET due_at = now() + interval '1 min'")
    assert await webhooks.deliver(database, sender) == 0
    assert len(sender.messages) == 1
    (delivery,) = await deliveries(database, alert)
    assert delivery.last_error is not None


async def test_no_wait_outlasts_a_clock_that_is_set_back(database: Database) -> None:
    await opened(database)
    sender = Recorder(failures=1)
    await webhooks.deliver(database, sender)
    await execute(database, "UPDATE webhook_deliveries SET due_at = now() + interval '3 h'")
    assert await webhooks.deliver(database, sender) == 1


async def test_a_kill_after_the_claim_has_it_sent_again_when_the_claim_is_over(database: Database) -> None:
    alert = await opened(database)
    async with database.transaction() as connection:
        (claimed,) = await store.claim(connection, WebhookPolicy())
    sender = Recorder()
    assert await webhooks.deliver(database, sender) == 0, "somebody is at it"
    await execute(database, "UPDATE webhook_deliveries SET due_at = now()")
    assert await webhooks.deliver(database, sender) == 1
    assert sender.messages[0].id == str(claimed.id)
    async with database.transaction() as connection:
        assert not await store.confirm(connection, claimed), "the one that was thought dead comes too late"
        assert not await store.postpone(connection, claimed, None, "late")
    (delivery,) = await deliveries(database, alert)
    assert (delivery.attempts, delivery.given_up_at) == (2, None)


async def test_of_two_that_have_claimed_it_the_later_one_says_what_became_of_it(database: Database) -> None:
    await opened(database)
    async with database.transaction() as connection:
        (first,) = await store.claim(connection, WebhookPolicy(claim_seconds=0))
    async with database.transaction() as connection:
        (second,) = await store.claim(connection, WebhookPolicy())
        assert not await store.postpone(connection, first, None, "late")
        assert not await store.confirm(connection, first)
        assert await store.confirm(connection, second)


async def test_two_replicas_at_once_send_each_once(database: Database, replica: Database) -> None:
    async with database.transaction() as connection:
        for n in range(12):
            body = json.dumps({"kind": str(n)})
            await store.add_delivery(connection, UUID(int=n), alert_id=n, kind=AlertKind.OPENED, body=body)
    senders = [Recorder(), Recorder()]
    counts = await asyncio.gather(
        *(webhooks.deliver(db, sender) for db, sender in zip((database, replica), senders, strict=True))
    )
    assert sum(counts) == 12
    sent = [message.id for sender in senders for message in sender.messages]
    assert sorted(sent) == sorted(str(UUID(int=n)) for n in range(12))


async def test_of_an_alert_the_end_waits_for_the_beginning(database: Database) -> None:
    alert = await opened(database)
    await resolved(database, alert)
    other, sender = UUID(int=7), Recorder(failures=1)
    async with database.transaction() as connection:
        await store.add_delivery(
            connection, other, alert_id=alert.id + 1, kind=AlertKind.OPENED, body='{"kind": "other"}'
        )
    await webhooks.deliver(database, sender, WebhookPolicy(base=3600, cap=3600, at_once=1))
    assert sender.kinds == ["alert.opened", "other"], "others do not wait"
    await execute(database, "UPDATE webhook_deliveries SET due_at = now() WHERE due_at IS NOT NULL")
    await webhooks.deliver(database, sender)
    assert sender.kinds == ["alert.opened", "other", "alert.opened", "alert.resolved"]


async def test_the_old_are_forgotten(database: Database) -> None:
    await opened(database)
    await execute(database, "UPDATE webhook_deliveries SET created_at = now() - interval '99 d'")
    async with database.transaction() as connection:
        assert await store.prune(connection, 30) == 1
    assert await fetch(database, "SELECT id FROM webhook_deliveries") == []
