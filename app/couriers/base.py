"""What every courier can do."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is told; a message that is sent again keeps its id. `at` is when it is sent, by the database's clock."""

    id: str
    at: datetime
    body: bytes


class NotDelivered(Exception):
    """The other side has not confirmed it; the message says why, and holds nothing that is secret."""


class Courier(Protocol):
    """Delivers messages."""

    async def deliver(self, message: Message) -> None:
        """Return once the other side has confirmed it. Raises NotDelivered."""
        ...
