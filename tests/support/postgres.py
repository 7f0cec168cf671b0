"""A throw-away PostgreSQL for tests, started by the launcher of the service itself."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.postgres.accounts import choose_account
from app.postgres.binaries import Binaries, find_binaries
from app.postgres.cluster import Cluster
from app.postgres.configuration import access_rules
from app.postgres.server import Server

# Tests make databases of their own, drop them whether autovacuum is at work there or not, keep triggers still, and have
# statements explained. Otherwise they run as the service does: as no superuser.
_EXPLAINING = ("min_duration", "analyze", "buffers", "wal", "timing", "nested_statements", "format", "level")
_MORE_RIGHTS = (
    "ALTER ROLE convener CREATEDB;\nGRANT pg_signal_backend TO convener;\n"
    "GRANT SET ON PARAMETER session_replication_role, deadlock_timeout, session_preload_libraries, "
    f"{', '.join(f'auto_explain.log_{name}' for name in _EXPLAINING)} TO convener;\n"
)
# Hashing the password is a third of what a connection costs, and a test of the API opens eight to a database of its
# own. The one that the service would have asks for it.
_EVERY_DATABASE = access_rules("convener") + "local all convener trust\nhost all convener 127.0.0.1/32 trust\n"
# Tests may lose their data in a power failure, so nothing waits for the disk. Servers of others may have prepared
# transactions.
THROW_AWAY: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off", "max_prepared_transactions": "2"}


@contextmanager
def running_server(directory: Path, binaries: Binaries | None = None, *, script: str = "") -> Iterator[str]:
    """Yields the URL of a new server in `directory`, which is stopped at the end and also dies with this process.

    `script` are further statements of the superuser, one a line.

    Call it outside any running event loop, and from the main thread. The directory belongs to the server: take one of
    its own outside pytest's, which are closed to the user `nobody` that may have to run it where the tests run as root.
    """
    binaries = binaries or find_binaries(os.environ.get("CONVENER_POSTGRES_BIN"))
    directory = directory.resolve()
    access = directory / "cluster" / "data" / "tests_hba.conf"
    cluster = Cluster(directory=directory, binaries=binaries, settings={"hba_file": str(access), **THROW_AWAY})
    server = Server(cluster=cluster)
    # A loop factory keeps the runner from replacing the event loop that the test framework has set for this thread.
    with cluster.lock(), asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        cluster.initialise()
        cluster.maintain(choose_account(directory, binaries), _MORE_RIGHTS + script)
        access.write_text(_EVERY_DATABASE)
        access.chmod(0o644)
        try:
            runner.run(server.start())
            yield cluster.url
        finally:
            runner.run(server.stop())
