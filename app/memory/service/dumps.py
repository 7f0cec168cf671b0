"""Dumps by PostgreSQL's own programs: their arguments, their connection, and their errors."""

import asyncio
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from app.kernel.database_urls import server_urls
from app.postgres.binaries import Binaries
from app.postgres.errors import DumpFailed, ProgramSilent
from app.postgres.launch import stop_with_parent

T = TypeVar("T")

# Parameters that libpq knows; it refuses an address with any other, such as those of asyncpg.
_LIBPQ_PARAMETERS = frozenset(
    {
        *("host", "port", "user", "dbname", "options", "application_name", "connect_timeout", "passfile"),
        *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "target_session_attrs", "gssencmode"),
        "channel_binding",
    }
)
# What the driver does not follow, and would lead these programs to another server or change what they write.
_FOLLOWED_BY_LIBPQ_ALONE = frozenset({"PGSERVICE", "PGHOSTADDR", "PGOPTIONS", "PGCLIENTENCODING"})
_POLL_SECONDS = 0.2
_ESCAPED = re.compile(r"[:\\]")
_MAX_ERROR_LINES = 5
# An entry of the table of contents: a number, two ids, a kind, its schema, or - where it has none, a name and an owner.
# This one holds the revision of our tables.
_REVISION_ENTRY = re.compile(r"^\d+; \d+ \d+ TABLE DATA (.+) alembic_version\b")
_SCHEMA_ENTRY = re.compile(r"^\d+; \d+ \d+ SCHEMA - (.+) \S+$")
_EXTENSION_ENTRY = re.compile(r"^\d+; \d+ \d+ EXTENSION - (\S+)")
# Extensions, publications, event triggers and the like, which only a superuser may make, and which are none of ours.
_OF_THE_SERVER = re.compile(r"^\d+; \d+ \d+ (?:PUBLICATION |(?!SCHEMA )[A-Z ]+ - )")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A database to restore into: the schemas that it has, and the extensions that our role may make there."""

    schemas: Collection[str]
    extensions: Collection[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dumps:
    """Dumps in the custom format, by the programs of one installation of PostgreSQL."""

    binaries: Binaries

    async def dump(self, url: str, file: Path, report: Callable[[int], object]) -> None:
        """Write the whole database into the existing `file`; call `report` now and then with its size in bytes.

        Raises DumpFailed.
        """
        arguments = ["--format=custom", f"--file={file}"]
        await _in_thread(lambda poll: self._run("pg_dump", arguments, url, poll), lambda: report(file.stat().st_size))

    def contents(self, file: Path) -> list[str]:
        """Lines of the table of contents. Raises DumpFailed where the file cannot be read as a dump."""
        return self._run("pg_restore", ["--list", str(file)]).splitlines()

    def revision(self, file: Path) -> str | None:
        """Revision of the schema in the dump; None where it holds no database of this service. Raises DumpFailed."""
        script = self._run("pg_restore", ["--data-only", "--table=alembic_version", "--file=-", str(file)])
        match = re.search(r"^COPY \S*alembic_version .*\n(.+)$", script, re.MULTILINE)
        return match[1] if match and match[1] != "\\." else None

    async def restore(self, url: str, file: Path, target: Target) -> None:
        """Restore everything but the revision and the schemas that are there, as a whole or not at all.

        Without a revision no service works on the database: the caller sets it when the rest of the restore is done.
        What others have made for the server beside our tables, such as publications, is left out. Raises DumpFailed.
        """
        await _in_thread(lambda poll: self._restore(url, file, target, poll))

    def _restore(self, url: str, file: Path, target: Target, poll: Callable[[], object]) -> None:
        entries = [line for line in self.contents(file) if not _is_left_out(line, target)]
        # Without a name, as a password file: a crash leaves nothing of it.
        with tempfile.TemporaryFile("w") as list_file:
            list_file.write("\n".join(entries) + "\n")
            list_file.seek(0)
            descriptor = list_file.fileno()
            # Owners, privileges and tablespaces are those of the old server: this one may not have its roles and disks.
            options = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", "--no-tablespaces"]
            self._run("pg_restore", [*options, f"--use-list=/dev/fd/{descriptor}", str(file)], url, poll, [descriptor])

    def _run(
        self,
        program: str,
        arguments: Sequence[str],
        url: str | None = None,
        poll: Callable[[], object] = lambda: None,
        descriptors: Sequence[int] = (),
    ) -> str:
        address, password = connection_arguments(url) if url else ([], "")
        command = [str(self.binaries.program(program)), *address, *arguments]
        # Files rather than pipes, which could fill up and block a program that nobody reads from.
        with (
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as errors,
            _password_file(password) as descriptor,
        ):
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=_environment(descriptor if password else None),
                pass_fds=[descriptor, *descriptors],
                # A dump that nobody waits for would go on for hours, with its snapshot: also where we are killed.
                preexec_fn=partial(stop_with_parent, os.getpid()),  # noqa: PLW1509 - two calls of the kernel
            )
            try:
                _wait_for_exit(child, poll)
            finally:
                child.kill()
                child.wait()
            errors.seek(0)
            if child.returncode != 0:
                text = errors.read()
                kind = DumpFailed if text.strip() or child.returncode < 0 else ProgramSilent
                raise kind(_error_message(program, child.returncode, text))
            out.seek(0)
            return out.read()


def table_schema(entries: Sequence[str]) -> str | None:
    """The schema that our tables are in, by the table of contents; None where it has none of them."""
    return next((match[1] for entry in entries if (match := _REVISION_ENTRY.match(entry))), None)


def _is_left_out(entry: str, target: Target) -> bool:
    # An index of somebody else on our tables may need its extension.
    if extension := _EXTENSION_ENTRY.match(entry):
        return extension[1] not in target.extensions
    schema = _SCHEMA_ENTRY.match(entry)
    is_there = schema is not None and schema[1] in target.schemas
    return is_there or bool(_REVISION_ENTRY.match(entry) or _OF_THE_SERVER.match(entry))


def connection_arguments(url: str) -> tuple[list[str], str]:
    """Arguments by which a program of PostgreSQL connects to the database at `url`, and the password for it."""
    parts = urlsplit(url)
    parameters = parse_qsl(parts.query)
    if len(server_urls(url)) > 1:
        # Before what the address says itself, which is the last to count: a standby may lag.
        parameters.insert(0, ("target_session_attrs", "read-write"))
    password = next((value for name, value in parameters if name == "password"), unquote(parts.password or ""))
    # By hand, because `hostname` and `port` fail on an address with several hosts.
    hosts = parts.netloc.rpartition("@")[2]
    # The last "@" ends the password, which may contain others.
    user = f"{parts.netloc.rpartition('@')[0].partition(':')[0]}@" if "@" in parts.netloc else ""
    query = urlencode([(name, value) for name, value in parameters if name in _LIBPQ_PARAMETERS])
    plain = f"postgresql://{user}{hosts}{parts.path}" + (f"?{query}" if query else "")
    # --no-password: fail rather than ask on a terminal that a service does not have.
    return ["--no-password", f"--dbname={plain}"], password


@contextmanager
def _password_file(password: str) -> Iterator[int]:
    """A password file without a name, as a descriptor: nobody else can open it, and a crash leaves nothing of it."""
    with tempfile.TemporaryFile("w") as file:
        file.write("*:*:*:*:" + _ESCAPED.sub(r"\\\g<0>", password) + "\n")
        file.flush()
        file.seek(0)
        yield file.fileno()


def _environment(password_file: int | None) -> dict[str, str]:
    """That of this process without its secrets, and with the password file."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CONVENER_") and name not in _FOLLOWED_BY_LIBPQ_ALONE
    }
    if password_file is None:
        return ours
    ours.pop("PGPASSWORD", None)  # it would win
    return ours | {"PGPASSFILE": f"/dev/fd/{password_file}"}


async def _in_thread(work: Callable[[Callable[[], object]], T], report: Callable[[], object] = lambda: None) -> T:
    """The result of `work` in a thread; what that calls now and then reports, and ends it once nobody waits for it."""
    is_over = threading.Event()

    def poll() -> None:
        if is_over.is_set():
            raise InterruptedError
        report()

    try:
        return await asyncio.to_thread(work, poll)
    finally:
        is_over.set()


def _wait_for_exit(child: "subprocess.Popen[bytes]", poll: Callable[[], object]) -> None:
    while True:
        try:
            child.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            poll()
        else:
            return


def _error_message(program: str, code: int, stderr: str) -> str:
    silence = f"it ended with code {code}"
    if code > 0:  # and not by a signal: what it says goes into a temporary file
        silence += " and said nothing: is there room for temporary files (TMPDIR)?"
    lines = [line for line in stderr.strip().splitlines() if line.strip()] or [silence]
    return f"{program}: " + " / ".join(line.removeprefix(f"{program}: ") for line in lines[:_MAX_ERROR_LINES])
