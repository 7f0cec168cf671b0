"""How long a lease lives, and when expired leases are taken back."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePolicy:
    """Seconds. A lease is renewed by its worker's heartbeat; one that is not acknowledged returns early."""

    lease_seconds: float = 15.0
    acknowledge_within_seconds: float = 5.0
    # A worker kills a task at its limit by itself; the service waits this much longer before it steps in.
    deadline_grace_seconds: float = 10.0
    max_wait_seconds: float = 30.0
    # A task whose attempt has failed waits this long for another worker before the same one may try again.
    avoid_seconds: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSnapshot:
    """What a sweep sees: leases past their expiry, all live leases, and how long ago the last sweep was.

    `held_back_seconds` is for how long sweeps have taken nothing back already, None when the last one did.
    """

    expired: int
    live: int
    seconds_since_last_sweep: float
    held_back_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPolicy:
    """When so many leases expire at once that the service is likelier at fault than the workers."""

    mass_share: float = 0.5
    mass_at_least: int = 4
    paused_after_seconds: float = 7.5
    # Workers beat every 5 s: in that time everybody who lives has renewed.
    patience_seconds: float = 5.0


def hold_back(snapshot: SweepSnapshot, policy: SweepPolicy) -> str | None:
    """Why this sweep takes nothing back, or None. Not for longer than a heartbeat: then the leases are truly dead."""
    if snapshot.expired == 0:
        return None
    if snapshot.held_back_seconds is not None:
        if snapshot.held_back_seconds > policy.patience_seconds:
            return None
        return f"workers have until their next heartbeat to renew {snapshot.expired} of {snapshot.live} leases"
    if snapshot.seconds_since_last_sweep > policy.paused_after_seconds:
        return f"no sweep ran for {snapshot.seconds_since_last_sweep:.0f} s: workers could not renew while we were away"
    if snapshot.expired >= policy.mass_at_least and snapshot.expired > policy.mass_share * snapshot.live:
        return f"{snapshot.expired} of {snapshot.live} leases expired at once"
    return None
