"""Whether lost workers are replaced with success. Where they are not, the pool works at reduced capacity.

Nothing is switched on or off: what is true of the last minutes is read from them, so the mode ends by itself when
starts succeed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.kernel.text import plural


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryPolicy:
    """Two deaths in a row cost a slot nothing (`fleet.CrashPolicy`), so the third within the window makes it a loop.

    `young_seconds` is the age under which a death counts and from which a worker counts as steady; a lost worker must
    be replaced within `replace_within_seconds`, by the specification.
    """

    deaths: int = 3
    window_seconds: float = 300.0
    young_seconds: float = 60.0
    replace_within_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRecord:
    """A place in the managed pool: how many died young there lately, and whether its worker now has lived for long."""

    host: str
    slot: int
    young_deaths: int
    is_steady: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverySnapshot:
    """All slots where a worker lives or lately died, and how many replacements have not come in time."""

    slots: Sequence[SlotRecord] = ()
    overdue: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The slots whose workers keep dying (`host/slot`), replacements that have not come, and the share of the pool
    that this costs; the reason is empty when all is well."""

    failing: Sequence[str] = ()
    overdue: int = 0
    lost_share: float = 0.0
    reason: str = ""

    @property
    def is_reduced(self) -> bool:
        """Whether the pool works at reduced capacity."""
        return bool(self.failing or self.overdue)


def assess(snapshot: RecoverySnapshot, policy: RecoveryPolicy) -> Recovery:
    """Where replacements keep failing, and what that costs."""
    failing = [r for r in snapshot.slots if r.young_deaths >= policy.deaths and not r.is_steady]
    if not failing and not snapshot.overdue:
        return Recovery()
    lost = max(len(failing), snapshot.overdue)
    return Recovery(
        failing=[f"{record.host}/{record.slot}" for record in failing],
        overdue=snapshot.overdue,
        lost_share=min(1.0, lost / max(lost, len(snapshot.slots))),
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
