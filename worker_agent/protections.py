"""Protections of the service from its handlers: which of them hold on this system, and why others do not."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from worker_agent.cgroups import GroupParents
from worker_agent.kernel_calls import PR_GET_DUMPABLE, prctl
from worker_agent.probing import Probe

_MEANINGS = {
    "privileges": "a handler is no root, has no capability and can get none",
    "files": "a handler reads the system's programs, its own code and what it is given, and no secret of the service",
    "code": "a handler cannot change the directories that code is imported from",
    "processes": "a handler can see, signal and trace no process but those of its task",
    "descendants": "all that a handler starts ends with its task",
    "temporary_files": "a task has a temporary directory of its own, of limited size, which vanishes with it",
    "sockets": "a handler cannot reach the unix sockets of the service and of other programs",
    "system_calls": "the kernel refuses handlers what no agent needs: io_uring, BPF, tracing, mounts, namespaces, keys",
}
_REMEDIES = {"system_calls": "run workers on Linux with seccomp, on x86-64 or 64-bit ARM"}
_REMEDY = "run workers on Linux 5.12 or later, as root or where user namespaces are allowed"

_GROUP_REMEDY = (
    "run workers as root, in a container with limits, or in a unit of systemd with Delegate=yes and "
    "DelegateSubgroup=workers"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """One protection; `why` says what it lacks where it does not hold, `remedy` what would mend that."""

    name: str
    meaning: str
    holds: bool
    why: str = ""
    remedy: str = ""


def determine(outcome: Probe) -> tuple[Protection, ...]:
    """Protections of a worker whose handlers were probed, held or not."""
    attempted = (_attempted(name, outcome) for name in _MEANINGS)
    groups = outcome.confinement.groups
    return (_environment(), _memory(), *attempted, _total_memory(groups), _processor_time(groups))


def _attempted(name: str, outcome: Probe) -> Protection:
    why, remedy = outcome.attempts[name], _REMEDIES.get(name, _REMEDY)
    if why and outcome.refusals:
        why += f" ({'; '.join(outcome.refusals.values())})"
    return Protection(name=name, meaning=_MEANINGS[name], holds=not why, why=why, remedy=remedy if why else "")


def as_json(protections: Sequence[Protection]) -> str:
    return json.dumps({"protections": [asdict(protection) for protection in protections]}, indent=2)


def as_text(protections: Sequence[Protection]) -> str:
    lines = []
    for protection in protections:
        lines.append(f"{'held    ' if protection.holds else 'NOT HELD'} {protection.name}: {protection.meaning}")
        if not protection.holds:
            lines.append(f"         {protection.why}; {protection.remedy}")
    return "\n".join(lines)


def _environment() -> Protection:
    return Protection(
        name="environment",
        meaning="a handler inherits only variables on a list, none of which is a secret of the service",
        holds=True,
    )


def _total_memory(groups: GroupParents | None) -> Protection:
    holds = groups is not None and groups.limits("memory")
    return Protection(
        name="total_memory",
        meaning="the processes of a task together cannot pass its limit of memory, not even for a moment",
        holds=holds,
        why="" if holds else "no control group with memory: the worker looks every 0.2 to 2 s at what they take",
        remedy="" if holds else _GROUP_REMEDY,
    )


def _processor_time(groups: GroupParents | None) -> Protection:
    holds = groups is not None and groups.limits("cpu")
    return Protection(
        name="processor_time",
        meaning="the processes of a task together take no more than the cores that it was given",
        holds=holds,
        why="" if holds else "no control group with cpu: each process ends once it used all that the time limit allows",
        remedy="" if holds else _GROUP_REMEDY,
    )


def _memory() -> Protection:
    holds = sys.platform == "linux" and prctl(PR_GET_DUMPABLE) == 0
    return Protection(
        name="daemon_memory",
        meaning="memory and environment of the daemon, where its keys are, are closed to other processes of its user",
        holds=holds,
        why="" if holds else "this system has no way to close a process to others of its user",
        remedy="" if holds else "run workers on Linux, or each worker as a user of its own",
    )
