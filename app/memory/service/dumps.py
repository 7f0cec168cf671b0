"""PostgreSQL's own programs for dumping and restoring: which server they speak to, and what they say when they fail."""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from app.postgres.binaries import Binaries
from app.postgres.errors import DumpFailed

# What libpq knows; other drivers accept more in their addresses.
_PARAMETERS = frozenset(
    {
        *("host", "port", "user", "dbname", "options", "application_name", "connect_timeout", "passfile"),
        *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "target_session_attrs", "gssencmode"),
        "channel_binding",
    }
)
_LOOK_SECONDS = 0.2
_LINES = 5
# The entry of the table of contents that says at which revision the schema is.
_VERSION_ENTRY = re.compile(r"^\d+; \d+ \d+ TABLE DATA \S+ alembic_version\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dumps:
    """Dumps in the custom format, made and restored by the programs of one installation."""

    binaries: Binaries

    def dump(self, url: str, file: Path, say: Callable[[int], object]) -> None:
        """Write the whole database into `file`, which exists; `say` hears now and then how many bytes it has.

        Raises DumpFailed.
        """
        arguments = ["--format=custom", f"--file={file}"]
        self._run("pg_dump", arguments, url, lambda: say(file.stat().st_size))

    def contents(self, file: Path) -> list[str]:
        """The table of contents. Raises DumpFailed where the file cannot be read as a dump."""
        return self._run("pg_restore", ["--list", str(file)]).splitlines()

    def revision(self, file: Path) -> str | None:
        """The revision of the schema in the dump, None where it holds none of ours. Raises DumpFailed."""
        script = self._run("pg_restore", ["--data-only", "--table=alembic_version", "--file=-", str(file)])
        found = re.search(r"^COPY \S*alembic_version .*\n(.+)$", script, re.MULTILINE)
        return found[1] if found and found[1] != "\\." else None

    def restore(self, url: str, file: Path, say: Callable[[], object]) -> None:
        """Restore all but the revision, as a whole or not at all. Raises DumpFailed.

        Without a revision no service works on the database: whoever restores it sets it when all is well.
        """
        entries = [line for line in self.contents(file) if not _VERSION_ENTRY.match(line)]
        with _listed(entries) as chosen:
            whole = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
            self._run("pg_restore", [*whole, f"--use-list={chosen}", str(file)], url, say)

    def _run(
        self, program: str, arguments: Sequence[str], url: str | None = None, say: Callable[[], object] = lambda: None
    ) -> str:
        address, environment = connection(url) if url else ([], {})
        command = [str(self.binaries.program(program)), *address, *arguments]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env={**os.environ, **environment}
            )
            try:
                _await(child, say)
            finally:
                child.kill()
                child.wait()
            errors.seek(0)
            if child.returncode != 0:
                raise DumpFailed(_last_words(program, child.returncode, errors.read()))
            out.seek(0)
            return out.read()


def connection(url: str) -> tuple[list[str], Mapping[str, str]]:
    """How to tell a program of PostgreSQL where to connect: arguments, and the password by environment.

    Everybody may read the arguments of a process, its environment only its owner.
    """
    parts = urlsplit(url)
    given = parse_qsl(parts.query)
    password = next((value for name, value in given if name == "password"), unquote(parts.password or ""))
    # An address may name several hosts, so the part before them is cut by hand.
    place = parts.netloc.rpartition("@")[2]
    user = f"{parts.netloc.rpartition('@')[0].partition(':')[0]}@" if "@" in parts.netloc else ""
    query = urlencode([(name, value) for name, value in given if name in _PARAMETERS])
    plain = f"postgresql://{user}{place}{parts.path}" + (f"?{query}" if query else "")
    return ["--no-password", f"--dbname={plain}"], {"PGPASSWORD": password} if password else {}


@contextmanager
def _listed(entries: Sequence[str]) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile("w", suffix=".list") as file:
        file.write("\n".join(entries) + "\n")
        file.flush()
        yield Path(file.name)


def _await(child: "subprocess.Popen[bytes]", say: Callable[[], object]) -> None:
    while True:
        try:
            child.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            say()
        else:
            return


def _last_words(program: str, code: int, said: str) -> str:
    lines = [line for line in said.strip().splitlines() if line.strip()] or [f"it ended with code {code}"]
    return f"{program}: " + " / ".join(line.removeprefix(f"{program}: ") for line in lines[:_LINES])
