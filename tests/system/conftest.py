"""Real processes: the API as it runs in production, and `convener up` with everything under it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import psutil
import pytest

from app.admin.service.access import create_key
from app.admin.store.keys import NewKey
from app.db.database import Database
from app.kernel.access import Role
from app.postgres.binaries import find_binaries
from app.postgres.cluster import Cluster
from tests.support.ports import free_port
from tests.support.prepared_cluster import copy_prepared_cluster, remove_prepared_cluster
from tests.support.processes import process
from tests.support.replicas import API_SETTINGS, IS_REPLICATED, replicas
from tests.support.service import KEY_ROLES
from tests.support.slurm import SlurmCluster, slurm_cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """A running API process and keys for it; `own_urls` are the addresses of all, where haproxy stands before them."""

    url: str
    port: int
    pid: int
    keys: dict[Role, str]
    own_urls: Sequence[str]

    def bearer(self, role: Role) -> dict[str, str]:
        """The header that a holder of this role sends."""
        return {"Authorization": f"Bearer {self.keys[role]}"}


async def until(
    condition: Callable[[], object], seconds: float = 60.0, what: str = "condition", pause: float = 0.05
) -> None:
    """Wait for the condition to hold, with a pause after each look."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"{what} did not come true within {seconds:.0f} s")
        await asyncio.sleep(pause)


async def make_keys(database_url: str) -> dict[Role, str]:
    """A key for every role."""
    database = Database(database_url)
    async with database.transaction() as connection:
        keys = {role: (await create_key(connection, NewKey(role=role, label="test"))).text for role in KEY_ROLES}
    await database.close()
    return keys


async def is_ready(url: str) -> bool:
    """Whether the API there can serve."""
    # Without a context for TLS, which takes longer to make than the answer and would be made for every look.
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        try:
            return (await client.get(f"{url}/readyz")).status_code == 200
        except httpx.TransportError:
            return False


@asynccontextmanager
async def api_process(
    database_url: str, tmp_path: Path, module: str = "app.main", **settings: str
) -> AsyncIterator[Api]:
    """The API as a process of its own; where the topology says so, it is the first of two behind haproxy."""
    keys = await make_keys(database_url)
    if IS_REPLICATED:
        with replicas(database_url, tmp_path, module, **settings) as apis:
            await _until_ready([apis.url, *apis.own_urls], apis.children, tmp_path / "api.log")
            pid = apis.children[0].pid
            yield Api(url=apis.url, port=apis.port, pid=pid, keys=keys, own_urls=apis.own_urls)
        return
    port = free_port()
    environment = {"CONVENER_DATABASE_URL": database_url, "CONVENER_PORT": str(port), **API_SETTINGS, **settings}
    with process(module, environment, tmp_path / "api.log") as child:
        url = f"http://127.0.0.1:{port}"
        await _until_ready([url], [child], tmp_path / "api.log")
        yield Api(url=url, port=port, pid=child.pid, keys=keys, own_urls=[url])


async def _until_ready(urls: Sequence[str], children: Sequence["subprocess.Popen[bytes]"], log: Path) -> None:
    for _ in range(600):
        if all([await is_ready(url) for url in urls]):
            return
        assert all(child.poll() is None for child in children), log.read_text()
        await asyncio.sleep(0.05)


