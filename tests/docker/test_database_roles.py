"""The script that makes the service's role in a container's PostgreSQL: on a new volume, and on one of old times."""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.db import schema
from app.db.database import Database
from app.db.rights import excess_rights
from app.postgres.accounts import choose_account, give
from app.postgres.binaries import Binaries
from app.postgres.cluster import Cluster
from app.postgres.configuration import socket_directory
from app.postgres.server import Server
from tests.docker.composition import DIRECTORY

PASSWORD = "p'ss:/%\\ word"
SCRIPT = DIRECTORY / "database-roles.sh"
# As the image has it: whoever is in the container is trusted on the socket.
RULES = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


@pytest.fixture
async def volume(binaries: Binaries, superuser: str) -> AsyncIterator[Server]:
    """A running server whose superuser is called like this, with an empty database `convener`."""
    with tempfile.TemporaryDirectory(prefix="convener-volume-") as name:
        async with _running(Path(name), binaries, superuser) as server:
            yield server


@asynccontextmanager
async def _running(state: Path, binaries: Binaries, superuser: str) -> AsyncIterator[Server]:
    rules = state / "cluster" / "data" / "volume_hba.conf"
    cluster = Cluster(directory=state, binaries=binaries, settings={"fsync": "off", "hba_file": str(rules)})
    with cluster.lock():
        account = choose_account(state, binaries)
        cluster.data.mkdir(parents=True)
        give(state, account)
        form = (f"--username={superuser}", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        cluster._run(account, "initdb", f"--pgdata={cluster.data}", *form)
        with (cluster.data / "postgresql.conf").open("a") as file:
            file.write("\ninclude_if_exists = 'convener.conf'\n")
        cluster.maintain(account, "CREATE DATABASE convener;\n")
        cluster.password_file.touch()
        rules.write_text(RULES)
        rules.chmod(0o644)
        server = Server(cluster=cluster)
        await server.start()
        yield server
        await server.stop()


async def _run_script(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "service_password"
    file.write_text(f"{PASSWORD}\n")
    cluster = server.cluster
    environment = {
        "PATH": f"{cluster.binaries.directory}:{os.environ['PATH']}",
        "PGHOST": str(socket_directory(cluster.directory)),
        "PGPORT": str(cluster.port),
        "SERVICE_PASSWORD_FILE": str(file),
    }
    done = await asyncio.to_thread(subprocess.run, ["sh", str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert PASSWORD not in done.stdout


@pytest.mark.parametrize("superuser", ["postgres", "convener"])
async def test_the_service_owns_its_database_and_nothing_else(volume: Server, superuser: str, tmp_path: Path) -> None:
    sockets, port = quote(str(socket_directory(volume.cluster.directory)), safe="/"), volume.cluster.port
    if superuser == "convener":  # as earlier versions left it
        await _migrate(f"postgresql://convener@/convener?host={sockets}&port={port}")
    for _ in range(2):
        await _run_script(volume, tmp_path)
    database = Database(f"postgresql://convener:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/convener")
    if superuser == "convener":
        await schema.downgrade(database.engine)
    await schema.migrate(database.engine)
    async with database.transaction() as connection:
        assert await excess_rights(connection) == []
        owner = "SELECT rolname FROM pg_roles WHERE oid = 10"
        assert (await connection.execute(text(owner))).scalar_one() == "postgres"
    with pytest.raises(DBAPIError, match="permission denied"):
        async with database.transaction() as connection:
            await connection.execute(text("COPY (SELECT 1) TO PROGRAM 'id'"))
    await database.close()


async def _migrate(url: str) -> None:
    database = Database(url)
    await schema.migrate(database.engine)
    async with database.transaction() as connection:
        assert await excess_rights(connection) == ["superuser"]
    await database.close()
