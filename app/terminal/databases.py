"""Work on the database itself, for commands that need no running service: the first key, and migrations."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from app.kernel.errors import ConvenerError, DatabaseUnavailable, KeyNotFound
from app.terminal.connection import settings
from app.terminal.failures import ExitCode, Failure

if TYPE_CHECKING:
    from app.db.database import Database


T = TypeVar("T")


Bundled = Annotated[
    bool, typer.Option("--bundled", help="into a new PostgreSQL in the state directory, for `convener up`")
]


def database_url() -> str:
    """The address from the environment. Raises Failure that says how to come by one."""
    url = settings().database_url
    if url is None:
        raise Failure(
            "CONVENER_DATABASE_URL is not set",
            ExitCode.USAGE,
            hint="set it to your PostgreSQL 15 or newer, like postgresql://user@host/convener; "
            "or run `convener up`, which brings its own",
        )
    return url


def on_database(work: "Callable[[Database], Awaitable[T]]", url: str | None = None) -> T:
    """The outcome of `work` on the database, by default the one of the environment.

    Raises Failure when it cannot be reached, or refuses.
    """
    return asyncio.run(_on(url or database_url(), work))


@contextmanager
def tried() -> Iterator[None]:
    """Within, what could not be done with a backup, a checkpoint or a bundled PostgreSQL becomes a Failure."""
    from app.kernel.errors import Refused
    from app.postgres.errors import DumpFailed, EmbeddedError

    try:
        yield
    except Refused as refused:
        raise Failure(str(refused), ExitCode.REFUSED, hint=refused.hint) from None
    except DumpFailed as failed:
        hint = "the programs must be of the server's version or newer, to dump, and of its own, to restore; "
        hint += "CONVENER_POSTGRES_BIN names the directory that holds them"
        raise Failure(str(failed), ExitCode.REFUSED, hint=hint) from None
    except EmbeddedError as unusable:
        raise Failure(str(unusable), ExitCode.USAGE) from None


async def _on(url: str, work: "Callable[[Database], Awaitable[T]]") -> T:
    # Imported here because it takes longer than everything that other commands do.
    import asyncpg
    from sqlalchemy.exc import SQLAlchemyError

    from app.db.database import Database, in_domain_words

    try:
        database = Database(url)
    except ValueError as error:
        raise Failure(str(error), ExitCode.USAGE) from None
    try:
        return await work(database)
    except KeyNotFound as error:
        raise Failure(error.detail, ExitCode.NOT_FOUND, hint="`convener key ls` lists the keys") from None
    except (ConvenerError, SQLAlchemyError, asyncpg.PostgresError, OSError, TimeoutError) as error:
        raise _failure(error if isinstance(error, ConvenerError) else in_domain_words(error), error) from error
    finally:
        await database.close()


def _failure(translated: Exception, error: Exception) -> Failure:
    cause = error.__cause__ if isinstance(error, DatabaseUnavailable) and error.__cause__ else error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    if isinstance(translated, DatabaseUnavailable):
        hint = "is it running, and is CONVENER_DATABASE_URL its address?"
        return Failure("the database cannot be reached", ExitCode.UNREACHABLE, details=lines[:1], hint=hint)
    hint = "`convener db status` tells whether its schema is the one that this version needs"
    return Failure("the database refused", ExitCode.REFUSED, details=lines[:1], hint=hint)


def bundled_url() -> str | None:
    """The address of the bundled PostgreSQL, where no other one is named; None if it never ran."""
    from app.postgres.binaries import find_binaries
    from app.postgres.cluster import Cluster
    from app.postgres.errors import BinariesMissing

    configured = settings()
    if configured.database_url is not None:
        return None
    try:
        binaries = find_binaries(str(configured.postgres_bin) if configured.postgres_bin else None)
        cluster = Cluster(directory=configured.state_directory / "postgres", binaries=binaries)
        return cluster.url if cluster.port is not None else None
    except (BinariesMissing, OSError):
        return None


@contextmanager
def new_server() -> Iterator[str]:
    """The address of an empty database on a new bundled PostgreSQL, which `convener up` will find when it is stopped.

    After an error nothing is left of it. Raises Failure where the state directory has one already, EmbeddedError.
    """
    from app.postgres.binaries import find_binaries
    from app.postgres.cluster import Cluster
    from app.postgres.server import Server

    configured = settings()
    binaries = find_binaries(str(configured.postgres_bin) if configured.postgres_bin else None)
    cluster = Cluster(directory=configured.state_directory / "postgres", binaries=binaries)
    with cluster.acquire():
        if not cluster.initialise():
            hint = "name another, which is to be made, as CONVENER_STATE_DIRECTORY"
            raise Failure(f"there is a database in {configured.state_directory} already", ExitCode.REFUSED, hint=hint)
        server = Server(cluster=cluster)
        try:
            asyncio.run(server.start())
            yield server.url
        except BaseException:
            asyncio.run(server.stop())
            shutil.rmtree(cluster.data.parent, ignore_errors=True)
            raise
        asyncio.run(server.stop())
