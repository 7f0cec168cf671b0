"""The webhook in the schedule: a change is on its way as soon as it has been committed."""

from app.db.database import Database
from app.health.service.delivery import Message
from app.loops.schedule import webhook_jobs
from tests.health.service.test_webhooks import opened
from tests.support.runner import running
from tests.support.sql import until, value


class Recorder:
    """A sender that remembers."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def deliver(self, message: Message) -> None:
        self.messages.append(message)


async def test_what_is_written_down_is_delivered(database: Database) -> None:
    recorder = Recorder()
    async with running(database, *webhook_jobs(recorder)):
        await opened(database)

        async def delivered() -> bool:
            return bool(await value(database, "SELECT count(*) FROM webhook_deliveries WHERE delivered_at IS NOT NULL"))

        await until(delivered)
    assert len(recorder.messages) == 1
