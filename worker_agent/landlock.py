"""Landlock: rules that a process lays on itself and all that it starts, without any privilege (Linux 5.13).

In a private root it only adds what namespaces leave open: sockets without a file, by the names of the network. Where
namespaces are refused, as in many containers, it also keeps files and other processes out of reach.
"""

from __future__ import annotations

import contextlib
import os

from worker_agent import kernel_calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Json = dict[str, Any]

# The number of kinds of access to files by version: 13, then REFER, TRUNCATE, (network), IOCTL_DEV.
_ACCESS_COUNTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST_COUNT = 16
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
# Devices that every program may have.
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_SCOPES_VERSION = 6
_SCOPE_SOCKETS, _SCOPE_SIGNALS = 1, 2


def scope() -> None:
    """Keep this process from abstract sockets and signals of others; raises OSError where that cannot be."""
    if kernel_calls.landlock_version() < _SCOPES_VERSION:
        raise OSError("Landlock has no scopes before Linux 6.12")
    kernel_calls.landlock_restrict(kernel_calls.landlock_ruleset(0, _SCOPE_SOCKETS | _SCOPE_SIGNALS))


def restrict(view: Json, temporary: str) -> None:
    """Allow what the view shows and the directory `temporary`, and nothing else; raises OSError without Landlock."""
    version = kernel_calls.landlock_version()
    if version < 1:
        raise OSError("this kernel has no Landlock")
    every_access = (1 << _ACCESS_COUNTS.get(version, _NEWEST_COUNT)) - 1
    scopes = _SCOPE_SOCKETS | _SCOPE_SIGNALS if version >= _SCOPES_VERSION else 0
    ruleset = kernel_calls.landlock_ruleset(every_access, scopes)
    hidden = tuple(view["hidden"])
    for path in (*view["readable"], *view["closed"], "/proc"):
        for visible, accesses in _without(path, hidden):
            _allow(ruleset, visible, accesses)
    # Of its other files by name only: they are terminals, in which people type, and memory that programs share.
    _allow(ruleset, "/dev", _READ_DIR)
    for path in (*(f"/dev/{name}" for name in DEVICES), *view["devices"]):
        _allow(ruleset, path, every_access)
    for path in (temporary, *view["writable"]):
        _allow(ruleset, path, every_access)
    kernel_calls.landlock_restrict(ruleset)


def _without(path: str, hidden: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Yield the path, or where something hidden lies in it its parts without that: rules can only allow.

    Names can be listed throughout, which imports need.
    """
    if path in hidden:
        return
    if not any(secret.startswith(f"{path.rstrip('/')}/") for secret in hidden):
        yield path, _EXECUTE | _READ_FILE | _READ_DIR
        return
    yield path, _READ_DIR
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            yield from _without(f"{path.rstrip('/')}/{name}", hidden)


def _allow(ruleset: int, path: str, accesses: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        allowed = accesses if os.path.isdir(path) else accesses & _OF_FILES
        if allowed:
            kernel_calls.landlock_allow(ruleset, descriptor, allowed)
    finally:
        os.close(descriptor)
