"""Work on the database itself, for commands that need no running service, such as making the first key."""

import asyncio
import os
import pwd
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from app.kernel.errors import ConvenerError, DatabaseUnavailable, KeyNotFound
from app.kernel.refused_writes import MEANINGS, REMEDIES, WriteTrouble, trouble_of
from app.settings import Settings
from app.settings_sources import SettingsError
from app.terminal.connection import settings, settings_failure
from app.terminal.failures import ExitCode, Failure, failure_of_file, first_line

if TYPE_CHECKING:
    from app.db.database import Database
    from app.postgres.cluster import Cluster


T = TypeVar("T")
_CHECK_SECONDS = 6.0
_IS_IT_THERE = "is it running, and is CONVENER_DATABASE_URL its address?"


def author(command: str) -> str:
    """The author of a change on the database itself, for the audit log: the command, and who runs it where."""
    # Not getpass, which believes LOGNAME of the environment.
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user id that has no name, as in many containers
        user = str(os.getuid())
    return f"{command} by {user}@{socket.gethostname()}"


def database_url() -> str:
    """The address from the environment, past any connection pooler. Raises Failure that says how to get one."""
    url = settings().session_url
    if url is None:
        raise Failure(
            "CONVENER_DATABASE_URL is not set",
            ExitCode.USAGE,
            hint="set it to your PostgreSQL 15 or newer, like postgresql://user@host/convener; "
            "or run `convener up`, which brings its own",
        )
    return url


def on_database(work: "Callable[[Database], Awaitable[T]]", url: str | None) -> T:
    """The result of `work` on the database at `url`, or else the one that the environment names.

    Raises Failure when it cannot be reached, or refuses.
    """
    try:
        return asyncio.run(_on(url or database_url(), work))
    except Failure as failure:
        values = settings()
        if failure.hint == _IS_IT_THERE and values.database_url is None:  # then it was the bundled one
            failure.hint = f"`convener up` starts the PostgreSQL in {values.state_directory}"
        raise


@contextmanager
def as_failures() -> Iterator[None]:
    """Turn errors of backups, checkpoints and the bundled PostgreSQL inside the block into Failures."""
    from app.kernel.errors import Refused
    from app.postgres.errors import DumpFailed, EmbeddedError

    try:
        yield
    except Refused as error:
        raise Failure(str(error), ExitCode.REFUSED, hint=error.hint) from None
    except DumpFailed as error:
        raise Failure(str(error), ExitCode.REFUSED) from None
    except EmbeddedError as error:
        raise Failure(str(error), ExitCode.USAGE) from None


async def _on(url: str, work: "Callable[[Database], Awaitable[T]]", direct_url: str | None = None) -> T:
    # Imported here because it takes longer than everything that other commands do.
    import asyncpg
    from sqlalchemy.exc import SQLAlchemyError

    from app.db.database import Database, translate_error

    try:
        database = Database(url, direct_url=direct_url)
    except ValueError as error:
        raise Failure(str(error), ExitCode.USAGE) from None
    database.outage.is_logged = False  # the command itself tells of it
    try:
        return await work(database)
    except KeyNotFound as error:
        raise Failure(error.detail, ExitCode.NOT_FOUND, hint="`convener key ls` lists the keys") from None
    except (ConvenerError, SQLAlchemyError, asyncpg.PostgresError, OSError, TimeoutError) as error:
        raise database_failure(error if isinstance(error, ConvenerError) else translate_error(error), error) from error
    finally:
        await database.close()


def database_failure(domain_error: Exception, error: Exception) -> Failure:
    """The failure of a command for an error of the database, and what the domain calls it."""
    # The driver's words say more than the domain's. Only their first line: the next ones hold statement and parameters.
    cause = error.__cause__ if isinstance(error, DatabaseUnavailable) and error.__cause__ else error
    line = first_line(getattr(cause, "orig", cause))
    line = line.partition(">: ")[2] or line  # before it the name of a class of the driver
    # Classes of the SQL standard; whoever is not let in learns nothing of the schema.
    sqlstate = str(getattr(getattr(cause, "orig", cause), "sqlstate", None) or "")
    if trouble := _pooler_trouble(sqlstate, line):
        return trouble
    # The driver's class, known by its name as whoever has no database imports no driver; PostgreSQL's undefined object.
    driver_error = getattr(getattr(cause, "orig", cause), "__cause__", None) or cause
    is_unreadable = type(driver_error).__name__ == "ClientConfigurationError"
    if is_unreadable or (sqlstate == "42704" and "configuration parameter" in line):
        hint = "correct what follows ? in CONVENER_DATABASE_URL, or the variable of PostgreSQL, such as PGSSLMODE"
        return Failure("the address of the database makes no sense", ExitCode.USAGE, details=[line], hint=hint)
    if refused := trouble_of(sqlstate, line):
        code = ExitCode.REFUSED if refused is WriteTrouble.READ_ONLY else ExitCode.UNREACHABLE
        return Failure(MEANINGS[refused], code, details=[line], hint=REMEDIES[refused])
    if sqlstate == "53300":
        hint = (
            "raise max_connections of the server, or CONNECTION LIMIT of the role or the database: an API process "
            "takes up to 31 and loops 13"
        )
        return Failure("the database has no connection left for us", ExitCode.UNREACHABLE, details=[line], hint=hint)
    if sqlstate.startswith("28"):
        hint = "look at user and password in CONVENER_DATABASE_URL, its database too, and CONVENER_DATABASE_PASSWORD"
    elif sqlstate.startswith("3D"):
        hint = "make the database, or correct its name in CONVENER_DATABASE_URL"
    elif isinstance(domain_error, DatabaseUnavailable):
        return Failure("the database cannot be reached", ExitCode.UNREACHABLE, details=[line], hint=_IS_IT_THERE)
    else:
        hint = "`convener db status` tells whether its schema is the one that this version needs"
    return Failure("the database refused", ExitCode.REFUSED, details=[line], hint=hint)


