"""Recovery of the pool: whether lost workers are replaced, or it works at reduced capacity.

No mode is switched on or off: the state is computed from the last minutes, so it ends by itself when starts succeed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.kernel.text import plural


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
    """A slot of the managed pool: young deaths within the window, and whether its present worker is past that age."""

    host: str
    slot: int
    young_deaths: int
    is_steady: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySnapshot:
    """All slots where a worker lives or died within the window, and the number of overdue replacements."""

    slots: Sequence[SlotRecord] = ()
    overdue: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Slots whose workers keep dying (as `host/slot`), overdue replacements, and the share of the pool that they cost.

    The reason is empty when all is well.
    """

    failing: Sequence[str] = ()
    overdue: int = 0
    lost_share: float = 0.0
    reason: str = ""

    @property
    def is_reduced(self) -> bool:
        """Whether the pool works at reduced capacity."""
        return bool(self.failing or self.overdue)


def assess(snapshot: RecoverySnapshot, policy: RecoveryPolicy) -> Recovery:
    """Find the slots where replacements keep failing, and what they cost."""
    failing = [r for r in snapshot.slots if r.young_deaths >= policy.deaths and not r.is_steady]
    if not failing and not snapshot.overdue:
        return Recovery()
    # A failing slot often has an overdue replacement too, so the larger number counts, not the sum.
    lost_slots = max(len(failing), snapshot.overdue)
    return Recovery(
        failing=[f"{record.host}/{record.slot}" for record in failing],
        overdue=snapshot.overdue,
        lost_share=min(1.0, lost_slots / max(lost_slots, len(snapshot.slots))),
        reason=_reason(failing, snapshot.overdue, policy),
    )


def _reason(failing: Sequence[SlotRecord], overdue: int, policy: RecoveryPolicy) -> str:
    parts = []
    if failing:
        deaths = sum(record.young_deaths for record in failing)
        parts.append(
            f"workers of {plural(len(failing), 'place')} in the pool keep dying young: {deaths:,} in the last "
            f"{policy.window_seconds / 60:.0f} min"
        )
    if overdue:
        workers = plural(overdue, "lost worker has", "lost workers have")
        parts.append(f"{workers} not been replaced within {policy.replace_within_seconds:.0f} s")
    return "; ".join(parts)
