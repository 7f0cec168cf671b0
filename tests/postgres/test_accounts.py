"""PostgreSQL never runs as root: as a user of its own that sees its own directories, else as `nobody`."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import asyncpg
import psutil
import pytest

import app
from app.postgres import accounts, launch, roles
from app.postgres.accounts import NOBODY, SERVER_ID, Account, choose_account, own_account, user_account
from app.postgres.binaries import Binaries
from app.postgres.cluster import Cluster
from app.postgres.errors import ClusterUnusable
from app.postgres.server import Server
from tests.postgres.supervise import supervised

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

AS_ORDINARY_USER = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


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


NO_SUCH_ACCOUNT = Account(word="confined:nobody:knows", owner=(SERVER_ID, SERVER_ID))


@pytest.fixture
def confinement_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in most containers. The refusal is real: the script is asked for an account that cannot exist."""
    candidates = accounts._candidates

    def without_the_best(directory: Path) -> Sequence[Account]:
        return (NO_SUCH_ACCOUNT, *[account for account in candidates(directory) if not account.is_confined])

    monkeypatch.setattr(accounts, "_candidates", without_the_best)


@pytest.fixture
def nobody_can_reach_this(binaries: Binaries) -> None:
    trial = [*AS_ORDINARY_USER, str(binaries.program("postgres")), "--version"]
    if shutil.which("setpriv") is None or subprocess.run(trial, capture_output=True).returncode != 0:
        pytest.skip("the user nobody cannot reach this installation of PostgreSQL")


@pytest.fixture
def confinable(cluster: Cluster) -> None:
    if not choose_account(cluster.directory, cluster.binaries).is_confined:
        pytest.skip("this kernel or container forbids namespaces")


def mode(directory: Path) -> int:
    return stat.S_IMODE(directory.stat().st_mode)


def owners(directory: Path) -> set[int]:
    return {path.lstat().st_uid for path in (directory, *directory.rglob("*"))}


def server_owns(directory: Path) -> set[int]:
    return {uid for part in ("log", "socket", "cluster/data") for uid in owners(directory / part)}


def test_an_ordinary_user_runs_it_as_itself(state: Path, python_of_ordinary_user: list[str]) -> None:
    os.chown(state, NOBODY, NOBODY)
    with supervised(state, *python_of_ordinary_user) as run:
        postmaster = psutil.Process(run.pid)
        assert postmaster.uids().real == NOBODY
    assert owners(state) == {NOBODY}


@pytest.mark.usefixtures("confinable")
@pytest.mark.parametrize("umask", [0o077, 0o027, 0])
def test_it_is_confined_whatever_the_umask(cluster: Cluster, umask: int) -> None:
    """Root of a hardened machine has a strict one, which closed the way to the directories that are kept."""
    former = os.umask(umask)
    try:
        account = choose_account(cluster.directory, cluster.binaries)
        command = account.command(
            cluster.directory, cluster.binaries, "postgres", "-C", "port", "-D", str(cluster.data)
        )
        shown = subprocess.run(command, env=accounts.server_environment(), capture_output=True, text=True)
    finally:
        os.umask(former)
    assert account.is_confined
    assert (shown.returncode, shown.stdout.strip().isdecimal()) == (0, True), shown.stderr


@pytest.mark.usefixtures("confinable")
def test_the_server_of_an_ordinary_user_does_not_see_the_keys_beside_its_directory(
    state: Path, python_of_ordinary_user: list[str]
) -> None:
    home = state / "state"
    (home / "postgres").mkdir(parents=True)
    (home / "operator.key").write_text("cvn_1_2\n")
    for path in (state, home, home / "postgres", home / "operator.key"):
        os.chown(path, NOBODY, NOBODY)
    with supervised(home / "postgres", *python_of_ordinary_user) as run:
        assert seen_by(run.pid, home) == {"postgres"}
        assert seen_by(run.pid, home / "postgres") == {"cluster", "log", "socket"}


def seen_by(pid: int, directory: Path) -> set[str]:
    return set(os.listdir(f"/proc/{pid}/root{directory}"))


