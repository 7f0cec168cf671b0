"""Pools whose members an engine starts: what of the engine's members may go, and the size to ask it for."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from app.kernel.ids import WorkerId
from app.workers.rules.hosts import MemberWait


class MemberState(StrEnum):
    """Stage of a member: not yet placed, placed and starting, ready to work, or on its way out."""

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMember:
    """One worker's place at an engine: a pod, or the share of one worker in a job.

    Its worker registers under `name`. `created_at` is when its start began, from which start times are measured, None
    where the engine does not tell. `reason` is why it does not come (no room, an image, a crash loop, a queue), and
    `is_failure` that it will not by itself. `removal_cost` is what the engine was told last, lower ones going first.
    Members of one `block` come and go together.
    """

    name: str
    state: MemberState
    created_at: datetime | None = None
    reason: str | None = None
    is_failure: bool = False
    removal_cost: int = 0
    block: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """The size that an engine was asked for, and its members; `version` makes a change of an older state fail.

    `refusal` is why it did not start members when it was last asked for more; while `is_resting` it is not asked again.
    `expiring` of the members are not among those asked for: others are to take their places.
    """

    requested: int
    members: Sequence[EngineMember]
    expiring: int = 0
    version: str = ""
    refusal: str | None = None
    is_resting: bool = False

    @property
    def active(self) -> Sequence[EngineMember]:
        """The members that are not on their way out."""
        return [member for member in self.members if member.state is not MemberState.LEAVING]

    @property
    def leaving_names(self) -> frozenset[str]:
        """Names of the members on their way out."""
        return frozenset(member.name for member in self.members if member.state is MemberState.LEAVING)

    @property
    def lasting(self) -> int:
        """Number of members that are neither on their way out nor expire."""
        return len(self.active) - self.expiring


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberWorker:
    """A live worker of the pool; a `leaving` one gets no more leases, and a `busy` one holds one."""

    worker_id: WorkerId
    name: str
    leaving: bool
    busy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """The size to ask an engine for and the surplus that has to go, of those members that may.

    `drain` are workers that must get no more leases: with a reason those above the size, and in `drain_unplanned` those
    whose members go although nobody chose them. `awaited` are the members that may still register, with the times of
    their creation; `emptied` those of blocks above the size in which nobody stays, and none may come back; `over` those
    of blocks that leave and that no worker is left in.
    """

    target: int
    surplus: int = 0
    removable: frozenset[str] = frozenset()
    drain: Sequence[WorkerId] = ()
    drain_unplanned: Sequence[WorkerId] = ()
    awaited: Mapping[str, datetime | None]
    emptied: frozenset[str] = frozenset()
    over: Sequence[str] = ()
    waits: Sequence[MemberWait] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """The `size` to ask an engine for, with the `victims` that go, and the members that may register or not any more.

    It `is_needed` where somebody goes, or the engine was asked for another size and does not rest from refusing more.
    """

    size: int
    victims: Sequence[str]
    dismissed: frozenset[str]
    awaited: Mapping[str, datetime | None]
    is_needed: bool

    def is_safe_when_late(self, dismissed: Collection[str]) -> bool:
        """Whether an older state was enough: nobody goes or comes, nor may one come back that was `dismissed` before.

        So a batch scheduler, which many share, is left alone, be it for the hours of a block's last task.
        """
        return not self.is_needed and self.dismissed.issuperset(dismissed)


def admitted(size: int, block_size: int) -> int:
    """Number of workers that may register in a pool of this size: whole blocks."""
    return math.ceil(size / block_size) * block_size


def plan_engine(state: EngineState, workers: Sequence[MemberWorker], size: int, block_size: int = 1) -> EnginePlan:
    """Ask for the size and for one more for each leaving worker that still holds a task.

    Only members without a worker, and those whose worker leaves and holds nothing, may go: neither can get a lease any
    more once the members that go are dismissed.
    """
    by_name = {worker.name: worker for worker in workers}
    allowed = admitted(size, block_size)
    staying = [worker for worker in workers if not worker.leaving]
    going = state.leaving_names
    drain = _workers_to_drain(state, staying, going, allowed)
    drained = frozenset(drain)
    unplanned = [w.worker_id for w in staying if w.name in going and w.worker_id not in drained]
    active = state.active
    leaving = {worker.name for worker in workers if worker.leaving or worker.worker_id in drained}
    busy_leaving = sum(m.name in leaving and by_name[m.name].busy for m in active)
    target = allowed + busy_leaving
    removable = frozenset(m.name for m in active if m.name not in by_name or _may_go(by_name[m.name], drained))
    return EnginePlan(
        target=target,
        surplus=max(0, state.lasting - target),
        removable=removable,
        drain=drain,
        drain_unplanned=unplanned,
        awaited={m.name: m.created_at for m in active if m.name not in by_name},
        emptied=_emptied(state, workers, leaving, allowed),
        over=_over(state, by_name.keys()),
        waits=_refused(state, target, block_size) + member_waits(active, by_name.keys()),
    )


def plan_request(state: EngineState, plan: EnginePlan, chosen: Sequence[str]) -> EngineRequest:
    """Ask for the target, or, while not all of the surplus can be `chosen` to go, for as many as stay.

    Whoever goes, is on its way out, or belongs to an emptied block registers no more, be it started anew meanwhile.
    """
    victims = [*chosen, *plan.over]
    size = plan.target
    if plan.surplus:
        # Members that the engine has not made yet go without anybody being chosen, and those of lost nodes are chosen
        # with their blocks, though nobody counts them.
        size = min(max(state.lasting - len(chosen), plan.target), state.requested)
    is_refused = state.is_resting and size > state.requested
    dismissed = state.leaving_names.union(victims, plan.emptied)
    return EngineRequest(
        size=size,
        victims=victims,
        dismissed=dismissed,
        awaited={name: created_at for name, created_at in plan.awaited.items() if name not in dismissed},
        is_needed=bool(victims) or (size != state.requested and not is_refused),
    )


def _workers_to_drain(
    state: EngineState, staying: Sequence[MemberWorker], going: Collection[str], allowed: int
) -> list[WorkerId]:
    """The workers above the size: idle ones first, and of a block either all or none."""
    blocks = {member.name: member.block or member.name for member in state.members}
    groups: dict[str, list[MemberWorker]] = {}
    for worker in staying:
        groups.setdefault(blocks.get(worker.name, worker.name), []).append(worker)
    drain: list[WorkerId] = []
    # Names, so that two turns choose the same.
    for name, group in sorted(
        groups.items(),
        key=lambda item: (item[1][0].name not in going, sum(worker.busy for worker in item[1]), item[0]),
    ):
        if len(drain) + len(group) <= len(staying) - allowed:
            drain += [worker.worker_id for worker in group]
            del groups[name]
    if len(staying) - len(drain) >= allowed:
        drain += _workers_of_a_block_to_spare(state, groups, allowed)
    return drain


def _workers_of_a_block_to_spare(
    state: EngineState, groups: Mapping[str, Sequence[MemberWorker]], allowed: int
) -> list[WorkerId]:
    """The workers of the block that misses most, where fewer blocks would do and the `groups` that stay fill the pool.

    While the pool is full, none of the missing workers may register: blocks that all miss some would stay for ever.
    """
    sizes = Counter(block for member in state.active if (block := member.block or member.name) in groups)
    # Blocks that nobody is left in go before.
    spare = sizes.total() - state.expiring - allowed
    missing = {name: size - len(groups[name]) for name, size in sizes.items() if size <= spare}
    emptiest = min(
        (name for name, count in missing.items() if count),
        key=lambda name: (-missing[name], sum(worker.busy for worker in groups[name]), name),
        default=None,
    )
    return [] if emptiest is None else [worker.worker_id for worker in groups[emptiest]]


def _emptied(state: EngineState, workers: Sequence[MemberWorker], leaving: Set[str], allowed: int) -> frozenset[str]:
    blocks: dict[str, list[EngineMember]] = {}
    for member in state.active:
        if member.block is not None:
            blocks.setdefault(member.block, []).append(member)
    staying = {worker.name for worker in workers}.difference(leaving)
    spare, emptied = state.lasting - allowed, set[str]()
    # As the engine gives up queued ones first, whose places those that leave may need until then.
    for block in sorted(blocks.values(), key=lambda block: (block[0].state is not MemberState.PENDING, block[0].name)):
        names = {member.name for member in block}
        if staying.isdisjoint(names) and len(names) <= spare - len(emptied):
            emptied |= names
    return frozenset(emptied)


def _over(state: EngineState, registered: Collection[str]) -> list[str]:
    leaving = [m for m in state.members if m.state is MemberState.LEAVING and m.block is not None]
    occupied = {member.block for member in leaving if member.name in registered}
    return [member.name for member in leaving if member.block not in occupied]


def _may_go(worker: MemberWorker, drain: Set[WorkerId]) -> bool:
    # One that is drained only now may still be given a lease until that is committed: it goes in a later turn.
    return worker.leaving and not worker.busy and worker.worker_id not in drain


def _refused(state: EngineState, target: int, block_size: int) -> list[MemberWait]:
    missing = target - state.requested
    if state.refusal is None or missing < block_size:
        return []
    return [MemberWait(reason=state.refusal, members=missing, is_failure=True)]


def member_waits(members: Sequence[EngineMember], registered: Collection[str]) -> list[MemberWait]:
    """The reasons why members do not come, those of most members first."""
    counts = Counter(
        (member.reason, member.is_failure)
        for member in members
        if member.reason is not None and member.name not in registered
    )
    waits = [
        MemberWait(reason=str(reason), members=count, is_failure=is_failure)
        for (reason, is_failure), count in counts.items()
    ]
    return sorted(waits, key=lambda wait: (not wait.is_failure, -wait.members, wait.reason))[:_MAX_REASONS]


# Reasons name nodes and images, so there may be as many as members.
_MAX_REASONS = 5
