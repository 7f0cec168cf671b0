"""A script that takes the account PostgreSQL may run under, binds its life to its parent's, and becomes the program.

    python -I -S launch.py PARENT_PID ACCOUNT DIRECTORY PROGRAM [ARGUMENT ...]

It stands between fork and exec instead of a `preexec_fn`, which is not safe beside threads. It imports nothing of the
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
    parent, account, directory, *command = arguments
    try:
        take_account(account)
        stop_with_parent(int(parent))
        os.chdir(directory)
        os.execv(command[0], command)  # noqa: S606 - a shell would only stand in between
    except (OSError, LookupError) as error:
        sys.exit(f"cannot run {command[0]} as {account}: {error}")


def take_account(account: str) -> None:
    """`same`, `namespace`, or `UID:GID`, which only root may ask for."""
    if account == NAMESPACE:
        enter_user_namespace()
    elif account != SAME:
        uid, gid = map(int, account.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def enter_user_namespace() -> None:
    """For the kernel and its files we stay who we are, while the program sees an ordinary user instead of root."""
    uid, gid, seen_as = os.geteuid(), os.getegid(), named_user()
    if sys.platform != "linux" or ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), f"no user namespace, {os.strerror(ctypes.get_errno())}")
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{seen_as} {uid} 1"),
        ("gid_map", f"{seen_as} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(content)


def named_user() -> int:
    """The lowest user id above root that has a name: initdb looks its own name up and refuses to be nameless."""
    ids = [entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid > 0]
    if not ids:
        raise LookupError("the user database has no ordinary user")
    return min(ids)


def stop_with_parent(parent: int) -> None:
    """Asks the kernel for SIGINT, PostgreSQL's fast shutdown, when the starting thread dies, however it dies.

    A change of credentials clears the request, so it comes after the account is taken.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the starting process has already died")


if __name__ == "__main__":
    main(sys.argv[1:])
