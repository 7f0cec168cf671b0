"""The bundled PostgreSQL of this machine, for commands that work on the database without `convener up`."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from app.cli.access import settings
from app.cli.failures import ExitCode, Failure

Bundled = Annotated[
    bool, typer.Option("--bundled", help="into a new PostgreSQL in the state directory, for `convener up`")
]


def bundled_url() -> str | None:
    """The address of the bundled PostgreSQL, where no other one is named; None if it never ran."""
    from app.embedded.binaries import find_binaries
    from app.embedded.cluster import Cluster
    from app.embedded.errors import BinariesMissing

    known = settings()
    if known.database_url is not None:
        return None
    try:
        binaries = find_binaries(str(known.postgres_bin) if known.postgres_bin else None)
        cluster = Cluster(directory=known.state_directory / "postgres", binaries=binaries)
        return cluster.url if cluster.port is not None else None
    except (BinariesMissing, OSError):
        return None


@contextmanager
def new_server() -> Iterator[str]:
    """The address of an empty database on a new bundled PostgreSQL, which `convener up` will find when it is stopped.

    After an error nothing is left of it. Raises Failure where the state directory has one already, EmbeddedError.
    """
    from app.embedded.binaries import find_binaries
    from app.embedded.cluster import Cluster
    from app.embedded.server import Server

    known = settings()
    binaries = find_binaries(str(known.postgres_bin) if known.postgres_bin else None)
    cluster = Cluster(directory=known.state_directory / "postgres", binaries=binaries)
    with cluster.acquire():
        if not cluster.initialise():
            hint = "name another, which is to be made, as CONVENER_STATE_DIRECTORY"
            raise Failure(f"there is a database in {known.state_directory} already", ExitCode.REFUSED, hint=hint)
        server = Server(cluster=cluster)
        try:
            asyncio.run(server.start())
            yield server.url
        except BaseException:
            asyncio.run(server.stop())
            shutil.rmtree(cluster.data.parent, ignore_errors=True)
            raise
        asyncio.run(server.stop())
