"""A stand-in for the supervisor, as a program that a test can kill: starts a server, says where it is, waits."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.postgres.binaries import find_binaries
from app.postgres.cluster import Cluster
from app.postgres.server import Server

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """A server run by another process."""

    pid: int
    url: str
    supervisor: "subprocess.Popen[str]"


@contextmanager
def supervised(directory: Path, *python: str) -> Iterator[Supervised]:
    """Runs this file as a program, by another interpreter or user where given, until kill -9 and its server's end."""
    command = [*(python or [sys.executable]), __file__, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        try:
            assert supervisor.stdout is not None
            run = Supervised(**json.loads(supervisor.stdout.readline()), supervisor=supervisor)
            postmaster = psutil.Process(run.pid)
            yield run
        finally:
            supervisor.kill()
    # Until then it writes into the directory, which the test may remove.
    postmaster.wait(_PATIENCE_SECONDS)


async def supervise(directory: Path) -> None:
    binaries = find_binaries(os.environ.get("CONVENER_POSTGRES_BIN"))
    cluster = Cluster(directory=directory, binaries=binaries, settings={"fsync": "off"})
    cluster.lock()
    cluster.initialise()
    server = Server(cluster=cluster)
    await server.start()
    print(json.dumps({"pid": server.pid, "url": server.url}), flush=True)
    await server.wait()


if __name__ == "__main__":
    asyncio.run(supervise(Path(sys.argv[1])))
