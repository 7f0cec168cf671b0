"""Verification of a backup by a restore into a PostgreSQL of its own, which is deleted afterwards."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from app.db.database import Database
from app.kernel.errors import Refused
from app.memory.service import backups
from app.memory.service.dumps import Dumps
from app.memory.store.invariants import Verdict, run_checks
from app.postgres.binaries import Binaries
from app.postgres.cluster import Cluster, lock_directory
from app.postgres.errors import DumpFailed, EmbeddedError
from app.postgres.server import Server

_PREFIX = "convener-verify-"


async def rehearse(binaries: Binaries, file: Path, report: Callable[[str], object]) -> Sequence[Verdict]:
    """Restore a backup into a new cluster, in the directory for temporary files, and check every invariant there.

    Needs as much room as the database. Raises Refused, DumpFailed, EmbeddedError.
    """
    async with _scratch_database(binaries) as database:
        await backups.restore(database, Dumps(binaries=binaries), file, report, "convener db verify")
        report("checking the invariants")
        async with database.transaction() as connection:
            return await run_checks(connection)


@asynccontextmanager
async def _scratch_database(binaries: Binaries) -> AsyncIterator[Database]:
    """An empty database of a new cluster; nothing of it is left afterwards."""
    await asyncio.to_thread(remove_abandoned)
    directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=_PREFIX))
    # Where this runs as root, PostgreSQL runs as another user, who must be able to come in.
    await asyncio.to_thread(directory.chmod, 0o711)
    cluster = Cluster(directory=directory / "postgres", binaries=binaries)
    server = Server(cluster=cluster)
    try:
        with cluster.lock():
            await asyncio.to_thread(cluster.initialise)
            await server.start()
            database = Database(server.url)
            try:
                yield database
            except DumpFailed as error:
                if not server.lacks_room():
                    raise
                hint = "name a directory on a disk with more room as TMPDIR; the backup may well be good"
                message = f"there is no room for the database in {tempfile.gettempdir()}: {error}"
                raise Refused(message, hint) from error
            finally:
                await database.close()
    finally:
        await server.stop()
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def remove_abandoned() -> None:
    """Delete the clusters of rehearsals that were killed, as large as their databases: nobody has their locks."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(EmbeddedError, OSError):
            # Not what others have put there, who might have us write through a link.
            if directory.lstat().st_uid == os.geteuid() and (directory / "postgres" / "lock").exists():
                lock_directory(directory / "postgres").release()
                shutil.rmtree(directory)
