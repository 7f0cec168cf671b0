"""Process tables: whether a pid is one of this machine now, of an earlier run of it, or of another machine.

A pid says nothing to whoever looks into another table, and names of hosts are no proof of it: `node1.a.org` and
`node1.b.org` have the same short name, as have `localhost` everywhere and machines that were cloned.

The table is told by the boot id of the kernel, random at each boot, with the pid namespace: containers on one kernel
share the former and not the latter. The machine id outlives a boot, so that a restarted machine knows its own again. It
is no proof either: images that were cloned share it, in a container it is that of the image, or missing. The address of
the network card then stands in, which container engines may give to several as well. So the same machine id with
another table is a restart of ours or a living twin, and only time tells which: what has not been heard of since our
table began, and for longer than it may be silent, was ours. Everything else stays alone, and if it is gone, its missing
heartbeats tell it. Machines that were copied while they ran share all of it, and need a CONVENER_HOST_NAME each.
"""

import contextlib
import hashlib
import os
import time
import uuid
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import psutil

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_TOLERANCE_SECONDS = 0.05
# Of a UUID as `uuid.getnode` makes it up where it finds no network card.
_MULTICAST = 1 << 40


class Origin(Enum):
    """Where the process of a handle was started, as far as this machine can tell."""

    HERE = "here"
    RESTARTED = "restarted"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTable:
    """Digests of the machine and of its present process table; None where nothing tells them apart from others."""

    machine: str | None
    table: str | None

    def marks(self) -> dict[str, str]:
        """The fields of a handle that tell its origin."""
        named = {"machine": self.machine, "table": self.table}
        return {name: digest for name, digest in named.items() if digest is not None}

    def origin(self, handle: dict[str, Any]) -> Origin:
        """Compare with the marks of a handle; one without, of an earlier version, counts as from here."""
        machine, table = handle.get("machine"), handle.get("table")
        if table is None or table == self.table:
            return Origin.HERE
        return Origin.RESTARTED if machine is not None and machine == self.machine else Origin.ELSEWHERE


@cache
def own_table() -> ProcessTable:
    """The process table in which this process runs."""
    machine = _text("/etc/machine-id") or _text("/var/lib/dbus/machine-id") or _network_card()
    # Without a boot id a restarted machine has the same table, whose pids creation times tell apart.
    kernel = _text(_BOOT_ID) or machine
    return ProcessTable(
        machine=_digest("machine", machine) if machine else None,
        table=_digest("table", f"{kernel} {_namespace()}") if kernel else None,
    )


def seconds_since_start() -> float:
    """For how long the process table of this process has existed."""
    seconds_since_boot = time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    with contextlib.suppress(psutil.Error, OSError):  # it may be hidden from other users
        return max(0.0, seconds_since_boot - (psutil.Process(1).create_time() - psutil.boot_time()))
    return seconds_since_boot


def start_marks(process: psutil.Process) -> dict[str, float]:
    """The fields of a handle that tell the start of its process; `since_boot` where each boot has a table of its own.

    The system reckons the time of a start from its clock, so all of them move when that is set.
    """
    marks = {"created": round(process.create_time(), 2)}
    return marks | ({"since_boot": _since_boot(process)} if _text(_BOOT_ID) else {})


def is_start_of(process: psutil.Process, handle: dict[str, Any]) -> bool:
    """Whether the process started when that of the handle did, which may be one of an earlier version."""
    if "since_boot" in handle:
        return _is_close(_since_boot(process), handle["since_boot"])
    return _is_close(process.create_time(), handle["created"])


def _is_close(one_start: float, other_start: float) -> bool:
    return abs(one_start - other_start) < _TOLERANCE_SECONDS


def _since_boot(process: psutil.Process) -> float:
    # By the kernel's own figure, the 22nd: the other one is reckoned from the clock, and kept by whoever has read it.
    try:
        line = Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(process.pid) from None
    # The name of the program, in brackets, may have blanks and brackets itself.
    ticks = line.rpartition(")")[2].split()[19]
    return round(int(ticks) / os.sysconf("SC_CLK_TCK"), 2)


def _text(path: str) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = Path(path).read_text().strip()
        return "" if text == "uninitialized" else text
    return ""


def _network_card() -> str:
    address = uuid.getnode()
    return "" if address & _MULTICAST else f"{address:012x}"


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return str(os.stat("/proc/self/ns/pid").st_ino)
    return ""


def _digest(purpose: str, text: str) -> str:
    # A machine id is to be shown to nobody: machine-id(5).
    return hashlib.sha256(f"convener {purpose} {text}".encode()).hexdigest()[:16]
