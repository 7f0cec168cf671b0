"""One cluster for the tests of the launcher, and copies for those that damage theirs."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.postgres.binaries import Binaries
from app.postgres.cluster import Cluster
from app.postgres.server import Server


@pytest.fixture(scope="session")
def cluster(binaries: Binaries) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(directory=Path(name), binaries=binaries, settings={"fsync": "off"})
        with cluster.lock():
            assert cluster.initialise()
        yield cluster


@pytest.fixture
def state() -> Iterator[Path]:
    """An empty directory outside pytest's, which is closed to the user `nobody` where the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def copied(cluster: Cluster, state: Path) -> Cluster:
    shutil.copytree(cluster.directory, state, dirs_exist_ok=True)
    return replace(cluster, directory=state)


@pytest.fixture
async def server(cluster: Cluster) -> AsyncIterator[Server]:
    with cluster.lock():
        server = Server(cluster=cluster)
        yield server
        await server.stop()
