"""A primary and its streaming standby, made as people make them: pg_basebackup, primary_conninfo, pg_ctl promote."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from app.postgres.accounts import choose_account, server_environment
from app.postgres.binaries import Binaries
from app.postgres.cluster import INCLUDED_FILE, Cluster
from app.postgres.server import Server

_REPLICATION_PASSWORD = "of-the-replication-of-tests"
_ACCESS = (
    "local all convener scram-sha-256\nhost all convener 127.0.0.1/32 scram-sha-256\n"
    "host replication replicator 127.0.0.1/32 scram-sha-256\n"
)
# What dies here is a process, never the machine: nothing has to wait for the disk.
_SETTINGS = {"fsync": "off"}
_STANDBYS = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')"
_MORE_RIGHTS = (
    f"CREATE ROLE replicator LOGIN REPLICATION PASSWORD '{_REPLICATION_PASSWORD}';\n"
    "GRANT pg_read_all_stats TO convener;\n"
)


@dataclass(slots=True, kw_only=True)
class Node:
    """One server, primary or standby."""

    directory: Path
    binaries: Binaries
    _server: Server | None = field(default=None, init=False)

    @property
    def cluster(self) -> Cluster:
        """Its cluster."""
        return self._cluster({})

    @property
    def port(self) -> int:
        """Its port, which stays the same."""
        assert self.cluster.port is not None
        return self.cluster.port

    @property
    def url(self) -> str:
        """Its address."""
        return self.cluster.url

    async def make_primary(self) -> None:
        """Make an empty database and start it."""
        cluster = self._cluster({})
        with cluster.lock():
            cluster.initialise()
        cluster.maintain(choose_account(self.directory, self.binaries), _MORE_RIGHTS)
        await self._start({})

    async def follow(self, primary: "Node") -> None:
        """Copy a primary and follow it; what was here before is gone."""
        shutil.rmtree(self.directory / "cluster", ignore_errors=True)
        cluster = self._cluster({})
        cluster.data.mkdir(parents=True, mode=0o700)
        shutil.copy(primary.cluster.password_file, cluster.password_file)
        cluster.password_file.chmod(0o600)
        account = choose_account(self.directory, self.binaries)
        source = ["--host=127.0.0.1", f"--port={primary.port}", "--username=replicator", "--no-password"]
        command = ["pg_basebackup", *source, "--checkpoint=fast", "--wal-method=stream", f"--pgdata={cluster.data}"]
        environment = server_environment() | {"PGPASSWORD": _REPLICATION_PASSWORD}
        subprocess.run(
            account.command(self.directory, self.binaries, *command), env=environment, check=True, capture_output=True
        )
        # As `pg_basebackup --write-recovery-conf` makes it.
        (cluster.data / "standby.signal").touch()
        account.own(cluster.data / "standby.signal")
        upstream = f"host=127.0.0.1 port={primary.port} user=replicator password={_REPLICATION_PASSWORD}"
        await self._start({"primary_conninfo": f"{upstream} application_name=standby"})

    async def wait_for_standbys(self) -> None:
        """From now on acknowledge nothing that a standby has not; return once one follows."""
        with (self.cluster.data / INCLUDED_FILE).open("a") as file:
            file.write("synchronous_standby_names = '*'\n")
        self._signal(signal.SIGHUP)
        connection = await asyncpg.connect(self.url)
        try:
            while not await connection.fetchval(_STANDBYS):
                await asyncio.sleep(0.05)
        finally:
            await connection.close()

    async def kill(self) -> None:
        """kill -9 of the whole server."""
        assert self._server is not None
        self._signal(signal.SIGKILL)
        await self._server.wait()
        await self._server.stop()

    def promote(self) -> None:
        """Make it the primary."""
        account = choose_account(self.directory, self.binaries)
        command = account.command(self.directory, self.binaries, "pg_ctl", "promote", "-D", str(self.cluster.data))
        subprocess.run(command, env=server_environment(), check=True, capture_output=True)

    async def stop(self) -> None:
        """End it."""
        if self._server is not None:
            await self._server.stop()

    def _cluster(self, settings: Mapping[str, str]) -> Cluster:
        access = self.directory.resolve() / "cluster" / "data" / "tests_hba.conf"
        settings = {"hba_file": str(access), **_SETTINGS, **settings}
        return Cluster(directory=self.directory, binaries=self.binaries, settings=settings)

    async def _start(self, settings: Mapping[str, str]) -> None:
        cluster = self._cluster(settings)
        access = cluster.data / "tests_hba.conf"
        access.write_text(_ACCESS)
        access.chmod(0o644)
        self._server = Server(cluster=cluster)
        await self._server.start()

    def _signal(self, number: signal.Signals) -> None:
        assert self._server is not None
        assert self._server.pid is not None
        os.kill(self._server.pid, number)