@pytest.mark.usefixtures("confinable")
def test_root_runs_it_as_a_user_of_its_own_that_comes_nowhere(state: Path) -> None:
    """The directory lies where only root can go, and stays so."""
    home = state / "private" / "state"
    home.mkdir(parents=True)
    state.chmod(0o700)
    with supervised(home / "postgres") as run:
        postmaster = psutil.Process(run.pid)
        assert set(postmaster.uids()) == {SERVER_ID}
        status = Path(f"/proc/{run.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert "CapBnd" in status
        assert "NoNewPrivs:\t1" in status
        assert seen_by(run.pid, state) == {"private", "passwd"}
        assert seen_by(run.pid, home / "postgres") == {"cluster", "log", "socket"}
        assert "Permission denied" in as_server("cat", "/etc/shadow")
    assert server_owns(home / "postgres") == {SERVER_ID}
    assert {mode(state), mode(home), mode(home / "postgres"), mode(home / "postgres" / "cluster")} == {0o700, 0o755}
    files = [path for path in (home / "postgres").iterdir() if path.is_file()]
    assert {(path.stat().st_uid, mode(path)) for path in files} == {(0, 0o600)}


def as_server(*command: str) -> str:
    """What a program complains of that has the rights of the server."""
    identity = (f"--reuid={SERVER_ID}", f"--regid={SERVER_ID}", "--clear-groups")
    return subprocess.run(["setpriv", *identity, *command], capture_output=True, text=True).stderr


@pytest.mark.usefixtures("confinable")
async def test_even_the_superuser_reads_nothing_of_this_machine_through_the_server(copied: Cluster) -> None:
    """Nobody can log in as one; here the rules of access let the test in."""
    (copied.directory / "secret").write_text("secret\n")
    rules = copied.data / "open_hba.conf"
    rules.write_text("local all all trust\n")
    rules.chmod(0o644)
    await asyncio.to_thread(
        copied.maintain, choose_account(copied.directory, copied.binaries), f"ALTER ROLE {roles.SUPERUSER} LOGIN;\n"
    )
    server = Server(cluster=replace(copied, settings={"fsync": "off", "hba_file": str(rules)}))
    with copied.lock():
        await server.start()
        try:
            assert copied.socket_url is not None
            connection = await asyncpg.connect(copied.socket_url, user=roles.SUPERUSER)
            for path in ("/etc/shadow", str(copied.password_file), str(copied.directory / "secret")):
                with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFileError)):
                    await connection.fetchval("SELECT pg_read_file($1)", path)
            await connection.execute("COPY (SELECT 1) TO PROGRAM 'id -u > uid'")
            assert int((copied.data / "uid").read_text()) == SERVER_ID
            with pytest.raises(asyncpg.PostgresError, match="failed"):
                await connection.execute("COPY (SELECT 1) TO PROGRAM 'cat /etc/shadow'")
            await connection.close()
        finally:
            await server.stop()


@pytest.mark.usefixtures("confinement_forbidden", "nobody_can_reach_this")
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
    assert server_owns(state) == {NOBODY}
    assert {(path.stat().st_uid, mode(path)) for path in (state, state / "cluster")} == {(0, 0o710)}
    assert (cluster.password_file.stat().st_uid, mode(cluster.password_file)) == (0, 0o600)


@pytest.mark.parametrize("owner", [0, NOBODY])
@pytest.mark.usefixtures("confinable")
async def test_a_cluster_of_an_earlier_version_moves_to_the_servers_own_user(copied: Cluster, owner: int) -> None:
    for path in (copied.directory, *copied.directory.rglob("*")):
        os.chown(path, owner, owner)
    server = Server(cluster=copied)
    with copied.lock():
        await server.start()
        await server.stop()
    assert server_owns(copied.directory) == {SERVER_ID}
    assert copied.password_file.stat().st_uid == copied.directory.stat().st_uid == 0


@pytest.mark.usefixtures("confinement_forbidden", "nobody_can_reach_this")
def test_a_cluster_moves_to_nobody_whole(copied: Cluster) -> None:
    assert choose_account(copied.directory, copied.binaries) == user_account(NOBODY, NOBODY)
    assert server_owns(copied.directory) == {NOBODY}


@pytest.mark.usefixtures("confinement_forbidden")
def test_a_place_that_nobody_can_reach_is_left_to_roots_files_in_a_namespace(state: Path, binaries: Binaries) -> None:
    hidden = state / "private" / "state"
    hidden.mkdir(parents=True)
    state.chmod(0o700)
    assert choose_account(hidden, binaries) == own_account(launch.NAMESPACE)
    assert owners(state) == {0}
    assert mode(state) == 0o700


def test_without_any_account_it_says_what_to_do(
    state: Path, binaries: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "_candidates", lambda _: (NO_SUCH_ACCOUNT,))
    with pytest.raises(ClusterUnusable, match="Start Convener as an ordinary user"):
        choose_account(state, binaries)


@pytest.mark.usefixtures("nobody_can_reach_this")
def test_root_runs_a_cluster_of_another_user_as_that_user(state: Path, binaries: Binaries) -> None:
    os.chown(state, 4321, 4321)
    assert choose_account(state, binaries) == user_account(4321, 4321)


@pytest.mark.usefixtures("confinable")
async def test_a_link_in_the_place_of_a_file_leads_nowhere(copied: Cluster, state: Path) -> None:
    """A server that was taken over owns its directories, and root writes into one of them at each start."""
    victim = state / "victim"
    victim.write_text("untouched")
    for name in ("convener.conf", "convener_hba.conf"):
        (copied.data / name).unlink(missing_ok=True)
        (copied.data / name).symlink_to(victim)
    copied.configure(choose_account(copied.directory, copied.binaries))
    assert victim.read_text() == "untouched"
    assert victim.stat().st_uid == 0
    assert not (copied.data / "convener.conf").is_symlink()
