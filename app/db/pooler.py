"""Shortcomings of a connection pooler, such as pgbouncer, found by trying what we need."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from uuid import uuid4

import asyncpg

from app.db.connections import Connections
from app.db.database import HOT, Database, is_outage

log = logging.getLogger(__name__)
DEAF = "announcements do not arrive: LISTEN goes through a connection pooler, so that work and events are found later"
DEAF_REMEDY = "set CONVENER_DATABASE_DIRECT_URL to the address of PostgreSQL itself"
FORGETFUL = "the connection pooler does not keep prepared statements"
FORGETFUL_REMEDY = "take pgbouncer 1.21 or newer, with max_prepared_statements above 0"
UNSET_REMEDY = "give its database the connect_query of deploy/pgbouncer/databases.ini"
APART = "CONVENER_DATABASE_URL and CONVENER_DATABASE_DIRECT_URL lead to different servers"
APART_REMEDY = "let both lead to the primary; after a failover the pooler has to be told of the new one"
_HEARING_SECONDS = 1.5
_PROBE_SECONDS = 5.0
# Without a pooler none of them ever gets the session of another.
_MOST_CLIENTS = 3

Connect = Callable[[], Awaitable["asyncpg.Connection[asyncpg.Record]"]]

_SETTINGS = "SELECT name, setting FROM pg_settings WHERE name = ANY ($1::text[])"
_BACKEND = "SELECT pg_backend_pid()"
_SERVER = "SELECT pg_postmaster_start_time()::text || ' ' || current_database()"


def unset(names: Mapping[str, str]) -> str:
    """The sentence for settings of the session that the pooler has otherwise."""
    return f"sessions behind the connection pooler have other settings than ours: {', '.join(sorted(names))}"


async def hears(connect: Connect) -> bool:
    """Whether a connection that listens hears what another one announces while it is idle itself.

    Behind a pooler of transactions it has no session while it is idle. To announce over the listening connection would
    prove nothing, as the pooler may lend it the same session once more.
    """
    channel, heard = f"convener_probe_{uuid4().hex}", asyncio.Event()
    listener = await connect()
    try:
        await listener.add_listener(channel, lambda *_: heard.set())
        speaker = await connect()
        try:
            await speaker.execute("SELECT pg_notify($1, '')", channel)
            async with asyncio.timeout(_HEARING_SECONDS):
                await heard.wait()
        except TimeoutError:
            return False
        finally:
            speaker.terminate()
    finally:
        listener.terminate()
    return True


async def keeps_statements(connect: Connect) -> bool:
    """Whether a statement that was prepared can be executed where another client has the session that prepared it."""
    async with AsyncExitStack() as stack:
        client = await connect()
        stack.callback(client.terminate)
        async with client.transaction():
            statement = await client.prepare(_BACKEND)
            backend = await statement.fetchval()
        try:
            for _ in range(_MOST_CLIENTS):
                other = await connect()
                stack.callback(other.terminate)
                await stack.enter_async_context(other.transaction())
                if await other.fetchval(_BACKEND) == backend:
                    break
            await statement.fetchval()
        except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError):
            return False
    return True


async def unset_settings(connect: Connect) -> dict[str, str]:
    """Settings that statements without a transaction have otherwise than a session of our own has them."""
    expected = Connections.session_settings(HOT)
    connection = await connect()
    try:
        actual = {row["name"]: row["setting"] for row in await connection.fetch(_SETTINGS, list(expected))}
    finally:
        connection.terminate()
    return {name: actual[name] for name in expected if name in actual and actual[name] != expected[name]}


async def are_one_server(*connects: Connect) -> bool:
    """Whether all of them lead to the same database of the same run of one server."""
    servers = set()
    for connect in connects:
        connection = await connect()
        try:
            servers.add(await connection.fetchval(_SERVER))
        finally:
            connection.terminate()
    return len(servers) == 1


async def shortcomings(database: Database) -> dict[str, str]:
    """Sentences of what does not work because of a pooler, with what helps. Raises as the driver does, TimeoutError."""
    remedies: dict[str, str] = {}
    async with asyncio.timeout(_PROBE_SECONDS):
        if not await hears(database.connect):
            remedies[DEAF] = DEAF_REMEDY
        has_pooler = bool(remedies) or database.direct_url is not None
        if has_pooler and not await keeps_statements(database.connect_for_statements):
            return remedies | {FORGETFUL: FORGETFUL_REMEDY}
        if names := await unset_settings(database.connect_for_statements):
            remedies[unset(names)] = UNSET_REMEDY
        if database.direct_url and not await are_one_server(database.connect, database.connect_for_statements):
            remedies[APART] = APART_REMEDY
    return remedies


async def warn_of_shortcomings(database: Database) -> None:
    """Log a warning for each; does nothing while the database is away."""
    try:
        remedies = await shortcomings(database)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        if not is_outage(error):
            log.warning("what a connection pooler takes away could not be found out (%s)", type(error).__name__)
        return
    for sentence, remedy in remedies.items():
        log.warning("%s; %s", sentence, remedy)
