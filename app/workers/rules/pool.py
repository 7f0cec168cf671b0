"""Plans of a host's pool: the slots to fill with new workers, and the workers to drain."""

import itertools
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from app.kernel.ids import WorkerId

# A death further ahead came before the clock was set back, and nobody waits until it has come there again.
_AHEAD = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMember:
    """A live worker of the managed pool in its slot (1, 2, ...).

    One that is `restarting` is `leaving` too, and a successor takes its slot.
    """

    worker_id: WorkerId
    slot: int
    leaving: bool
    busy: bool
    restarting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """Slots in which to start a worker, workers to drain, and the reason."""

    start: Sequence[int] = ()
    drain: Sequence[WorkerId] = ()
    reason: str = "the pool is as planned"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashPolicy:
    """Rest of a slot whose workers die young, before its next start: base * 2^(deaths - free_deaths - 1), at most cap.

    Two deaths are free, because a replacement must not wait for a single kill. The cap is the time in which a
    failed worker is to be replaced. A worker that was ready for `young_seconds` does not crash when it starts:
    somebody ends it, and its replacement must not wait for that either. It clears its slot, and so does the window,
    which is long enough for a slot to stay at the cap.
    """

    free_deaths: int = 2
    base_seconds: float = 1.0
    cap_seconds: float = 30.0
    young_seconds: float = 5.0
    window_seconds: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotDeaths:
    """Number of workers of a slot that have died young in a row, and the time of the last death."""

    host: str
    slot: int
    deaths: int
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RestingSlot:
    """A slot of a host that gets no worker before `until`."""

    host: str
    slot: int
    deaths: int
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """The pool of a host as observed: its members, the size it should have, and slots that must not start yet.

    `vacated_slots` have lost their worker, or it restarts; `room` is the number of workers that the whole pool, on all
    hosts, may still add.
    """

    members: Sequence[PoolMember]
    size: int
    resting_slots: frozenset[int] = field(default_factory=frozenset)
    vacated_slots: frozenset[int] = field(default_factory=frozenset)
    room: int | None = None


def plan(snapshot: PoolSnapshot) -> PoolPlan:
    """Start a worker for every one that is missing; drain those above the size, idle ones first.

    Without a `room` draining workers keep their place, so the pool never exceeds its size while one leaves.
    """
    staying = [member for member in snapshot.members if not member.leaving]
    # One direction at a time: a pool that shrinks starts nothing, not even in a slot that lost its worker.
    surplus = len(staying) - snapshot.size
    if surplus > 0:
        # Idle ones before busy ones, the highest slot first.
        leavers = sorted(staying, key=lambda member: (member.busy, -member.slot))[:surplus]
        return PoolPlan(drain=[m.worker_id for m in leavers], reason=f"{len(staying)} workers, {snapshot.size} wanted")
    room = snapshot.size - len(snapshot.members) if snapshot.room is None else snapshot.room
    slots = due_slots(snapshot)[: max(0, room)]
    if start := [slot for slot in slots if slot not in snapshot.resting_slots]:
        return PoolPlan(start=start, reason=f"{len(snapshot.members)} workers, {snapshot.size} wanted")
    return PoolPlan()


def rests(slots: Iterable[SlotDeaths], policy: CrashPolicy, now: datetime) -> list[RestingSlot]:
    """The slots that still rest, ordered by the end of their rest."""
    resting_slots = []
    for slot in slots:
        rest = timedelta(seconds=rest_seconds(slot.deaths, policy))
        until = slot.last_at + rest
        if now < until <= now + rest + _AHEAD:
            resting_slots.append(RestingSlot(host=slot.host, slot=slot.slot, deaths=slot.deaths, until=until))
    return sorted(resting_slots, key=lambda slot: (slot.until, slot.host, slot.slot))


def due_slots(snapshot: PoolSnapshot) -> list[int]:
    """The slots of missing workers, resting ones included: vacated slots first, then the lowest free ones."""
    # A successor is due for a restarting worker only once it has gone, so until then its slot is not missing one.
    occupied_count = sum(not member.leaving or member.restarting for member in snapshot.members)
    occupied_slots = {member.slot for member in snapshot.members}
    return free_slots(occupied_slots, snapshot.vacated_slots, max(0, snapshot.size - occupied_count))


def free_slots(occupied_slots: Set[int | None], vacated_slots: Set[int], count: int) -> list[int]:
    """`count` free slots: vacated ones first, then the lowest."""
    first = sorted(vacated_slots - occupied_slots)[:count]
    rest = (slot for slot in itertools.count(1) if slot not in occupied_slots and slot not in vacated_slots)
    return [*first, *itertools.islice(rest, count - len(first))]


def rest_seconds(recent_deaths: int, policy: CrashPolicy) -> float:
    """Seconds that a slot rests after this many young deaths in a row; the first `free_deaths` cost nothing."""
    surplus = recent_deaths - policy.free_deaths
    if surplus <= 0:
        return 0.0
    return float(min(policy.cap_seconds, policy.base_seconds * 2 ** (surplus - 1)))
