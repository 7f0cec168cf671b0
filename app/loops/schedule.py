"""All background duties with their intervals: the one visible list.

A duty is leased like a task: whichever replica locks its row in `loop_ticks` does the turn, in the transaction of
the work, so a crash rolls both back. An errand acts on the world of one host and so runs outside a transaction.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.couriers.base import Courier
from app.domain.ageing import AgeingPolicy
from app.domain.capacity import CapacityPolicy
from app.domain.checkpoints import CheckpointPolicy
from app.domain.leases import LeasePolicy
from app.domain.scaling import Mode
from app.domain.utilisation import UtilisationPolicy
from app.domain.workers import HealthPolicy
from app.operations import (
    ageing,
    alerts,
    checkpoints,
    counting,
    degradation,
    fleet,
    holding,
    housekeeping,
    performance,
    permits,
    scaling,
    sweeping,
    utilisation,
    webhooks,
    weights,
    workers,
)
from app.provisioners.base import Provisioner
from app.provisioners.machine import Machine
from app.provisioners.room import Gauge
from app.store import announcements
from app.store.database import Database
from app.store.duties import Turn
from app.store.hosts import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What duties work with."""

    database: Database
    leases: LeasePolicy
    capacity: CapacityPolicy
    health: HealthPolicy
    mode: Mode
    provisioner: Provisioner | None
    courier: Courier | None
    pool_size: int
    stop_grace_seconds: float
    history_days: int
    events_days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Duty:
    """Work in one transaction, done by one replica at a time.

    A duty of one host ends with it: nobody misses it, so its pace is not told.
    """

    name: str
    seconds: float
    run: Callable[[Context, AsyncConnection, Turn], Awaitable[dict[str, Any]]]
    wakes_on: str | None = None
    of_one_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """Work on this host, outside any transaction."""

    name: str
    seconds: float
    run: Callable[[Context], Awaitable[object]]
    wakes_on: str | None = None


DUTIES: Sequence[Duty] = (
    Duty(name="sweep leases", seconds=1, run=lambda c, db, turn: sweeping.sweep(db, c.leases, turn)),
    Duty(name="sweep workers", seconds=2, run=lambda c, db, turn: workers.sweep(db, c.health, turn)),
    Duty(name="promote delayed tasks", seconds=0.5, run=lambda _, db, turn: sweeping.promote(db)),
    Duty(name="trim the ledger", seconds=30, run=lambda _, db, turn: sweeping.trim(db)),
    Duty(name="age tasks", seconds=1, run=lambda _, db, turn: ageing.tick(db, AgeingPolicy())),
    Duty(name="fold counts", seconds=1, run=lambda _, db, turn: counting.fold_counts(db)),
    Duty(name=counting.FOLD_EVENTS, seconds=2, run=lambda _, db, turn: counting.fold_events(db)),
    Duty(name="fold performance", seconds=5, run=lambda _, db, turn: performance.fold(db)),
    # Often enough that a pause between two steps is not much longer than it must be.
    Duty(name="weigh agents", seconds=5, run=lambda _, db, turn: weights.tick(db), wakes_on=announcements.CONFIG),
    Duty(name=counting.FIND_OLDEST, seconds=5, run=lambda _, db, turn: counting.find_oldest(db)),
    Duty(name=counting.CHECK_COUNTERS, seconds=300, run=lambda _, db, turn: counting.check_counters(db)),
    Duty(name=degradation.WATCH, seconds=5, run=lambda c, db, turn: degradation.watch(db)),
    Duty(
        name=alerts.WATCH, seconds=5, run=lambda c, db, turn: alerts.watch(db, c.capacity, tells=c.courier is not None)
    ),
    Duty(name="sweep permits", seconds=5, run=lambda _, db, turn: permits.sweep(db)),
    # Looks every second whether a decision is due: every 5 s, sooner while the pool grows step by step or on a burst.
    Duty(
        name="scaling",
        seconds=scaling.LOOK_SECONDS,
        run=lambda c, db, turn: scaling.tick(db, c.database, c.mode),
        wakes_on=announcements.BURST,
    ),
    Duty(name="prune decisions", seconds=600, run=lambda c, db, turn: scaling.prune(db, c.history_days)),
    Duty(
        name="sample the pool",
        seconds=UtilisationPolicy().every_seconds,
        run=lambda c, db, turn: utilisation.sample_pool(db, UtilisationPolicy(), c.health.lost_after_seconds),
    ),
    Duty(name="fold goals", seconds=1, run=lambda _, db, turn: holding.fold(db)),
    Duty(name="keep goals within limits", seconds=1, run=lambda _, db, turn: holding.enforce(db)),
    Duty(name=holding.LOOK_FOR_STRAYS, seconds=5, run=lambda _, db, turn: holding.look_for_strays(db)),
)

# What takes longer than a transaction should be open.
ERRANDS: Sequence[Errand] = (
    Errand(
        name="checkpoint",
        seconds=5,
        run=lambda c: checkpoints.take_when_due(c.database, CheckpointPolicy(), c.history_days),
    ),
    Errand(
        name=housekeeping.DUTY,
        seconds=housekeeping.EVERY_SECONDS,
        run=lambda c: housekeeping.run_when_due(c.database, history_days=c.history_days, events_days=c.events_days),
    ),
    Errand(name="hold tasks back", seconds=1, run=lambda c: holding.work_off(c.database), wakes_on=announcements.GOALS),
)


def courier_errands(courier: Courier) -> Sequence[Errand]:
    """What tells other services of alerts."""
    return (
        Errand(
            name="deliver webhooks",
            seconds=5,
            run=lambda c: webhooks.deliver(c.database, courier),
            wakes_on=announcements.WEBHOOKS,
        ),
    )


def host_errands(machine: Machine, name: str) -> Sequence[Errand]:
    """What is measured of this host."""
    policy = UtilisationPolicy()
    sample = Errand(
        name="sample the host",
        seconds=policy.every_seconds,
        run=lambda c: utilisation.sample_host(c.database, machine, name, policy),
    )
    return (sample,)


def pool_duties(provisioner: Provisioner, gauge: Gauge) -> Sequence[Duty]:
    """The duty that keeps the pool of one host at its size, and tells the scaling loop how the host is."""
    tick = Duty(
        name=f"fleet {provisioner.kind} {provisioner.host}",
        seconds=2,
        run=lambda c, db, turn: fleet.tick(db, c.mode, _report(c, provisioner, gauge)),
        wakes_on=announcements.FLEET,
        of_one_host=True,
    )
    return (tick,)


def _report(context: Context, provisioner: Provisioner, gauge: Gauge) -> Report:
    return Report(
        provisioner=provisioner.kind, host=provisioner.host, usual_size=context.pool_size, **asdict(gauge.read())
    )


def pool_errands(provisioner: Provisioner) -> Sequence[Errand]:
    """What starts and ends processes on this host."""
    return (
        Errand(
            name="provision",
            seconds=2,
            run=lambda c: fleet.provision(c.database, provisioner),
            wakes_on=announcements.LAUNCHES,
        ),
        Errand(
            name="reconcile",
            seconds=5,
            run=lambda c: fleet.reconcile(c.database, provisioner, c.stop_grace_seconds),
            wakes_on=announcements.FLEET,
        ),
    )
