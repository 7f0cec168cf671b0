"""A database cluster in a directory: created in one step, locked by one process, configured at every start."""

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote

from app.postgres import roles
from app.postgres.accounts import Account, choose_account, give, server_environment
from app.postgres.binaries import Binaries
from app.postgres.configuration import (
    HOST,
    access_rules,
    choose_port,
    offers_socket,
    server_settings,
    socket_directory,
)
from app.postgres.errors import ClusterBusy, ClusterUnusable

INCLUDED_FILE = "convener.conf"
STAGING_PREFIX = "initialising-"
# What variables such as PGSSLMODE say is meant for servers of others.
_PARAMETERS = "sslmode=disable&target_session_attrs=any"


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
        """File with the password of the service's role; the superuser has none."""
        return self.directory / "password"

    @property
    def restore_mark(self) -> Path:
        """File that is there until a restore into the new cluster is done: also after one that was killed."""
        return self.directory / "restoring"

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
        """URL for asyncpg and libpq, complete once the server has started."""
        return f"postgresql://{roles.NAME}:{self._password()}@{HOST}:{self.port}/{roles.NAME}?{_PARAMETERS}"

    @property
    def socket_url(self) -> str | None:
        """URL by unix socket, which costs less per query; None where the path is too long for one."""
        sockets = socket_directory(self.directory)
        if not offers_socket(sockets):
            return None
        host = quote(str(sockets), safe="/")
        return f"postgresql://{roles.NAME}:{self._password()}@/{roles.NAME}?host={host}&port={self.port}&{_PARAMETERS}"

    @property
    def own_url(self) -> str:
        """URL for programs of this machine: by unix socket where there is one."""
        # A client gives its password to whoever asks for it: while the server is away anybody can take its port, but
        # only the server's user can put a socket into its directory.
        return self.socket_url or self.url

    def lock(self) -> DirectoryLock:
        """Create the directory and lock it for this process. Raises ClusterBusy while another process has the lock."""
        return lock_directory(self.directory)

    def initialise(self) -> bool:
        """Create the cluster unless it exists, in a directory that the caller has locked; return whether it was new.

        Raises ClusterUnusable, also when an existing cluster needs another version of PostgreSQL, or is half restored.
        """
        # All or nothing: it is built in a directory beside its place, which is renamed when complete.
        self._remove_unfinished()
        if self.is_initialised:
            if self.restore_mark.exists():
                raise ClusterUnusable(
                    f"A restore into {self.directory} was cut off. Repeat `convener db restore FILE --bundled`, which "
                    "makes it anew, or delete that directory to begin with an empty one."
                )
            self._check_version()
            return False
        account = choose_account(self.directory, self.binaries)
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=self.directory))
        try:
            self._build(staging, account)
            staging.rename(self.data.parent)
            give(self.directory, account)
        finally:
            self._remove_unfinished()
        _make_durable(self.directory)
        return True

    def configure(self, account: Account) -> None:
        """Write the settings for the next start, with a port that is free now. Raises ClusterUnusable."""
        port = choose_port(self.port)
        access = self.data / "convener_hba.conf"
        text = server_settings(port=port, directory=self.directory, access=access, extra=self.settings)
        self._write(self.data / INCLUDED_FILE, text, account)
        self._write(access, access_rules(roles.NAME), account)
        self._write(self.directory / "port", f"{port}\n")
        if not self.password_file.exists():  # of a version in which the service was the superuser
            self._separate_roles(account, self.data, roles.NAME)

    def maintain(self, account: Account, script: str, database: str = "postgres") -> None:
        """Run statements, one a line, as the superuser, while the server is stopped: nobody can log in as one.

        Raises ClusterUnusable.
        """
        self._run_alone(account, self.data, database, script)

    def _password(self) -> str:
        return self.password_file.read_text().strip()

    def _remove_unfinished(self) -> None:
        for staging in self.directory.glob(f"{STAGING_PREFIX}*"):
            shutil.rmtree(staging, ignore_errors=True)

    def _check_version(self) -> None:
        try:
            made_by = (self.data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise ClusterUnusable(
                f"{self.data} holds no database. If it is on a disk of its own, that is not mounted, or new: for a new "
                f"database make {self.directory} that mount."
            ) from None
        if made_by != str(self.binaries.version):
            raise ClusterUnusable(
                f"The data in {self.directory} were made by PostgreSQL {made_by}, but {self.binaries.directory} is "
                f"version {self.binaries.version}. Set CONVENER_POSTGRES_BIN to a PostgreSQL {made_by}, or dump them "
                "with that version and restore them into a new state directory."
            )

    def _build(self, staging: Path, account: Account) -> None:
        data = staging / "data"
        data.mkdir(mode=0o700)
        give(self.directory, account)
        no_sync = self.settings.get("fsync") == "off"
        # Locale C sorts by bytes, the same on every system and in every version: an upgrade never breaks an index.
        form = ["--encoding=UTF8", "--locale=C", "--auth=reject", "--data-checksums", "--no-instructions"]
        names = [f"--pgdata={data}", f"--username={roles.SUPERUSER}"]
        self._run(account, "initdb", *names, *form, *(["--no-sync"] if no_sync else []))
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"\ninclude_if_exists = '{INCLUDED_FILE}'\n")
        self._run_alone(account, data, "postgres", f"CREATE DATABASE {roles.NAME};\n")
        self._separate_roles(account, data)

    def _separate_roles(self, account: Account, data: Path, *databases: str) -> None:
        """Give the service a role that is no superuser, with a new password; it gets what is in these databases."""
        password = secrets.token_hex(24)
        self._run_alone(account, data, "postgres", roles.separation(password))
        for database in databases:
            self._run_alone(account, data, database, roles.handover())
        self._write(self.password_file, f"{password}\n")
        (self.data.parent / "password").unlink(missing_ok=True)

    def _run_alone(self, account: Account, data: Path, database: str, script: str) -> None:
        # Statements stay out of error messages, as one of them holds a password.
        options = ["-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", "-c", "log_min_messages=error"]
        options += ["-F"] if self.settings.get("fsync") == "off" else []
        self._run(account, "postgres", "--single", "-D", str(data), *options, database, statement=script)

    def _run(self, account: Account, program: str, *arguments: str, statement: str = "") -> None:
        run = subprocess.run(
            account.command(self.directory, self.binaries, program, *arguments),
            check=False,
            input=statement,
            capture_output=True,
            text=True,
            env=server_environment(),
        )
        if run.returncode != 0:
            raise ClusterUnusable(f"{program} could not prepare the cluster in {self.directory}: {run.stderr.strip()}")

    def _write(self, path: Path, text: str, account: Account | None = None) -> None:
        """Write a private file, which then belongs to the account, or else to whom the directory belongs to."""
        # By renaming, and by the descriptor: the server, which owns some directories, could have put a link in the way
        # of whoever started it. Beside its place, which may be on a disk of its own.
        draft = path.with_name(f"{path.name}.new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        keeper = self.directory.stat()
        with os.fdopen(descriptor, "w") as file:
            if os.geteuid() == 0:
                os.fchown(descriptor, *(account.owner if account else (keeper.st_uid, keeper.st_gid)))
            file.write(text)
        draft.rename(path)


def _make_durable(directory: Path) -> None:
    # A rename survives a power failure only once its directory has been written.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_directory(directory: Path) -> DirectoryLock:
    """Create a directory for its owner only, and lock it. Raises ClusterBusy while another process has the lock.

    Raises ClusterUnusable where the file system has no locks: two servers over the same data would destroy them.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Not inherited by children: a server that outlives its supervisor must not keep the next supervisor out.
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 300).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ClusterBusy(
            f"{directory} is in use by process {_stop(*holder.split(maxsplit=1))}, "
            "use the Convener that it runs, or choose another state directory."
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise ClusterUnusable(
            f"the file system of {directory} has no locks ({error.strerror}), which keep a second Convener away, on "
            "any host: set CONVENER_STATE_DIRECTORY to a directory on a disk of this one."
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
    return DirectoryLock(descriptor=descriptor)


def _stop(process: str, host: str | None = None) -> str:
    # Home directories are shared by hosts, each with processes of its own.
    if host is None or host == socket.gethostname():
        return f"{process}. Stop that process (kill {process})"
    return f"{process} on {host}. Stop that process there"
