"""The system under test: a PostgreSQL of its own with default durability, and the API as a process of its own."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from app.admin.service.access import create_key
from app.admin.store.keys import NewKey
from app.db import schema
from app.db.database import Database
from app.kernel.access import Role
from app.postgres.accounts import bound_command, choose_account
from app.postgres.binaries import Binaries, find_binaries
from app.postgres.cluster import Cluster
from app.postgres.configuration import choose_port
from app.postgres.server import Server
from benchmarks.http_client import Connection, connect

_SERVE = "from app.main import serve; from app.settings import Settings; serve(Settings.from_environment())"
_LOOP = "from app.background import main; main()"
_READY_WITHIN_SECONDS = 120
# Measurements begin after a checkpoint, which the service's own role may not ask for. Peers work as a role of theirs,
# that makes their databases; the service's is none of them, as it warns of rights that it does not need.
_RIGHTS = """GRANT pg_checkpoint TO convener;
CREATE ROLE {peer} LOGIN CREATEDB PASSWORD '{peer}';
"""
_ACCESS = "local all convener,{peer} scram-sha-256\nhost all convener,{peer} 127.0.0.1/32 scram-sha-256\n"
PEER = "peer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Testbed:
    """Address of the service, an admin's and a pool's key for it, and its processes."""

    binaries: Binaries
    database_url: str
    port: int
    key: str
    pool_key: str
    api: psutil.Process
    loops: psutil.Process | None
    postmaster: psutil.Process
    # Processes between workers and API, while there are any.
    between: list[psutil.Process] = field(default_factory=list)

    def peer_url(self, database: str) -> str:
        """Address of a database for the role of the peers."""
        parts = urlsplit(self.database_url)
        return f"postgresql://{PEER}:{PEER}@{parts.hostname}:{parts.port}/{database}"


@asynccontextmanager
async def start_testbed(*, with_loops: bool = False) -> AsyncIterator[Testbed]:
    """Start a fresh system, and remove it at the end. Call it from the main thread, which the processes do not outlive.

    Without the loops a worker that sends no heartbeats is never declared lost.
    """
    with _directory() as directory:
        async with _postgres(directory / "server") as server:
            (key, pool_key), port = await _prepare(server.cluster.url), choose_port(None)
            async with AsyncExitStack() as running:
                environment = _environment(server.cluster.url, port)
                api = await running.enter_async_context(run_process([sys.executable, "-c", _SERVE], environment))
                await _until_ready(api, port, key)
                loops = None
                if with_loops:
                    loops = await running.enter_async_context(run_process([sys.executable, "-c", _LOOP], environment))
                yield Testbed(
                    binaries=server.cluster.binaries,
                    database_url=server.cluster.url,
                    port=port,
                    key=key,
                    pool_key=pool_key,
                    api=psutil.Process(api.pid),
                    loops=psutil.Process(loops.pid) if loops else None,
                    postmaster=psutil.Process(server.pid),
                )


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="convener-bench-", ignore_cleanup_errors=True) as name:
        # Where this runs as root, PostgreSQL may have to run as another user, who must be able to come in.
        directory = Path(name).resolve()
        directory.chmod(0o711)
        yield directory


@asynccontextmanager
async def _postgres(directory: Path) -> AsyncIterator[Server]:
    binaries, access = find_binaries(), directory / "cluster" / "data" / "benchmark_hba.conf"
    cluster = Cluster(directory=directory, binaries=binaries, settings={"hba_file": str(access)})
    server = Server(cluster=cluster)
    with cluster.lock():
        cluster.initialise()
        cluster.maintain(choose_account(directory, binaries), _RIGHTS.format(peer=PEER))
        access.write_text(_ACCESS.format(peer=PEER))
        access.chmod(0o644)
        try:
            await server.start()
            yield server
        finally:
            await server.stop()


async def _prepare(url: str) -> list[str]:
    """Build the schema and make an admin's and a pool's key."""
    database = Database(url)
    try:
        await schema.migrate(database.engine)
        async with database.transaction() as connection:
            new_keys = [NewKey(role=role, label="benchmark") for role in (Role.ADMIN, Role.POOL)]
            return [(await create_key(connection, key)).text for key in new_keys]
    finally:
        await database.close()


@asynccontextmanager
async def run_process(
    command: Sequence[str], environment: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process that sees our modules and no other variables than these, and ends with this one."""
    variables = {"PYTHONPATH": str(Path.cwd()), **environment}
    process = await asyncio.create_subprocess_exec(*bound_command(Path.cwd(), *command), env=variables)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def until_open(process: asyncio.subprocess.Process, port: int) -> None:
    """Wait until somebody listens on the port."""
    async with asyncio.timeout(_READY_WITHIN_SECONDS):
        while True:
            try:
                (await connect(port, "none")).close()
            except OSError:
                if process.returncode is not None:
                    raise RuntimeError("a server did not start; it has told the reason") from None
                await asyncio.sleep(0.05)
            else:
                return


def _environment(database_url: str, port: int) -> Mapping[str, str]:
    """Nothing from outside, so that every run measures the defaults, except that the queue may grow long."""
    return {
        "CONVENER_DATABASE_URL": database_url,
        "CONVENER_PORT": str(port),
        "CONVENER_MAX_QUEUE_SIZE": "10000000",
        "CONVENER_POOL_SIZE": "0",
        "CONVENER_LOG_LEVEL": "warning",
    }


async def _until_ready(api: asyncio.subprocess.Process, port: int, key: str) -> None:
    async with asyncio.timeout(_READY_WITHIN_SECONDS):
        while not await _is_ready(port, key):
            if api.returncode is not None:
                raise RuntimeError("the API did not start; it has said why")
            await asyncio.sleep(0.05)


async def _is_ready(port: int, key: str) -> bool:
    try:
        connection: Connection = await connect(port, key)
        answer = await connection.get("/readyz")
    except OSError:
        return False
    connection.close()
    return answer.status == 200
