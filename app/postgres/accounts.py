"""Accounts: choose the one that PostgreSQL runs under, because it refuses to run as root."""

import os
import pwd
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from app.postgres import launch
from app.postgres.binaries import Binaries
from app.postgres.errors import ClusterUnusable

NOBODY = 65534


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account to run programs under, and the owner of their files as user and group ids; None: the present user."""

    word: str
    owner: tuple[int, int] | None = None

    def command(self, directory: Path, program: Path, *arguments: str) -> list[str]:
        """Return a command that runs a program in a directory under this account, and ends it with this process."""
        wrapper = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), self.word, str(directory)]
        return [*wrapper, str(program), *arguments]

    def own(self, path: Path) -> None:
        """Give a file to the owner of this account."""
        if self.owner is not None:
            os.chown(path, *self.owner, follow_symlinks=False)


SAME = Account(word=launch.SAME)
NAMESPACE = Account(word=launch.NAMESPACE)


def user_account(uid: int, gid: int) -> Account:
    """Return the account of another user, which only root can take."""
    return Account(word=f"{uid}:{gid}", owner=(uid, gid))


def choose_account(directory: Path, binaries: Binaries) -> Account:
    """Return the first account that can run the server, and give it an existing directory. Raises ClusterUnusable."""
    # Root may own the files but not run the server: a user namespace solves that without changing them. Where
    # namespaces are forbidden, as in many containers, the directory is given to `nobody`, and stays with it.
    refusals = []
    for account in _candidates(directory):
        refusal = _refusal(account, directory.parent, binaries)
        if refusal is None:
            _give(directory, account)
            return account
        refusals.append(refusal)
    raise ClusterUnusable(
        f"PostgreSQL cannot run in {directory}: {'; '.join(refusals)}. Start Convener as an ordinary user that has a "
        "name, or choose a directory (and an installation of PostgreSQL) that the user nobody can reach."
    )


def _candidates(directory: Path) -> tuple[Account, ...]:
    user, owner = os.geteuid(), directory.stat()
    if user != 0:
        return (SAME,) if _is_named(user) else (NAMESPACE,)
    if owner.st_uid != 0:
        return (user_account(owner.st_uid, owner.st_gid),)
    return (NAMESPACE, _nobody())


def _refusal(account: Account, directory: Path, binaries: Binaries) -> str | None:
    """Return why the account cannot run the server in a directory, after a try with `--version`; None when it can."""
    if account == SAME:
        return None
    command = account.command(directory, binaries.program("postgres"), "--version")
    trial = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    return None if trial.returncode == 0 else trial.stderr.strip()


def _give(directory: Path, account: Account) -> None:
    status = directory.stat()
    if account.owner is None or (status.st_uid, status.st_gid) == account.owner:
        return
    # The directory comes last: a crash in the middle leaves it with its old owner, so the next start does all again.
    for path in (*directory.rglob("*"), directory):
        account.own(path)


def _is_named(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _nobody() -> Account:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return user_account(NOBODY, NOBODY)
    return user_account(entry.pw_uid, entry.pw_gid)
