"""The directory of a cluster: made whole or not at all, held by one process, private."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.postgres import launch
from app.postgres.accounts import choose_account, own_account
from app.postgres.binaries import Binaries
from app.postgres.cluster import Cluster
from app.postgres.configuration import LONGEST_SOCKET_DIRECTORY, PORTS, choose_port, is_free, offers_socket, render
from app.postgres.errors import ClusterBusy, ClusterUnusable

HOLD_FOREVER = """
import sys, time
from pathlib import Path
from app.postgres.cluster import lock_directory
lock_directory(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""

INITIALISE = """
import sys
from pathlib import Path
from app.postgres.binaries import inspect_binaries
from app.postgres.cluster import Cluster
cluster = Cluster(directory=Path(sys.argv[1]), binaries=inspect_binaries(Path(sys.argv[2])))
cluster.lock()
cluster.initialise()
"""


@pytest.fixture
def fake() -> Iterator[Path]:
    """A directory for programs that every user may run."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_is_made_once_and_private(cluster: Cluster) -> None:
    assert cluster.is_initialised
    assert not cluster.initialise()
    assert stat.S_IMODE(cluster.password_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(cluster.data.stat().st_mode) == 0o700
    rules = [
        line.split() for line in (cluster.data / "pg_hba.conf").read_text().splitlines() if line and line[0] != "#"
    ]
    assert {rule[-1] for rule in rules} == {"reject"}, "without our settings nobody comes in"


def test_a_second_holder_is_told_who_holds_it(state: Path, binaries: Binaries) -> None:
    cluster = Cluster(directory=state, binaries=binaries)
    with (
        cluster.lock(),
        pytest.raises(ClusterBusy, match=rf"in use by process {os.getpid()}\. Stop that process"),
    ):
        cluster.lock()
    cluster.lock().release()


def test_a_holder_on_another_host_that_shares_the_directory_is_told_with_it(
    state: Path, binaries: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(directory=state, binaries=binaries)
    monkeypatch.setattr("socket.gethostname", lambda: "login1")
    with cluster.lock():
        monkeypatch.setattr("socket.gethostname", lambda: "login2")
        with pytest.raises(ClusterBusy, match=rf"process {os.getpid()} on login1\. Stop that process there, use"):
            cluster.lock()


def test_a_file_system_without_locks_is_refused_in_a_sentence(
    state: Path, binaries: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ClusterUnusable, match=r"has no locks \(Function not implemented\).*CONVENER_STATE_DIRECTORY"):
        Cluster(directory=state, binaries=binaries).lock()


def test_a_killed_holder_leaves_the_directory_free(state: Path, binaries: Binaries) -> None:
    cluster = Cluster(directory=state, binaries=binaries)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_FOREVER, str(cluster.directory)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ClusterBusy, match=f"process {holder.pid}"):
            cluster.lock()
        holder.kill()
    cluster.lock().release()


def test_a_kill_amid_initdb_leaves_nothing_half_made(state: Path, cluster: Cluster) -> None:
    other = replace(cluster, directory=state)
    command = [sys.executable, "-c", INITIALISE, str(other.directory), str(other.binaries.directory)]
    with subprocess.Popen(command) as initialiser:
        deadline = time.monotonic() + 30
        while not list(other.directory.glob("initialising-*/data/base")):
            assert time.monotonic() < deadline
            assert initialiser.poll() is None
            time.sleep(0.005)
        initialiser.kill()
    assert initialiser.returncode == -signal.SIGKILL
    assert not other.is_initialised
    with other.lock():
        assert other.initialise()
    assert sorted(path.name for path in other.directory.iterdir()) == ["cluster", "lock", "log", "password", "socket"]
    assert len(other.password_file.read_text().strip()) == 48
    assert other.password_file.read_text() != cluster.password_file.read_text()


def test_a_failed_initdb_leaves_nothing(state: Path, fake: Path, binaries: Binaries) -> None:
    (fake / "postgres").symlink_to(binaries.program("postgres"))
    (fake / "initdb").write_text("#!/bin/sh\necho 'no space left' >&2\nexit 1\n")
    (fake / "initdb").chmod(0o755)
    cluster = Cluster(directory=state, binaries=Binaries(directory=fake, version=binaries.version))
    with cluster.lock(), pytest.raises(ClusterUnusable, match=r"initdb could not prepare .* no space left"):
        cluster.initialise()
    assert sorted(path.name for path in cluster.directory.iterdir()) == ["lock", "log", "socket"]


def test_data_of_another_version_are_refused_with_a_remedy(copied: Cluster) -> None:
    (copied.data / "PG_VERSION").write_text("13\n")
    with pytest.raises(ClusterUnusable, match=r"made by PostgreSQL 13.*CONVENER_POSTGRES_BIN"):
        copied.initialise()


def test_an_empty_place_of_the_data_is_told_as_a_disk_that_is_not_there(state: Path, binaries: Binaries) -> None:
    cluster = Cluster(directory=state, binaries=binaries)
    cluster.data.mkdir(parents=True)
    with cluster.lock(), pytest.raises(ClusterUnusable, match=r"cluster/data holds no database.*mounted") as refused:
        cluster.initialise()
    assert not [*cluster.data.iterdir()]
    assert f"make {state.resolve()} that mount" in str(refused.value)


def test_the_data_may_be_on_a_disk_of_their_own(copied: Cluster) -> None:
    """A file of the settings was renamed from one disk to the other, which no system can do."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        disk = Path(name)
        if disk.stat().st_dev == copied.directory.stat().st_dev:
            pytest.skip("there is but one file system")
        # As a mount, which only root can make.
        place = disk / "data"
        shutil.move(copied.data, place)
        copied.data.symlink_to(place)
        copied.configure(own_account(launch.SAME))
        for file in ("convener.conf", "convener_hba.conf"):
            assert stat.S_IMODE((place / file).stat().st_mode) == 0o600
        assert str(copied.port) in (place / "convener.conf").read_text()
        assert not [*place.glob("*.new"), *copied.directory.glob("*.new")]


def test_what_the_server_laid_in_the_way_of_its_settings_stays_as_it_is(copied: Cluster) -> None:
    own = copied.directory / "own"
    own.write_text("ours")
    own.chmod(0o640)
    before = own.stat()
    for name in ("convener.conf", "convener.conf.new"):
        (copied.data / name).unlink(missing_ok=True)
        (copied.data / name).symlink_to(own)
    copied.configure(choose_account(copied.directory, copied.binaries))
    assert (own.read_text(), own.stat().st_mode, own.stat().st_uid) == ("ours", before.st_mode, before.st_uid)
    assert not (copied.data / "convener.conf").is_symlink()


def test_a_port_is_kept_while_free() -> None:
    port = choose_port(None)
    assert port in PORTS
    assert is_free(port)
    assert choose_port(port) == port


def test_a_path_too_long_for_a_socket_has_none() -> None:
    assert offers_socket(Path("/" + "x" * (LONGEST_SOCKET_DIRECTORY - 1)))
    assert not offers_socket(Path("/" + "x" * LONGEST_SOCKET_DIRECTORY))
    assert not offers_socket(Path("/a,b"))


def test_settings_are_quoted() -> None:
    assert render({"log_line_prefix": r"it's \n"}) == "log_line_prefix = 'it''s \\\\n'\n"