@pytest.fixture
async def api(database_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    """The API over a database of the test's own."""
    async with api_process(database_url, tmp_path) as api:
        yield api


_UP = ("tests.support.replicated_up",) if IS_REPLICATED else ("app.cli", "up")
# What a test says of itself that is about `convener up`, or one process, and so about no topology.
about_up = pytest.mark.skipif(IS_REPLICATED, reason="it is about `convener up` itself")


class Up:
    """`convener up` on a state directory, as often as the test starts it; with two of everything where told so."""

    def __init__(
        self,
        state: Path,
        *,
        prefix: Sequence[str] = (),
        directory: Path | None = None,
        has_cluster: bool = True,
        **settings: str,
    ) -> None:
        """`prefix` is a command that starts it, as another user say, in the directory.

        With `has_cluster` the first start finds a cluster of PostgreSQL with a migrated database, which takes two
        seconds of a processor to make. It belongs to the user that runs the tests.
        """
        self.state = state
        self._has_cluster = has_cluster
        self._prefix = prefix
        self._directory = directory
        self.port = free_port()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("CONVENER_")},
            "CONVENER_STATE_DIRECTORY": str(state),
            "CONVENER_PORT": str(self.port),
            "CONVENER_STOP_GRACE_SECONDS": "3",
            **settings,
        }
        self.child: subprocess.Popen[bytes] | None = None
        self._leaders: set[int] = set()

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def database_url(self) -> str:
        """Where its database is."""
        return Cluster(directory=self.state / "postgres", binaries=find_binaries()).url

    def bearer(self, name: str) -> dict[str, str]:
        """The header for one of the keys in the state directory."""
        return {"Authorization": f"Bearer {(self.state / f'{name}.key').read_text().strip()}"}

    async def start(self, *arguments: str) -> None:
        """Start it and wait until the API is ready."""
        if self._has_cluster and not (self.state / "postgres").exists():
            await copy_prepared_cluster(self.state / "postgres")
        with (self.state.parent / "up.log").open("ab") as log:
            self.child = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", *_UP, *arguments],
                cwd=self._directory,
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        for _ in range(1200):
            if (self.state / "url").exists() and await is_ready(self.url):
                return
            assert self.child.poll() is None, (self.state.parent / "up.log").read_text()
            await asyncio.sleep(0.05)
        raise AssertionError((self.state.parent / "up.log").read_text())

    def kill(self) -> None:
        """kill -9."""
        assert self.child is not None
        self.child.kill()
        self.child.wait()

    async def running(self, module: str) -> psutil.Process:
        """The process that runs this module, or PostgreSQL's postmaster, as soon as there is one."""
        processes: list[psutil.Process] = []

        def look() -> list[psutil.Process]:
            processes[:] = [process for process in self.processes() if _runs(process, module)]
            return processes

        await until(look, what=f"a process that runs {module}")
        return processes[0]

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.child is not None
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(60)

    def processes(self) -> list[psutil.Process]:
        """Every process of it: recorded by the supervisor, with this directory in its command, or in its session."""
        # The environment of most of them is closed to other processes, also to those of the same user.
        with suppress(FileNotFoundError, ValueError):
            self._leaders |= {entry["pid"] for entry in json.loads((self.state / "children.json").read_text())}
        everybody = list(psutil.process_iter())
        self._leaders |= {found.pid for found in everybody if self._names_us(found)}
        return [found for found in everybody if self._is_ours(found)]

    def _names_us(self, found: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return any(str(self.state) in word for word in found.cmdline())
        return False

    def _is_ours(self, found: psutil.Process) -> bool:
        with suppress(psutil.Error, OSError):
            is_ours = self._leaders & {found.pid, os.getsid(found.pid)}
            return bool(is_ours) and found.status() != psutil.STATUS_ZOMBIE
        return False


def _runs(found: psutil.Process, module: str) -> bool:
    try:
        command = found.cmdline()
    except psutil.Error:
        return False
    if module in ("haproxy", "pgbouncer"):
        return bool(command) and command[0].endswith(f"/{module}")
    if module == "postgres":
        return "-D" in command and command[0].endswith("/postgres")
    return any(pair == ("-m", module) for pair in pairwise(command))


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """A Slurm of two nodes."""
    with slurm_cluster() as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def _prepared_cluster() -> Iterator[None]:
    yield
    remove_prepared_cluster()


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    """A `convener up` with a PostgreSQL of its own, stopped at the end; the test starts it."""
    machine = Up(tmp_path / "state")
    yield machine
    if machine.child is not None and machine.child.poll() is None:
        machine.stop()
    for left in machine.processes():
        left.kill()
