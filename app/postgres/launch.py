"""Script that takes the account PostgreSQL may run under, ties its life to its parent's, and becomes the program.

    python -I -S launch.py PARENT_PID ACCOUNT DIRECTORY [--keep=PATH ...] PROGRAM [ARGUMENT ...]

It runs between fork and exec in place of a `preexec_fn`, which is not safe beside threads. It imports nothing of the
service, so it takes about 20 ms, and it adds no process: the program keeps the pid that the parent knows.
"""

import ctypes
import os
import pwd
import signal
import stat
import sys

SAME = "same"
NAMESPACE = "namespace"
CONFINED = "confined"
KEEP = "--keep="

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def main(arguments: list[str]) -> None:
    """Become the program, or exit with a message."""
    parent, account, directory, *command = arguments
    kept = []
    while command[0].startswith(KEEP):
        kept.append(command.pop(0).removeprefix(KEEP))
    try:
        take_account(account, directory, kept)
        stop_with_parent(int(parent))
        os.chdir(directory)
        os.execv(command[0], command)  # noqa: S606 - a shell would only stand in between
    except (OSError, LookupError) as error:
        sys.exit(f"cannot run {command[0]} as {account}: {error}")


def take_account(account: str, directory: str, kept: list[str]) -> None:
    """Take an account; raises OSError, LookupError.

    It is `same`, `namespace`, `confined`, `UID:GID` or `confined:UID:GID`, of which only root can take the last two.
    """
    if account == SAME:
        return
    if account == NAMESPACE:
        enter_user_namespace(named_user())
    elif account == CONFINED:
        enter_user_namespace(os.geteuid() if is_named(os.geteuid()) else named_user(), CLONE_NEWNS)
        confine(directory, kept)
    else:
        uid, gid = map(int, account.removeprefix(f"{CONFINED}:").split(":"))
        if account.startswith(CONFINED):
            unshare(CLONE_NEWNS)
            confine(directory, kept, uid)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def enter_user_namespace(inner_id: int, others: int = 0) -> None:
    """Enter a user namespace in which this user has another id, while kernel and files see the same one as before."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | others)
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{inner_id} {uid} 1"),
        ("gid_map", f"{inner_id} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(content)


def confine(directory: str, kept: list[str], uid: int | None = None) -> None:
    """Hide the directory above this one, but for what is kept, and forbid to gain privileges; give `uid` a name.

    Where the user to be cannot even come that far, the uppermost directory that is closed to it is hidden instead: so a
    path leads to what is kept, and nothing is opened. Needs a mount namespace of its own.
    """
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    # What is made here leads the user to be to its own, whatever whoever started us keeps to; PostgreSQL sets its own.
    former_umask = os.umask(0o022)
    hidden = {place for path in kept if uid is not None and (place := first_closed(path))}
    if not any(is_within(directory, place) for place in hidden):
        parent = os.path.dirname(directory)
        hidden.add(directory if parent == "/" else parent)
    # Opened before they are covered, which is how they are reached afterwards.
    sources = {path: os.open(path, os.O_PATH) for path in kept if any(is_within(path, place) for place in hidden)}
    for place in sorted(hidden):
        if os.path.isdir(place):  # unless it lies below one that is hidden by now
            mount("none", place, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    os.makedirs(directory, exist_ok=True)
    for path, descriptor in sources.items():
        os.makedirs(path, exist_ok=True)
        mount(f"/proc/self/fd/{descriptor}", path, "", MS_BIND | MS_REC)
        os.close(descriptor)
    if uid is not None and not is_named(uid):
        name_user(uid, min(hidden))
    os.umask(former_umask)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def first_closed(path: str) -> str | None:
    """Return the uppermost directory above a path that is closed to other users; None where there is none."""
    above = [parent for parent in parents(path) if not os.stat(parent).st_mode & stat.S_IXOTH]
    return above[0] if above else None


def parents(path: str) -> list[str]:
    """Return all directories above a path, from the root down."""
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[:count]) for count in range(len(parts))]


def is_within(path: str, directory: str) -> bool:
    """Return whether a path is the directory or lies in it."""
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")


def name_user(uid: int, directory: str) -> None:
    """Let a user id have a name, by a user database that this process alone sees: initdb looks up its own."""
    file = f"{directory}/passwd"
    with open("/etc/passwd", "rb") as original, open(file, "wb") as extended:
        extended.write(original.read().rstrip(b"\n") + f"\nconvener-postgres:x:{uid}:{uid}::/:/bin/false\n".encode())
    os.chmod(file, 0o644)
    mount(file, "/etc/passwd", "", MS_BIND)


def is_named(uid: int) -> bool:
    """Return whether a user id has a name."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def named_user() -> int:
    """Return the lowest user id above root that has a name, because initdb looks up its own. Raises LookupError."""
    ids = [entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid > 0]
    if not ids:
        raise LookupError("the user database has no ordinary user")
    return min(ids)


def unshare(flags: int) -> None:
    """Enter new namespaces. Raises OSError, also where the system has none."""
    if sys.platform != "linux":
        raise OSError("no namespaces")
    call("unshare", flags, why="no namespace")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system or a part of one. Raises OSError."""
    arguments = (source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode())
    call("mount", *arguments, why=f"cannot mount {target}")


def call(function: str, *arguments: object, why: str = "") -> None:
    """Call a function of the C library. Raises OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{why}, {os.strerror(number)}" if why else os.strerror(number))


def stop_with_parent(parent: int) -> None:
    """Ask the kernel to send SIGINT, PostgreSQL's fast shutdown, when the starting thread dies, however it dies."""
    # Until exec the parent's own handler would take it, and the program never hear of it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # To be called after the account is taken: a change of credentials clears the request.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the starting process has already died")


if __name__ == "__main__":
    main(sys.argv[1:])
