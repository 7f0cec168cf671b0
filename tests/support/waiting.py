"""Workers that wait at a broker."""

from app.queue.broker.broker import Broker
from tests.support.sql import until


async def until_waiting(broker: Broker, count: int = 1) -> None:
    """Return once so many workers wait and nothing more is tried for any of them."""

    async def wait() -> bool:
        return broker.waiting_count >= count and not any(w.is_new or w.in_flight for w in broker._waiters.values())

    await until(wait)
