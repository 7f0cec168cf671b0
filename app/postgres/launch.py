"""Script that takes the account PostgreSQL may run under, ties its life to its parent's, and becomes the program.

    python -I -S launch.py PARENT_PID ACCOUNT DIRECTORY PROGRAM [ARGUMENT ...]

It runs between fork and exec in place of a `preexec_fn`, which is not safe beside threads. It imports nothing of the
service, so it takes about 20 ms, and it adds no process: the program keeps the pid that the parent knows.
"""

import ctypes
import os
import pwd
import signal
import sys

SAME = "same"
NAMESPACE = "namespace"

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the program, or exit with a message."""
    parent, account, directory, *command = arguments
    try:
        take_account(account)
        stop_with_parent(int(parent))
        os.chdir(directory)
        os.execv(command[0], command)  # noqa: S606 - a shell would only stand in between
    except (OSError, LookupError) as error:
        sys.exit(f"cannot run {command[0]} as {account}: {error}")


def take_account(account: str) -> None:
    """Take an account: `same`, `namespace`, or `UID:GID`, which only root can take. Raises OSError, LookupError."""
    if account == NAMESPACE:
        enter_user_namespace()
    elif account != SAME:
        uid, gid = map(int, account.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def enter_user_namespace() -> None:
    """Show the program an ordinary user instead of root, while kernel and files see the same user as before."""
    uid, gid, inner_id = os.geteuid(), os.getegid(), named_user()
    if sys.platform != "linux" or ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), f"no user namespace, {os.strerror(ctypes.get_errno())}")
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{inner_id} {uid} 1"),
        ("gid_map", f"{inner_id} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(content)


def named_user() -> int:
    """Return the lowest user id above root that has a name, because initdb looks up its own. Raises LookupError."""
    ids = [entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid > 0]
    if not ids:
        raise LookupError("the user database has no ordinary user")
    return min(ids)


def stop_with_parent(parent: int) -> None:
    """Ask the kernel to send SIGINT, PostgreSQL's fast shutdown, when the starting thread dies, however it dies."""
    # To be called after the account is taken: a change of credentials clears the request.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the starting process has already died")


if __name__ == "__main__":
    main(sys.argv[1:])
