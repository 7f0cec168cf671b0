"""Recovery of the pool: whether lost workers are replaced, or it works at reduced capacity.

No mode is switched on or off: the state is computed from the last minutes, so it ends by itself when starts succeed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.kernel.text import plural
from app.workers.rules.hosts import MemberWait


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPolicy:
    """Two deaths in a row cost a slot nothing (`pool.CrashPolicy`), so the third within the window makes it a loop.

    `young_seconds` is the age under which a death counts and from which a worker counts as steady; a lost worker must
    be replaced within `replace_within_seconds`, by the specification.
    """

    deaths: int = 3
    window_seconds: float = 300.0
    young_seconds: float = 60.0
    replace_within_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRecord:
    """A slot of the managed pool: young deaths within the window, and whether its present worker is past that age.

    `last_reason` is that of the last death.
    """

    host: str
    slot: int
    young_deaths: int
    is_steady: bool
    last_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentHost:
    """A host that does not report any more, and the number of workers that it was to keep."""

    host: str
    size: int
    silent_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePool:
    """A pool that an engine keeps at a size, and why members of it will not come by themselves."""

    name: str
    size: int
    failures: Sequence[MemberWait] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySnapshot:
    """Slots where a worker lives or died within the window, overdue replacements, silent hosts, pools of engines.

    `shared_hosts` are names under which several machines keep workers.
    """

    slots: Sequence[SlotRecord] = ()
    overdue: int = 0
    silent_hosts: Sequence[SilentHost] = ()
    shared_hosts: Sequence[str] = ()
    engine_pools: Sequence[EnginePool] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Slots whose workers keep dying (as `host/slot`), overdue replacements, hosts that are silent or shared, by name.

    `missing_members` are those of engines that do not come. `lost_share` is the share of the pool that all these cost.
    The reason is empty when all is well.
    """

    failing: Sequence[str] = ()
    overdue: int = 0
    silent_hosts: Sequence[str] = ()
    shared_hosts: Sequence[str] = ()
    missing_members: int = 0
    lost_share: float = 0.0
    reason: str = ""

    @property
    def is_reduced(self) -> bool:
        """Whether the pool works at reduced capacity."""
        return bool(self.failing or self.overdue or self.silent_hosts or self.shared_hosts or self.missing_members)


def assess(snapshot: RecoverySnapshot, policy: RecoveryPolicy) -> Recovery:
    """Find the slots where replacements keep failing, the hosts that are gone, and what they cost."""
    # Nobody starts workers on a host that is gone, so its slots do not fail any more: they are lost with it.
    gone = {host.host for host in snapshot.silent_hosts}
    slots = [record for record in snapshot.slots if record.host not in gone]
    failing = [record for record in slots if record.young_deaths >= policy.deaths and not record.is_steady]
    engine_pools = [pool for pool in snapshot.engine_pools if pool.name not in gone]
    missing = sum(wait.members for pool in engine_pools for wait in pool.failures)
    if not failing and not snapshot.overdue and not gone and not missing and not snapshot.shared_hosts:
        return Recovery()
    # A failing slot often has an overdue replacement too, so the larger number counts, not the sum.
    lost_with_hosts = sum(host.size for host in snapshot.silent_hosts)
    lost_slots = max(len(failing), snapshot.overdue) + lost_with_hosts + missing
    pool_slots = len(slots) + lost_with_hosts + sum(pool.size for pool in engine_pools)
    return Recovery(
        failing=[f"{record.host}/{record.slot}" for record in failing],
        overdue=snapshot.overdue,
        silent_hosts=sorted(gone),
        shared_hosts=snapshot.shared_hosts,
        missing_members=missing,
        lost_share=min(1.0, lost_slots / max(lost_slots, pool_slots, 1)),
        reason=_reason(failing, snapshot, engine_pools, policy),
    )


def _reason(
    failing: Sequence[SlotRecord],
    snapshot: RecoverySnapshot,
    engine_pools: Sequence[EnginePool],
    policy: RecoveryPolicy,
) -> str:
    overdue, parts = snapshot.overdue, list[str]()
    for host in snapshot.silent_hosts:
        workers = plural(host.size, "worker")
        parts.append(f"{host.host} has not reported for {host.silent_seconds:.0f} s, and was to keep {workers}")
    parts += [f"several machines keep the pool of host {host} as if they were one" for host in snapshot.shared_hosts]
    if failing:
        deaths = sum(record.young_deaths for record in failing)
        parts.append(
            f"workers of {plural(len(failing), 'place')} in the pool keep dying young: {deaths:,} in the last "
            f"{policy.window_seconds / 60:.0f} min"
        )
        if reason := next((record.last_reason for record in failing if record.last_reason), None):
            parts[-1] += f" ({reason})"
    if overdue:
        workers = plural(overdue, "lost worker has", "lost workers have")
        parts.append(f"{workers} not been replaced within {policy.replace_within_seconds:.0f} s")
    parts += [
        f"{plural(wait.members, 'member')} of {pool.name} cannot start: {wait.reason}"
        for pool in engine_pools
        for wait in pool.failures
    ]
    return "; ".join(parts)
