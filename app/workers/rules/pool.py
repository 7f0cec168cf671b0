"""Which workers to start and to end so that the pool is what it should be: plan, requested, observed."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from app.kernel.ids import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMember:
    """One live worker of the managed pool: its slot (1, 2, ...) and whether it is on its way out.

    One that restarts leaves too, and another takes its slot when it is gone.
    """

    worker_id: WorkerId
    slot: int
    leaving: bool
    busy: bool
    restarting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """Slots to fill with a new worker and workers to drain, with the reason."""

    start: Sequence[int] = ()
    drain: Sequence[WorkerId] = ()
    reason: str = "the pool is as planned"


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashPolicy:
    """A slot whose workers die young waits before the next start: base x 2^(deaths - 1), at most cap; seconds.

    Two deaths cost nothing, because a replacement must not wait for a single kill. The cap is the time in which a
    failed worker is to be replaced. A worker that has lived for `young_seconds` clears its slot, and so does the
    window, which is long enough for a slot to stay at the cap.
    """

    free_deaths: int = 2
    base_seconds: float = 1.0
    cap_seconds: float = 30.0
    young_seconds: float = 60.0
    window_seconds: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotDeaths:
    """How many workers of a slot have died young in a row, and when the last one did."""

    host: str
    slot: int
    deaths: int
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RestingSlot:
    """A place in the pool of a host that gets no worker yet."""

    host: str
    slot: int
    deaths: int
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    """The pool as observed: its members, the size wanted, and slots that must not start yet.

    `bereaved` slots have lost their worker, or it restarts; `room` is how many more workers there may be in all, on any
    host.
    """

    members: Sequence[PoolMember]
    size: int
    resting_slots: frozenset[int] = field(default_factory=frozenset)
    vacated_slots: frozenset[int] = field(default_factory=frozenset)
    room: int | None = None


def plan(snapshot: FleetSnapshot) -> FleetPlan:
    """Start a worker for every one that is missing; drain those above the size, the idle first.

    Without a `room` draining workers keep their place, so the pool never exceeds its size while one leaves.
    """
    staying = [member for member in snapshot.members if not member.leaving]
    surplus = len(staying) - snapshot.size
    if surplus > 0:
        leavers = sorted(staying, key=leaves_first)[:surplus]
        return FleetPlan(drain=[m.worker_id for m in leavers], reason=f"{len(staying)} workers, {snapshot.size} wanted")
    room = snapshot.size - len(snapshot.members) if snapshot.room is None else snapshot.room
    slots = owed_slots(snapshot)[: max(0, room)]
    if start := [slot for slot in slots if slot not in snapshot.resting_slots]:
        return FleetPlan(start=start, reason=f"{len(snapshot.members)} workers, {snapshot.size} wanted")
    return FleetPlan()


def resting(slots: Iterable[SlotDeaths], policy: CrashPolicy, now: datetime) -> list[RestingSlot]:
    """The slots whose rest is not over, the first to be over first."""
    found = [
        RestingSlot(
            host=slot.host,
            slot=slot.slot,
            deaths=slot.deaths,
            until=slot.last_at + timedelta(seconds=rest_seconds(slot.deaths, policy)),
        )
        for slot in slots
    ]
    return sorted((slot for slot in found if slot.until > now), key=lambda slot: (slot.until, slot.host, slot.slot))


def leaves_first(member: PoolMember) -> tuple[bool, int]:
    """The order in which workers leave: the idle before the busy, the last slot first."""
    return member.busy, -member.slot


def owed_slots(snapshot: FleetSnapshot) -> list[int]:
    """The slots of the workers that are missing, also while they rest: first those that have lost theirs."""
    kept = sum(not member.leaving or member.restarting for member in snapshot.members)
    return free_slots(snapshot.members, snapshot.vacated_slots, max(0, snapshot.size - kept))


def free_slots(members: Sequence[PoolMember], bereaved: frozenset[int], count: int) -> list[int]:
    """So many free slots, those that have lost their worker first, then the lowest."""
    taken = {member.slot for member in members}
    orphaned = sorted(bereaved - taken)[:count]
    others = (slot for slot in itertools.count(1) if slot not in taken and slot not in bereaved)
    return [*orphaned, *itertools.islice(others, count - len(orphaned))]


def rest_seconds(recent_deaths: int, policy: CrashPolicy) -> float:
    """How long a slot rests after this many deaths; the first ones cost nothing."""
    surplus = recent_deaths - policy.free_deaths
    if surplus <= 0:
        return 0.0
    return float(min(policy.cap_seconds, policy.base_seconds * 2 ** (surplus - 1)))
