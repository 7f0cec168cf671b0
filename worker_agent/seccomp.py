"""A filter of system calls for handlers: those that no agent needs, and by which kernels are broken into, are refused.

It is a program for the kernel's packet filter (seccomp(2)), without an effect on calls that it does not name. Filters
add up, so a container's own stays in force.
"""

from __future__ import annotations

import errno
import os
import struct

from worker_agent import kernel_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# By processor: the column of its numbers in the tables below, and how the kernel names it.
_COLUMNS = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# Numbers of calls on both processors; from 424 on they are the same on all.
_REFUSED = {
    "ptrace": (101, 117),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    **{f"io_uring {number}": (number, number) for number in (425, 426, 427)},
    # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr, quotactl_fd, open_tree_attr
    **{f"mounts {number}": (number, number) for number in (*range(428, 434), 442, 443, 467)},
}
# shmget, semget, msgget; then shmat, shmctl, semop, semtimedop, semctl, msgsnd, msgrcv, msgctl, which need no more
# than the number of what another program of the user has made.
_SYSTEM_V = (
    *((29, 194), (64, 190), (68, 186), (30, 196), (31, 195), (65, 193), (220, 192), (66, 191)),
    *((69, 189), (70, 188), (71, 187)),
)
_PRLIMIT = (302, 261)
_CLONE, _UNSHARE, _IOCTL, _PRCTL = (56, 220), (272, 97), (16, 29), (157, 167)
_SET_DUMPABLE = kernel_calls.PR_SET_DUMPABLE
_CLONE3 = 435
# They write into the terminal's input as if it were typed.
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_X32 = 0x40000000
# Offsets in `struct seccomp_data`; arguments are looked at in their lower half, which comes first on both processors.
_NUMBER, _PROCESSOR, _ARGUMENTS = 0, 4, 16
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000


def program(*, has_namespaces: bool) -> bytes:
    """The filter for this processor; empty where there is none. It refuses with EPERM.

    Without namespaces, segments, semaphores and queues of System V would outlive the task, and those of other programs
    could be reached; and other processes of the user could be ended by limits.
    """
    machine = os.uname().machine
    if machine not in _COLUMNS:
        return b""
    column, processor = _COLUMNS[machine]
    refused = [*_REFUSED.values(), *(() if has_namespaces else _SYSTEM_V)]
    instructions = [
        *_instructions(column, processor, [numbers[column] for numbers in refused]),
        *(() if has_namespaces else _own_limits(_PRLIMIT[column])),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def harmless_attempts() -> Iterator[tuple[str, int]]:
    """Yield names of calls and the errors with which they failed, as they must with these arguments."""
    machine = os.uname().machine
    if machine not in _COLUMNS:
        return
    column = _COLUMNS[machine][0]
    yield "io_uring", kernel_calls.error_of(_REFUSED["io_uring 427"][column], -1, 0xFFFF, 0, 0)
    yield "perf_event_open", kernel_calls.error_of(_REFUSED["perf_event_open"][column], 0, 0, -1, -1, 0)
    yield "ptrace", kernel_calls.error_of(_REFUSED["ptrace"][column], 16, 0, 0, 0)
    yield "ioctl", kernel_calls.error_of(_IOCTL[column], -1, _TIOCSTI, 0)


def _instructions(column: int, processor: int, refused: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield code, distance of the jump where the condition holds and where not, and operand."""
    refuse, lack = (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)
    # Programs of 32 bits have other numbers, by which they would get around the filter.
    yield from ((_LOAD, 0, 0, _PROCESSOR), (_IF_EQUAL, 1, 0, processor), refuse)
    yield from ((_LOAD, 0, 0, _NUMBER), (_IF_AT_LEAST, 0, 1, _X32), lack)
    for number in refused:
        yield from ((_IF_EQUAL, 0, 1, number), refuse)
    # Its flags lie in memory, where no filter can look; the C library then takes the older call.
    yield from ((_IF_EQUAL, 0, 1, _CLONE3), lack)
    for numbers in (_CLONE, _UNSHARE):
        yield from ((_IF_EQUAL, 0, 4, numbers[column]), (_LOAD, 0, 0, _ARGUMENTS))
        yield from ((_IF_ANY_BIT, 0, 1, kernel_calls.CLONE_NEWUSER), refuse, (_RETURN, 0, 0, _ALLOW))
    yield from ((_IF_EQUAL, 0, 5, _IOCTL[column]), (_LOAD, 0, 0, _ARGUMENTS + 8))
    yield from ((_IF_EQUAL, 1, 0, _TIOCSTI), (_IF_EQUAL, 0, 1, _TIOCLINUX), refuse, (_RETURN, 0, 0, _ALLOW))
    # A process that is closed to others of its user cannot be looked at: this is answered, and not done.
    yield from ((_IF_EQUAL, 0, 6, _PRCTL[column]), (_LOAD, 0, 0, _ARGUMENTS), (_IF_EQUAL, 0, 3, _SET_DUMPABLE))
    yield from ((_LOAD, 0, 0, _ARGUMENTS + 8), (_IF_EQUAL, 1, 0, 1), (_RETURN, 0, 0, _FAIL), (_RETURN, 0, 0, _ALLOW))


def _own_limits(number: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield what refuses to set limits of a process that is named, be it by its own number; reading them is allowed."""
    yield from ((_IF_EQUAL, 0, 7, number), (_LOAD, 0, 0, _ARGUMENTS), (_IF_EQUAL, 5, 0, 0))
    # A pointer has two halves.
    yield from ((_LOAD, 0, 0, _ARGUMENTS + 16), (_IF_EQUAL, 0, 2, 0), (_LOAD, 0, 0, _ARGUMENTS + 20))
    yield from ((_IF_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _FAIL | errno.EPERM))
