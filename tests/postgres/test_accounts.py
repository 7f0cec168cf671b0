"""PostgreSQL never runs as root, but as an ordinary user, in a user namespace or as `nobody`."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import asyncpg
import psutil
import pytest

import app
from app.postgres import accounts
from app.postgres.accounts import NAMESPACE, NOBODY, choose_account, user_account
from app.postgres.binaries import Binaries
from app.postgres.cluster import Cluster
from app.postgres.errors import ClusterUnusable
from app.postgres.server import Server
from tests.postgres.supervise import supervised

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

AS_ORDINARY_USER = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
PATIENCE_SECONDS = 30.0


@pytest.fixture
def python_of_ordinary_user() -> list[str]:
    """Runs Python as another user: ours, or where it lies in a private directory the system's with our libraries."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    libraries = [path for path in sys.path if path.endswith("site-packages")] + [str(Path(app.__path__[0]).parent)]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    trial = "import subprocess, sys, app.postgres.server; subprocess.run([sys.executable, '-V'], check=True)"
    for interpreter in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        command = [*AS_ORDINARY_USER, "env", f"PYTHONPATH={os.pathsep.join(libraries)}", interpreter]
        if subprocess.run([*command, "-c", trial], capture_output=True).returncode == 0:
            return command
    pytest.skip("an ordinary user cannot reach this installation")


@pytest.fixture
def namespaces_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in most containers. The refusal is real: the script is asked for an account that cannot exist."""
    monkeypatch.setattr(accounts, "NAMESPACE", accounts.Account(word="no namespaces here"))


@pytest.fixture
def nobody_can_reach_this(binaries: Binaries) -> None:
    trial = [*AS_ORDINARY_USER, str(binaries.program("postgres")), "--version"]
    if shutil.which("setpriv") is None or subprocess.run(trial, capture_output=True).returncode != 0:
        pytest.skip("the user nobody cannot reach this installation of PostgreSQL")


def mode(directory: Path) -> int:
    return stat.S_IMODE(directory.stat().st_mode)


def owners(directory: Path) -> set[int]:
    return {path.lstat().st_uid for path in (directory, *directory.rglob("*"))}


def test_an_ordinary_user_runs_it_as_itself(state: Path, python_of_ordinary_user: list[str]) -> None:
    os.chown(state, NOBODY, NOBODY)
    with supervised(state, *python_of_ordinary_user) as run:
        postmaster = psutil.Process(run.pid)
        assert postmaster.uids().real == NOBODY
    postmaster.wait(PATIENCE_SECONDS)
    assert owners(state) == {NOBODY}


def test_root_runs_it_in_a_namespace_and_keeps_its_files(cluster: Cluster) -> None:
    if choose_account(cluster.directory, cluster.binaries) != NAMESPACE:
        pytest.skip("this kernel or container forbids user namespaces")
    with supervised(cluster.directory) as run:
        postmaster = psutil.Process(run.pid)
        assert os.readlink(f"/proc/{run.pid}/ns/user") != os.readlink("/proc/self/ns/user")
    postmaster.wait(PATIENCE_SECONDS)
    assert owners(cluster.directory) == {0}


@pytest.mark.usefixtures("namespaces_forbidden", "nobody_can_reach_this")
async def test_root_without_namespaces_runs_it_as_nobody(state: Path, binaries: Binaries) -> None:
    cluster = Cluster(directory=state, binaries=binaries, settings={"fsync": "off"})
    server = Server(cluster=cluster)
    with cluster.lock():
        cluster.initialise()
        await server.start()
        assert psutil.Process(server.pid).uids().real == NOBODY
        connection = await asyncpg.connect(server.url)
        await connection.close()
        await server.stop()
    assert owners(state) == {NOBODY}
    assert mode(state) == 0o700


@pytest.mark.usefixtures("namespaces_forbidden", "nobody_can_reach_this")
def test_a_cluster_of_root_moves_to_nobody_whole(copied: Cluster) -> None:
    for path in (copied.directory, *copied.directory.rglob("*")):
        os.chown(path, 0, 0)
    assert choose_account(copied.directory, copied.binaries) == user_account(NOBODY, NOBODY)
    assert owners(copied.directory) == {NOBODY}


@pytest.mark.usefixtures("namespaces_forbidden")
def test_a_place_that_nobody_can_reach_is_refused_and_left_alone(state: Path, binaries: Binaries) -> None:
    hidden = state / "private" / "state"
    hidden.mkdir(parents=True)
    state.chmod(0o700)
    with pytest.raises(ClusterUnusable, match="Start Convener as an ordinary user"):
        choose_account(hidden, binaries)
    assert owners(state) == {0}
    assert mode(state) == 0o700


@pytest.mark.usefixtures("nobody_can_reach_this")
def test_root_runs_a_cluster_of_another_user_as_that_user(state: Path, binaries: Binaries) -> None:
    os.chown(state, 4321, 4321)
    assert choose_account(state, binaries) == user_account(4321, 4321)
