"""Accounts: choose the one that PostgreSQL runs under, with no more of the machine than it needs."""

import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.postgres import launch
from app.postgres.binaries import Binaries
from app.postgres.errors import ClusterUnusable

# A user that exists nowhere else: above those of systemd's and of containers' ranges, below 2^31.
SERVER_ID = 1_900_500_432
NOBODY = 65534
_PASSED_ON = frozenset({"PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account to run programs under, and the owner of their files as user and group ids."""

    word: str
    owner: tuple[int, int]

    @property
    def is_confined(self) -> bool:
        """Whether the server sees nothing of the state directory but its own parts, and has no rights of root."""
        return self.word.startswith(launch.CONFINED)

    def describe(self) -> str:
        """Return in words how far the server can reach."""
        if self.is_confined:
            user = "your user" if os.geteuid() else f"a user of its own ({self.owner[0]})"
            return f"PostgreSQL runs as {user} and sees its own part of the state directory only"
        if os.geteuid() or self.word != launch.NAMESPACE:
            return f"PostgreSQL runs as user {self.owner[0]} and can reach whatever that user can"
        return "PostgreSQL runs with root's access to files"

    def command(self, directory: Path, binaries: Binaries, program: str, *arguments: str) -> list[str]:
        """Return a command that runs a program in a directory under this account, and ends it with this process."""
        places = (*_parts(directory), *binaries.places) if self.is_confined else ()
        kept = [f"{launch.KEEP}{path}" for path in places]
        return bound_command(directory, *kept, str(binaries.program(program)), *arguments, word=self.word)

    def own(self, path: Path) -> None:
        """Give a file to the owner of this account."""
        if os.geteuid() == 0:
            os.chown(path, *self.owner, follow_symlinks=False)


def bound_command(directory: Path, *command: str, word: str = launch.SAME) -> list[str]:
    """Return a command that becomes another one in a directory, under an account, and ends with this process."""
    return [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), word, str(directory), *command]


def own_account(word: str) -> Account:
    """Return an account whose files belong to the present user."""
    return Account(word=word, owner=(os.geteuid(), os.getegid()))


def user_account(uid: int, gid: int) -> Account:
    """Return the account of another user, which only root can take."""
    return Account(word=f"{uid}:{gid}", owner=(uid, gid))


CONFINEMENT_REMEDY = (
    "allow mount namespaces (root needs CAP_SYS_ADMIN, others user namespaces, which some systems restrict), or name a "
    "PostgreSQL of your own by CONVENER_DATABASE_URL"
)


def server_environment() -> dict[str, str]:
    """Return the environment of PostgreSQL's programs: neither our secrets nor those of whoever started us."""
    return {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith("LC_")}


def choose_account(directory: Path, binaries: Binaries) -> Account:
    """Return the first account that can run the server, and give it its parts of an existing directory.

    Raises ClusterUnusable.
    """
    for part in (directory / "log", directory / "socket"):
        part.mkdir(mode=0o700, exist_ok=True)
    account = usable_account(directory, binaries)
    give(directory, account)
    return account


def usable_account(directory: Path, binaries: Binaries) -> Account:
    """Return the first account that can run the server in an existing directory. Raises ClusterUnusable."""
    refusals = []
    for account in _candidates(directory):
        refusal = _refusal(account, directory, binaries)
        if refusal is None:
            return account
        refusals.append(refusal)
    raise ClusterUnusable(
        f"PostgreSQL cannot run in {directory}: {'; '.join(refusals)}. Start Convener as an ordinary user that has a "
        "name, or choose a directory (and an installation of PostgreSQL) that the user nobody can reach."
    )


def _candidates(directory: Path) -> Sequence[Account]:
    """Accounts from the safest on. PostgreSQL itself refuses to run as root, and needs a user that has a name."""
    user, owner = os.geteuid(), directory.stat()
    if user != 0:
        return (own_account(launch.CONFINED), own_account(launch.SAME if launch.is_named(user) else launch.NAMESPACE))
    # `nobody` is what earlier versions gave the directory to.
    if owner.st_uid not in (0, _nobody().owner[0]):
        return (user_account(owner.st_uid, owner.st_gid),)
    confined = Account(word=f"{launch.CONFINED}:{SERVER_ID}:{SERVER_ID}", owner=(SERVER_ID, SERVER_ID))
    # In the namespace the server is no root to itself, but to the files: the last resort.
    return (confined, _nobody(), own_account(launch.NAMESPACE))


def _refusal(account: Account, directory: Path, binaries: Binaries) -> str | None:
    """Return why the account cannot run the server in a directory, after a try with `--version`; None when it can."""
    if account.word == launch.SAME:
        return None
    # What is not confined is let into the directory itself only once it is chosen.
    place = directory if account.is_confined else directory.parent
    command = account.command(place, binaries, "postgres", "--version")
    environment = server_environment()
    trial = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30, env=environment)
    return None if trial.returncode == 0 else trial.stderr.strip()


def give(directory: Path, account: Account) -> None:
    """Give the parts of a directory that the server works in to an account, and let it come to them."""
    if os.geteuid() != 0:
        return
    keeper = directory.stat()
    if (keeper.st_uid, keeper.st_gid) == _nobody().owner:
        os.chown(directory, 0, 0)
        for path in (path for path in directory.iterdir() if path.is_file()):
            os.chown(path, 0, 0, follow_symlinks=False)
    for part in _parts(directory):
        status = part.stat()
        if (status.st_uid, status.st_gid) != account.owner:
            # The directory comes last: a crash in the middle leaves its old owner, so the next start does all again.
            for path in (*part.rglob("*"), part):
                account.own(path)
    # What is confined has a path of its own. Others may pass through, but neither look around nor change anything.
    is_guest = not account.is_confined and account.owner[0] not in (0, directory.stat().st_uid)
    for place in (directory, *(part.parent for part in _parts(directory) if part.parent != directory)):
        os.chown(place, -1, account.owner[1] if is_guest else directory.stat().st_gid)
        place.chmod(0o710 if is_guest else 0o700)


def _parts(directory: Path) -> list[Path]:
    """Return the directories that the server itself writes to, as far as there are any."""
    parts = [directory / "log", directory / "socket", *directory.glob("*/data")]
    return [part for part in parts if part.is_dir() and not part.is_symlink()]


def _nobody() -> Account:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return user_account(NOBODY, NOBODY)
    return user_account(entry.pw_uid, entry.pw_gid)
