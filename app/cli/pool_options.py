"""Mode and bounds of the pool that `convener up` and `demo` ask for, and those in force."""

from dataclasses import dataclass

from app.kernel.modes import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """A mode and bounds of the pool; None leaves a value as it is."""

    mode: Mode | None = None
    min_workers: int | None = None
    max_workers: int | None = None
    reason: str = "asked for when the machine was brought up"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolInForce:
    """The mode and bounds by which the pool goes."""

    mode: Mode
    min_workers: int
    max_workers: int
