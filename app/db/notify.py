"""Waking others after a commit: LISTEN/NOTIFY outside the writing transaction, coalesced.

NOTIFY inside a writing transaction takes a lock that serialises all committers, so writers only note a topic;
the database object hands the notes on once their transaction has committed. A lost note costs latency, never
correctness: every listener also polls.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from uuid import uuid4

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.lanes import Lane

log = logging.getLogger(__name__)

CHANNEL = "convener"
EVENTS = "events"
FLEET = "fleet"
LAUNCHES = "launches"
KEYS = "keys"
CONFIG = "config"
WEIGHTS = "weights"
BURST = "burst"
GOALS = "goals"
WEBHOOKS = "webhooks"
WORK = "work"
_NOTED = "convener_announcements"
_COALESCE_SECONDS = 0.01


# What is announced: a topic, and for work the lowest tag at which there may be some.
News = Mapping[str, float]


def work(lane: Lane) -> str:
    """The topic that says: there may be work in this lane."""
    return f"{WORK}:{lane.agent_type.value}:{lane.priority.value}"


def note(connection: AsyncConnection, *topics: str) -> None:
    """Remember topics to announce once this transaction has committed."""
    _merge(connection.info.setdefault(_NOTED, {}), dict.fromkeys(topics, 0.0))


def note_work(connection: AsyncConnection, tags: Mapping[Lane, float]) -> None:
    """Remember to announce, once this transaction has committed, that tasks wait: lane -> the lowest of their tags."""
    _merge(connection.info.setdefault(_NOTED, {}), {work(lane): tag for lane, tag in tags.items()})


def take_notes(connection: AsyncConnection) -> dict[str, float]:
    """The news noted on this connection, which is forgotten now."""
    noted: dict[str, float] = connection.info.pop(_NOTED, {})
    return noted


def _merge(news: dict[str, float], more: News) -> None:
    for topic, tag in more.items():
        news[topic] = min(tag, news.get(topic, tag))


class Announcer:
    """Tells this process at once, and the others within about 10 ms."""

    def __init__(self, connect: Callable[[], Awaitable["asyncpg.Connection[asyncpg.Record]"]]) -> None:
        self._connect = connect
        self._listeners: list[Callable[[News], None]] = []
        self._outgoing: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._sender = uuid4().hex
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, listener: Callable[[News], None]) -> None:
        """Call `listener` with the topics and tags of every announcement, this process's own included."""
        self._listeners.append(listener)

    def unsubscribe(self, listener: Callable[[News], None]) -> None:
        """Stop calling `listener`."""
        self._listeners.remove(listener)

    def announce(self, news: News | Collection[str]) -> None:
        """Tell everybody; returns at once."""
        if news:
            told = news if isinstance(news, Mapping) else dict.fromkeys(news, 0.0)
            self._tell(told)
            _merge(self._outgoing, told)
            self._wake.set()

    def start(self) -> None:
        """Begin to listen and to send, reconnecting for as long as it takes."""
        self._task = asyncio.create_task(self._run(), name="announcements")

    async def stop(self) -> None:
        """Stop listening and sending."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self._exchange()
            # A server that hangs up makes itself known as any of these, by how much of its farewell has been read.
            except (
                OSError,
                TimeoutError,
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
            ) as e:
                log.warning("announcements: connection lost (%s), trying again", type(e).__name__)
            except Exception:
                # Nobody would start it again: this process would be deaf until its end.
                log.exception("announcements stumbled, trying again")
            await asyncio.sleep(0.5)

    async def _exchange(self) -> None:
        connection = await self._connect()
        try:
            await connection.execute("SET statement_timeout = 5000")
            await connection.add_listener(CHANNEL, self._hear)
            connection.add_termination_listener(lambda *_: self._wake.set())
            while not connection.is_closed():
                await self._wake.wait()
                await asyncio.sleep(_COALESCE_SECONDS)
                await self._send(connection)
        finally:
            connection.terminate()

    async def _send(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._wake.clear()
        news, self._outgoing = self._outgoing, {}
        if news:
            message = json.dumps({"from": self._sender, "news": news})
            await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, message)

    def _hear(self, _connection: object, _pid: int, _channel: str, message: object) -> None:
        try:
            heard = json.loads(str(message))
            sender, news = heard["from"], {str(topic): float(tag) for topic, tag in heard["news"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("announcements: ignored a message that is not ours")
            return
        if sender != self._sender:
            self._tell(news)

    def _tell(self, news: News) -> None:
        for listener in tuple(self._listeners):
            listener(news)
