"""Calls of Linux that Python 3.11 has no functions for; each raises OSError where the kernel refuses."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
# That the process which keeps a worker has ended. The kernel may send it once for each thread of that process, so it is
# none of the signals of which a second one means haste.
PARENT_ENDED = signal.SIGUSR1
PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_MNT_DETACH = 2
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
# These numbers are the same on every processor that Linux 5.2 and later runs on, but for Alpha.
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219}
_JOIN_SESSION_KEYRING = 1
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_FILTER = 1
# Without it kernels before 5.16 slow the process down, against attacks on memory that it shares with no one.
_FILTER_KEEPS_SPEED = 4
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int = 0) -> int:
    return _checked(_libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), 0), "prctl")


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Let the kernel send a signal to this process, a child between fork and exec, once its parent is killed."""
    if number != signal.SIGKILL:
        # Until exec the parent's own handler would take it, and the program never hear of it.
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, number)
    # It may have died between the fork and the call above, which then never fires.
    if os.getppid() != parent:
        os._exit(1)


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _checked(result, f"mount {target}")


def make_read_only(directory: str) -> None:
    """Make this mount and all below it read-only, and without programs that change their user; Linux 5.12."""
    _set_attributes(directory, _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, _AT_RECURSIVE)


def make_writable(directory: str) -> None:
    """Make this one mount writable again."""
    _set_attributes(directory, 0, _MOUNT_ATTR_RDONLY, 0)


def make_plain(directory: str) -> None:
    """Give this mount and all below it no devices, and no programs that change their user."""
    _set_attributes(directory, _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, _AT_RECURSIVE)


def _set_attributes(directory: str, added: int, removed: int, flags: int) -> None:
    attributes = struct.pack("=QQQQ", added, removed, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        directory.encode(),
        ctypes.c_uint(flags),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    _checked(result, "mount_setattr")


def change_root(directory: str) -> None:
    """Make the mount at this directory the root, and let go of the former one."""
    os.chdir(directory)
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")


def drop_capabilities() -> None:
    """Give up every capability for good."""
    for number in range(64):
        # Fails where there is no such capability, or where this process may not change its bounds.
        _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(number), ctypes.c_ulong(0), ctypes.c_ulong(0), 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, bytes(24)), "capset")


def leave_session_keyring() -> None:
    """Take an empty session keyring in place of the inherited one, whose keys this process could read."""
    number = _KEYCTL.get(os.uname().machine)
    if number is None or _libc.syscall(ctypes.c_long(number), ctypes.c_int(_JOIN_SESSION_KEYRING), None) >= 0:
        return
    # Without keyrings, or in a container that forbids them, handlers have none either.
    if (error := ctypes.get_errno()) not in (errno.ENOSYS, errno.EPERM):
        raise OSError(error, f"keyctl: {os.strerror(error)}")


def error_of(number: int, *arguments: int) -> int:
    """The error with which a call fails; 0 where it does not."""
    result = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    return ctypes.get_errno() if result < 0 else 0


def install_filter(instructions: bytes) -> None:
    """Let a program of seccomp's judge every further call of this process and all that it starts."""
    number = _SECCOMP[os.uname().machine]
    program = ctypes.create_string_buffer(instructions, len(instructions))
    # 8 bytes an instruction.
    header = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(program))
    flags = ctypes.c_uint(_FILTER_KEEPS_SPEED)
    _checked(_libc.syscall(ctypes.c_long(number), ctypes.c_uint(_SET_FILTER), flags, header), "seccomp")


def landlock_version() -> int:
    """Version of Landlock's interface; 0 where the kernel has none."""
    version: int = _libc.syscall(ctypes.c_long(_LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return max(0, version)


def landlock_ruleset(accesses: int, scopes: int) -> int:
    """Descriptor of a set of rules that handles these accesses to files, and these scopes."""
    # Three fields from version 6 on: files, network, scopes. Older kernels refuse a size that they do not have.
    attributes = struct.pack("=QQQ", accesses, 0, scopes) if scopes else struct.pack("=Q", accesses)
    result = _libc.syscall(
        ctypes.c_long(_LANDLOCK_CREATE), attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)
    )
    return _checked(result, "landlock_create_ruleset")


def landlock_allow(ruleset: int, directory: int, accesses: int) -> None:
    """Allow these accesses beneath the directory, or to the file, with this descriptor."""
    rule = struct.pack("=Qi", accesses, directory)
    result = _libc.syscall(ctypes.c_long(_LANDLOCK_ADD), ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
    _checked(result, "landlock_add_rule")


def landlock_restrict(ruleset: int) -> None:
    """Put the rules in force for this process and all that it starts, and close their descriptor."""
    result = _libc.syscall(ctypes.c_long(_LANDLOCK_RESTRICT), ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)
    _checked(result, "landlock_restrict_self")
