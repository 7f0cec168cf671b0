"""A database cluster in a directory: created in one step, locked by one process, configured at every start."""

import fcntl
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote

from app.postgres.accounts import Account, choose_account
from app.postgres.binaries import Binaries
from app.postgres.configuration import HOST, choose_port, offers_socket, server_settings
from app.postgres.errors import ClusterBusy, ClusterUnusable

# Name of the superuser and of the database.
NAME = "convener"
INCLUDED_FILE = "convener.conf"
STAGING_PREFIX = "initialising-"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryLock:
    """A lock of a directory until it is released or the process ends: the kernel releases it even after kill -9."""

    descriptor: int

    def release(self) -> None:
        """Release the lock."""
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster in `directory`, which must contain nothing else; `settings` override the defaults."""

    directory: Path
    binaries: Binaries
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", self.directory.expanduser().resolve())

    @property
    def data(self) -> Path:
        """Data directory of the server."""
        return self.directory / "cluster" / "data"

    @property
    def password_file(self) -> Path:
        """File with the password of the superuser."""
        return self.directory / "cluster" / "password"

    @property
    def is_initialised(self) -> bool:
        """Whether the cluster exists."""
        return self.data.exists()

    @property
    def port(self) -> int | None:
        """Port of the latest start; None before the first."""
        try:
            return int((self.directory / "port").read_text())
        except (FileNotFoundError, ValueError):
            return None

    @property
    def url(self) -> str:
        """URL for asyncpg, complete once the server has started; SQLAlchemy needs `postgresql+asyncpg` instead."""
        return f"postgresql://{NAME}:{self._password()}@{HOST}:{self.port}/{NAME}"

    @property
    def socket_url(self) -> str | None:
        """URL by unix socket, which costs less per query; None where the path is too long for one."""
        if not offers_socket(self.directory):
            return None
        host = quote(str(self.directory), safe="/")
        return f"postgresql://{NAME}:{self._password()}@/{NAME}?host={host}&port={self.port}"

    def lock(self) -> DirectoryLock:
        """Create the directory and lock it for this process. Raises ClusterBusy while another process has the lock."""
        return lock_directory(self.directory)

    def initialise(self) -> bool:
        """Create the cluster unless it exists, in a directory that the caller has locked; return whether it was new.

        Raises ClusterUnusable, also when an existing cluster needs another version of PostgreSQL.
        """
        # All or nothing: it is built in a directory beside its place, which is renamed when complete.
        self._remove_unfinished()
        if self.is_initialised:
            self._check_version()
            return False
        account = choose_account(self.directory, self.binaries)
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=self.directory))
        try:
            self._build(staging, account)
            staging.rename(self.data.parent)
        finally:
            self._remove_unfinished()
        _make_durable(self.directory)
        return True

    def configure(self, account: Account) -> None:
        """Write the settings for the next start, with a port that is free now."""
        port = choose_port(self.port)
        text = server_settings(port=port, directory=self.directory, extra=self.settings)
        _write(self.data / INCLUDED_FILE, text, account)
        _write(self.directory / "port", f"{port}\n", account)
        (self.directory / "log").mkdir(mode=0o700, exist_ok=True)
        account.own(self.directory / "log")

    def _password(self) -> str:
        return self.password_file.read_text().strip()

    def _remove_unfinished(self) -> None:
        for staging in self.directory.glob(f"{STAGING_PREFIX}*"):
            shutil.rmtree(staging, ignore_errors=True)

    def _check_version(self) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != str(self.binaries.version):
            raise ClusterUnusable(
                f"The data in {self.directory} were made by PostgreSQL {made_by}, but {self.binaries.directory} is "
                f"version {self.binaries.version}. Set CONVENER_POSTGRES_BIN to a PostgreSQL {made_by}, or dump them "
                "with that version and restore them into a new state directory."
            )

    def _build(self, staging: Path, account: Account) -> None:
        account.own(staging)
        password, data = staging / "password", staging / "data"
        password.touch(mode=0o600)
        _write(password, f"{secrets.token_hex(24)}\n", account)
        no_sync = self.settings.get("fsync") == "off"
        # Locale C sorts by bytes, the same on every system and in every version: an upgrade never breaks an index.
        form = ["--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", "--data-checksums", "--no-instructions"]
        names = [f"--pgdata={data}", f"--username={NAME}", f"--pwfile={password}"]
        self._run(account, "initdb", *names, *form, *(["--no-sync"] if no_sync else []))
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"\ninclude_if_exists = '{INCLUDED_FILE}'\n")
        alone = ["--single", "-D", str(data), "-c", "exit_on_error=on", *(["-F"] if no_sync else []), "postgres"]
        self._run(account, "postgres", *alone, statement=f"CREATE DATABASE {NAME};\n")

    def _run(self, account: Account, program: str, *arguments: str, statement: str = "") -> None:
        command = account.command(self.directory, self.binaries.program(program), *arguments)
        run = subprocess.run(command, check=False, input=statement, capture_output=True, text=True)
        if run.returncode != 0:
            raise ClusterUnusable(f"{program} could not make a cluster in {self.directory}: {run.stderr.strip()}")


def _write(path: Path, text: str, account: Account) -> None:
    path.write_text(text)
    account.own(path)


def _make_durable(directory: Path) -> None:
    # A rename survives a power failure only once its directory has been written.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_directory(directory: Path) -> DirectoryLock:
    """Create a directory for its owner only, and lock it. Raises ClusterBusy while another process has the lock."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Not inherited by children: a server that outlives its supervisor must not keep the next supervisor out.
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode().strip() or "unknown"
        os.close(descriptor)
        raise ClusterBusy(
            f"{directory} is in use by process {holder}. Stop that process (kill {holder}), "
            "use the Convener that it runs, or choose another state directory."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return DirectoryLock(descriptor=descriptor)
