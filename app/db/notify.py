"""Announcements after a commit: LISTEN/NOTIFY outside the writing transaction, coalesced.

NOTIFY inside a writing transaction takes a lock that serializes all commits, so writers only note topics, and the
Database announces them after the commit. A lost announcement costs time, never correctness: every listener also polls.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from uuid import uuid4

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from app.kernel.lanes import Lane
from app.outage import Outage

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
# Alerts, pauses, and language models that people have set or reset: what pages show beside all this.
STATUS = "status"
WEBHOOKS = "webhooks"
RESOURCES = "resources"
# Not announced: the connection for announcements was made, which finds soon that another server was promoted.
CONNECTED = "connected"
WORK = "work"
_NEWS = "convener_announcements"
_LOCKED = "convener_locked_work"
_COALESCE_SECONDS = 0.01
# Without news the connection is tried this often.
_LOOK_SECONDS = 2.0
_ANSWER_SECONDS = 4.0

# Topic -> 0, or for work in a lane the lowest tag at which there may be some.
News = Mapping[str, float]


def work(lane: Lane) -> str:
    """Topic for work in a lane."""
    plain = f"{WORK}:{lane.agent_type.value}:{lane.priority.value}"
    return f"{plain}:{lane.resource_class}" if lane.resource_class else plain


def note(connection: AsyncConnection, *topics: str) -> None:
    """Note topics, to be announced after the commit of this transaction."""
    _merge(connection.info.setdefault(_NEWS, {}), dict.fromkeys(topics, 0.0))


def note_work(connection: AsyncConnection, tags: Mapping[Lane, float]) -> None:
    """Note the lowest tags of tasks that became ready, by lane, to be announced after the commit."""
    _merge(connection.info.setdefault(_NEWS, {}), {work(lane): tag for lane, tag in tags.items()})


def note_locked_work(connection: AsyncConnection, tags: Mapping[Lane, float]) -> None:
    """Note the lowest tags of ready tasks that are locked now, which claims pass over until the transaction has ended.

    They are announced then, be it committed or not.
    """
    note_work(connection, tags)
    _merge(connection.info.setdefault(_LOCKED, {}), {work(lane): tag for lane, tag in tags.items()})


def begin_locked_work(connection: AsyncConnection) -> News:
    """The news of locked work that will be noted on this connection from now on."""
    news: dict[str, float] = {}
    connection.info[_LOCKED] = news
    return news


def pop_news(connection: AsyncConnection) -> dict[str, float]:
    """Return the news noted on this connection, and forget it."""
    news: dict[str, float] = connection.info.pop(_NEWS, {})
    return news


def _merge(news: dict[str, float], additions: News) -> None:
    for topic, tag in additions.items():
        news[topic] = min(tag, news.get(topic, tag))


class Announcer:
    """Announces news to listeners in this process at once, and to other processes within about 10 ms.

    Its connection is never idle for long: when the database does not answer on it any more, it calls `on_silence`.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable["asyncpg.Connection[asyncpg.Record]"]],
        on_silence: Callable[[], None] = lambda: None,
        outage: Outage | None = None,
    ) -> None:
        self._connect = connect
        self._on_silence = on_silence
        self._outage = outage or Outage()
        self._level = logging.WARNING
        self._listeners: list[Callable[[News], None]] = []
        self._outgoing: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._sender = uuid4().hex
        self._task: asyncio.Task[None] | None = None
        self.backend: int | None = None
        """Process of the server at the other end of its connection; None while there is none."""
        self.on_connection: list[Callable[[], object]] = []
        """Called whenever its connection was made, maybe to another server."""

    def subscribe(self, listener: Callable[[News], None]) -> None:
        """Call `listener` with the topics and tags of every announcement, this process's own included."""
        self._listeners.append(listener)

    def unsubscribe(self, listener: Callable[[News], None]) -> None:
        """Stop calling `listener`."""
        self._listeners.remove(listener)

    def announce(self, news: News | Collection[str]) -> None:
        """Announce news, or topics, to all processes; return at once."""
        if news:
            tags = news if isinstance(news, Mapping) else dict.fromkeys(news, 0.0)
            self._call_listeners(tags)
            _merge(self._outgoing, tags)
            self._wake.set()

    def start(self) -> None:
        """Begin to listen and send, unless that has begun, and reconnect whenever the connection is lost."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="announcements")

    async def stop(self) -> None:
        """Stop listening and sending."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self._exchange()
            # When a server hangs up, any of these may come, depending on how much of its last message has been read.
            except (
                OSError,
                TimeoutError,
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
            ) as e:
                if isinstance(e, OSError | asyncpg.PostgresConnectionError | asyncpg.InterfaceError):
                    self._outage.note_failure(e)
                    self._level = logging.DEBUG
                # Once, and not for every try to connect again.
                log.log(self._level, "announcements: connection lost (%s), trying again", type(e).__name__)
                self._level = logging.DEBUG
            except Exception:
                # Nothing would start this task again: the process would get no announcements until its end.
                log.exception("announcements stumbled, trying again")
            await asyncio.sleep(0.5)

    async def _exchange(self) -> None:
        connection = await self._connect()
        try:
            await connection.add_listener(CHANNEL, self._on_message)
            self.backend = connection.get_server_pid()
            self._level = logging.WARNING
            self._outage.note_answer()
            for call in self.on_connection:
                call()
            connection.add_termination_listener(lambda *_: self._wake.set())
            while not connection.is_closed():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._wake.wait()
                await asyncio.sleep(_COALESCE_SECONDS)
                await self._send(connection)
        except TimeoutError:
            log.warning("the database has not answered for %g s: all connections to it are made anew", _ANSWER_SECONDS)
            self._on_silence()
        finally:
            self.backend = None
            connection.terminate()

    async def _send(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._wake.clear()
        news, self._outgoing = self._outgoing, {}
        if news:
            message = json.dumps({"from": self._sender, "news": news})
            await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, message, timeout=_ANSWER_SECONDS)
        else:
            # To listen once more changes nothing, and has to be answered.
            await connection.execute(f"LISTEN {CHANNEL}", timeout=_ANSWER_SECONDS)

    def _on_message(self, _connection: object, _pid: int, _channel: str, message: object) -> None:
        try:
            content = json.loads(str(message))
            sender, news = content["from"], {str(topic): float(tag) for topic, tag in content["news"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("announcements: ignored a message that is not ours")
            return
        if sender != self._sender:
            self._call_listeners(news)

    def _call_listeners(self, news: News) -> None:
        for listener in tuple(self._listeners):
            listener(news)
