"""A cluster of PostgreSQL with a migrated, empty database, made once for each process that runs tests."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from app.db import schema
from app.db.database import Database
from app.postgres.binaries import find_binaries
from app.postgres.cluster import Cluster
from app.postgres.server import Server

_made: list[Path] = []


async def copy_prepared_cluster(place: Path) -> None:
    """Put a copy where there is no cluster yet, as a start leaves it that ended before anything else was written."""
    if not _made:
        _made.append(await _prepare())
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(_made[0]), str(place)], check=True)


def remove_prepared_cluster() -> None:
    """Remove the one that was made, if any."""
    while _made:
        shutil.rmtree(_made.pop().parent, ignore_errors=True)


async def _prepare() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="convener-prepared-")) / "postgres"
    cluster = Cluster(directory=directory, binaries=find_binaries(), settings={"fsync": "off"})
    server = Server(cluster=cluster)
    with cluster.lock():
        cluster.initialise()
        try:
            await server.start()
            database = Database(cluster.url)
            await schema.migrate(database.engine)
            await database.close()
        finally:
            await server.stop()
    for name in ("lock", "port", "start.log"):  # each copy has its own
        (directory / name).unlink()
    for log in (directory / "log").iterdir():
        log.unlink()
    return directory