def _pooler_trouble(sqlstate: str, line: str) -> Failure | None:
    """The failure for an error that only a connection pooler between us and the database makes."""
    from app.db import pooler

    # Protocol violation: its class is also that of broken connections.
    if sqlstate == "08P01" and "unsupported startup parameter" in line:
        message = "CONVENER_DATABASE_URL leads to a connection pooler"
        return Failure(message, ExitCode.REFUSED, details=[line], hint=pooler.DEAF_REMEDY)
    if sqlstate in ("26000", "42P05"):
        return Failure(pooler.FORGETFUL, ExitCode.REFUSED, details=[line], hint=pooler.FORGETFUL_REMEDY)
    return None


def start_failure(error: Exception) -> Failure:
    """The failure of a program that could not start, for an error of its settings, its files or the database."""
    if isinstance(error, SettingsError):
        return settings_failure(error)
    if isinstance(error, OSError) and (failure := failure_of_file(error)) is not None:
        if error.filename:
            failure.hint = (
                "choose another place with --state or CONVENER_STATE_DIRECTORY, make room there or mend its rights"
            )
        return failure
    from app.db.database import translate_error

    return database_failure(error if isinstance(error, ConvenerError) else translate_error(error), error)


def ends_by_failure(program: Callable[[], None]) -> None:
    """Run the entry point of a program; a Failure ends the process in words, with the code of a command."""
    try:
        program()
    except Failure as failure:
        failure.show()
        raise SystemExit(failure.code) from None


async def check_database(url: str, direct_url: str | None = None) -> None:
    """Raise Failure where the database lets nobody in or does not fit; one that is away is waited for elsewhere.

    What does not work because of a connection pooler is logged.
    """
    from app.db import pooler, schema

    async def look(database: "Database") -> tuple[str | None, bool]:
        revision = await schema.revision(database.engine)
        if revision is not None:
            await pooler.warn_of_shortcomings(database)
        return revision, revision == schema.head() or await schema.is_served(database.engine, revision)

    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            revision, fits = await _on(url, look, direct_url)
    except TimeoutError:
        return
    except Failure as failure:
        if failure.code is ExitCode.UNREACHABLE:
            return
        raise
    if revision is None:
        hint = "`convener db migrate` makes it"
        raise Failure("the database has no schema of Convener", ExitCode.REFUSED, hint=hint)
    if not fits:
        message = f"the schema is at {revision}, and this version needs {schema.head()}"
        raise Failure(message, ExitCode.REFUSED, hint=schema.remedy(revision))


def _cluster(values: Settings) -> "Cluster":
    from app.postgres.binaries import find_binaries
    from app.postgres.cluster import Cluster

    binaries = find_binaries(values.postgres_bin)
    return Cluster(directory=values.state_directory / "postgres", binaries=binaries)


def bundled_url() -> str | None:
    """The address of the bundled PostgreSQL; None if it never ran, or if the environment names another one."""
    from app.postgres.errors import BinariesMissing

    values = settings()
    if values.database_url is not None:
        return None
    try:
        cluster = _cluster(values)
        return cluster.own_url if cluster.port is not None else None
    except (BinariesMissing, OSError):  # then nothing bundled can be running, and the caller says what is missing
        return None


@contextmanager
def new_server() -> Iterator[str]:
    """Start a new bundled PostgreSQL for the block and yield the address of its empty database; stop it afterwards.

    `convener up` goes on with it; after an error nothing is left of it. Raises Failure where the state directory has
    one already, EmbeddedError. What a killed restore has left goes first.
    """
    from app.postgres.configuration import socket_directory
    from app.postgres.errors import DumpFailed
    from app.postgres.server import Server, clean_up

    values = settings()
    cluster = _cluster(values)
    with cluster.lock():
        if cluster.restore_mark.exists():
            clean_up(cluster.data, socket_directory(cluster.directory))
            shutil.rmtree(cluster.data.parent, ignore_errors=True)
        if cluster.is_initialised:
            hint = "name another, which is to be made, as CONVENER_STATE_DIRECTORY"
            raise Failure(f"there is a database in {values.state_directory} already", ExitCode.REFUSED, hint=hint)
        # Half a restore must not be taken for a database, neither after Ctrl-C nor after kill -9.
        cluster.restore_mark.touch()
        server = Server(cluster=cluster)
        try:
            cluster.initialise()
            asyncio.run(server.start())
            yield server.url
        except BaseException as error:
            is_full = isinstance(error, DumpFailed | Failure) and server.lacks_room()
            asyncio.run(server.stop())
            shutil.rmtree(cluster.data.parent, ignore_errors=True)
            cluster.restore_mark.unlink()  # not where a second Ctrl-C has left some of it
            if is_full:
                hint = f"make room on the disk of {cluster.directory}, and repeat it: nothing of it is left"
                raise Failure(f"there was no room for the database: {error}", ExitCode.REFUSED, hint=hint) from error
            raise
        asyncio.run(server.stop())
        cluster.restore_mark.unlink()
