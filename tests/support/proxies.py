"""haproxy and pgbouncer as processes of their own, with the files in deploy/, of which only places are changed."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
HAPROXY = DEPLOY / "haproxy" / "haproxy.cfg"
# What `.ci/run` sets once it has installed the programs.
REQUIRED = "CONVENER_TEST_PROXIES"
_START_SECONDS = 10.0


def program(name: str) -> str:
    """The path of haproxy or pgbouncer; skips the test where it is not installed and need not be."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None and os.environ.get(REQUIRED) != "required":
        pytest.skip(f"{name} is not installed")
    assert found is not None, f"{name} is not installed"
    return found


@contextmanager
def _running(command: Sequence[str], port: int, log: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("ab") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
    try:
        end = time.monotonic() + _START_SECONDS
        while not _listens(port):
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)
        yield child
    finally:
        child.kill()
        child.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooler:
    """A pgbouncer, and the directory that stands for /etc/pgbouncer."""

    directory: Path
    port: int
    user: str
    password: str

    def url(self, database: str) -> str:
        """The address of a database behind it."""
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def lead_to(self, port: int) -> None:
        """Write that the primary is at this port, as a failover does; only `reload` makes it so."""
        text = (DEPLOY / "pgbouncer" / "databases.ini").read_text()
        text, places = re.subn(
            r"^convener = host=127\.0\.0\.1 port=5432", f"* = host=127.0.0.1 port={port}", text, flags=re.M
        )
        assert places == 1
        (self.directory / "databases.ini").write_text(text)

    def reload(self) -> None:
        """Tell it that its files have changed."""
        self._say("RELOAD")

    def _say(self, words: str) -> None:
        environment = {**os.environ, "PGPASSWORD": self.password}
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", self.user, "-d", "pgbouncer"]
        subprocess.run(["psql", *address, "-c", words], env=environment, check=True, capture_output=True)

    @property
    def command(self) -> list[str]:
        """What runs it; root runs it as another user, since it refuses to run as root."""
        as_user = ["-u", "nobody"] if os.geteuid() == 0 else []
        return [program("pgbouncer"), *as_user, str(self.directory / "pgbouncer.ini")]


@contextmanager
def pooler_files(server_url: str, *, settings: Sequence[str] = ()) -> Iterator[Pooler]:
    """The files of a pgbouncer in front of all databases of a server; `settings` are lines in place of deploy's."""
    parts = urlsplit(server_url)
    # Its user must be able to come in.
    directory = Path(tempfile.mkdtemp(prefix="convener-pgbouncer-"))
    directory.chmod(0o711)
    pooler = Pooler(
        directory=directory,
        port=free_port(),
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )
    try:
        pooler.lead_to(parts.port or 5432)
        (directory / "userlist.txt").write_text(f'"{pooler.user}" "{pooler.password}"\n')
        text = (DEPLOY / "pgbouncer" / "pgbouncer.ini").read_text()
        text = re.sub(r"/etc/pgbouncer|/var/(log|run)/postgresql", str(directory), text)
        for line in (f"listen_port = {pooler.port}", f"admin_users = {pooler.user}", *settings):
            text, places = re.subn(f"^{re.escape(line.partition('=')[0])}=.*$", line, text, flags=re.M)
            assert places == 1, line
        (directory / "pgbouncer.ini").write_text(text)
        if os.geteuid() == 0:
            for path in (directory, *directory.iterdir()):
                shutil.chown(path, "nobody", "nogroup")
        yield pooler
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def pgbouncer(server_url: str, log: Path, *, settings: Sequence[str] = ()) -> Iterator[Pooler]:
    """A pgbouncer in front of all databases of a server; `settings` are lines in place of those of deploy/."""
    with pooler_files(server_url, settings=settings) as pooler, _running(pooler.command, pooler.port, log):
        yield pooler


def haproxy_command(file: Path = HAPROXY) -> list[str]:
    """What runs haproxy in the foreground."""
    return [program("haproxy"), "-db", "-f", str(file)]


def haproxy_places(port: int, api_ports: Sequence[int]) -> dict[str, str]:
    """The variables of its environment, for its own port and those of two APIs."""
    places = {f"CONVENER_API_{number}": f"127.0.0.1:{place}" for number, place in enumerate(api_ports, 1)}
    return {"CONVENER_BIND": f"127.0.0.1:{port}", **places}


@contextmanager
def haproxy(api_ports: Sequence[int], log: Path, file: Path = HAPROXY) -> Iterator[int]:
    """A haproxy in front of two APIs; its port."""
    port = free_port()
    with _running(haproxy_command(file), port, log, **haproxy_places(port, api_ports)):
        yield port
