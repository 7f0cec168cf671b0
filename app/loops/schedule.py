"""The list of all periodic background work: duties and jobs with their intervals.

A duty is leased like a task: the replica that locks its row in `loop_ticks` does the turn, in the transaction of the
work, so a crash rolls both back. A job has transactions of its own: it acts on processes, hosts or other services, or
takes longer than a transaction may.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service.config import CurrentConfig
from app.agents.service import performance, weights
from app.agents.store import performance as performance_store
from app.db import duties, notify
from app.db.database import Database
from app.db.duties import Turn
from app.goals.service import budget_enforcement
from app.goals.store import compute
from app.goals.store import goals as goal_store
from app.health.rules.snapshot import WATCH
from app.health.rules.utilisation import UtilisationPolicy
from app.health.service import alerts, observations, utilisation, webhooks
from app.health.service.delivery import MessageSender
from app.kernel.modes import Mode
from app.llm.service import budgets, parking, permits
from app.llm.store import budgets as budget_store
from app.llm.store import permits as permit_store
from app.loops import housekeeping
from app.memory.rules.checkpoints import CheckpointPolicy
from app.memory.service import backups, checkpoints
from app.queue.rules.admission import CapacityPolicy
from app.queue.rules.aging import AgingPolicy
from app.queue.rules.tasks import LeasePolicy, SweepPolicy
from app.queue.service import aging, counters, degradation, expiry, sharing
from app.queue.store import counters as counter_store
from app.queue.store import holds, throughput
from app.queue.store import parking as parking_store
from app.queue.store import tasks as task_store
from app.scaling.service import tick
from app.workers.provisioners.base import Provisioner
from app.workers.provisioners.engine import Engine
from app.workers.provisioners.host import Gauge, Machine
from app.workers.rules.workers import HealthPolicy
from app.workers.service import engine_pool, pool, workers
from app.workers.service.engine_pool import EnginePolicy
from app.workers.store import pool as pool_store
from app.workers.store.hosts import Report


@dataclass(slots=True, kw_only=True)
class Context:
    """Objects and policies that duties and jobs work with; the policies follow the configuration."""

    database: Database
    leases: LeasePolicy
    capacity: CapacityPolicy
    health: HealthPolicy
    mode: Mode
    config: CurrentConfig
    aging: AgingPolicy = field(default_factory=AgingPolicy)
    provisioner: Provisioner | None
    webhook_sender: MessageSender | None
    pool_size: int
    stop_grace_seconds: float
    history_days: int
    events_days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """Work every so many seconds, and sooner when the topic that it wakes on is announced.

    With `due`, a condition of SQL, turns are left out while it does not hold, for up to `idle_seconds`.
    """

    name: str
    seconds: float
    wakes_on: str | None = None
    due: Callable[[Context], str] | None = None
    idle_seconds: float = 15.0

    @property
    def longest_seconds(self) -> float:
        """Seconds after which there is a turn in any case."""
        return self.seconds if self.due is None else max(self.seconds, self.idle_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Duty(_Item):
    """Periodic work in one transaction, done by one replica at a time.

    A duty of one host (`is_local`) ends with its host, so its interval is not stored: no one must miss it. One that
    `rests` is not taken up again soon after a turn that took long. After a turn whose result says that it is `behind`
    the next one comes without another pause.
    """

    run: Callable[[Context, AsyncConnection, Turn], Awaitable[dict[str, Any]]]
    is_local: bool = False
    rests: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(_Item):
    """Periodic work outside the transaction of its turn."""

    run: Callable[[Context], Awaitable[object]]


def _may_be_lost(context: Context) -> str:
    """The condition under which the sweep of workers may have something to do.

    It looks about itself without anything to do as well: after a longer pause it would take its own absence for theirs.
    """
    health = context.health
    pause = (health.lost_after_seconds - health.heartbeat_interval_seconds) / 3
    return duties.may_have_come(_SWEEP_WORKERS, min(pause, 5.0))


_SWEEP_WORKERS, _SWEEP_LEASES = "sweep workers", "sweep leases"
# Well below the pause after which a sweep spares what it meets.
_LEASES_SECONDS = SweepPolicy().paused_after_seconds / 2
DUTIES: Sequence[Duty] = (
    Duty(
        name=_SWEEP_LEASES,
        seconds=1,
        run=lambda c, db, turn: expiry.sweep(db, c.leases, turn, c.health.presence),
        # It reads all leases, so it waits until one of them may be overdue.
        due=lambda _: f"{counter_store.HAS_LEASES} AND {duties.may_have_come(_SWEEP_LEASES, _LEASES_SECONDS)}",
        idle_seconds=_LEASES_SECONDS,
        rests=False,
    ),
    Duty(name="sweep stray leases", seconds=15, run=lambda c, db, turn: expiry.sweep_strays(db, c.leases)),
    Duty(
        name=_SWEEP_WORKERS,
        seconds=0.5,
        run=lambda c, db, turn: workers.sweep(db, c.health, turn),
        due=_may_be_lost,
        rests=False,
    ),
    Duty(
        name=expiry.PROMOTE,
        seconds=0.5,
        run=lambda _, db, turn: expiry.promote_delayed(db),
        due=lambda _: task_store.HAS_DUE,
    ),
    # Where the standby had lagged, readers may be ahead of it, and would miss what is written before this.
    Duty(
        name="follow promotions",
        seconds=60,
        run=lambda _, db, turn: backups.follow_promotion(db),
        wakes_on=notify.CONNECTED,
    ),
    # The ledger grows by an entry a lease, and every claim reads its end.
    Duty(name=expiry.TRIM_LEDGER, seconds=30, run=lambda _, db, turn: expiry.trim_ledger(db)),
    Duty(
        name=aging.AGE_TASKS,
        seconds=1,
        run=lambda c, db, turn: aging.age_tasks(db, c.aging),
        due=lambda _: counter_store.HAS_TASKS,
    ),
    Duty(
        name=sharing.DUTY,
        seconds=1,
        run=lambda _, db, turn: sharing.share_lanes(db),
        due=lambda _: counter_store.HAS_NAMESPACES,
    ),
    Duty(
        name="fold counts",
        seconds=1,
        run=lambda _, db, turn: counters.fold_counts(db),
        due=lambda _: counter_store.HAS_CHANGES,
    ),
    Duty(
        name=counters.FOLD_EVENTS,
        seconds=2,
        run=lambda _, db, turn: counters.fold_events(db),
        due=lambda _: throughput.HAS_EVENTS,
    ),
    Duty(
        name="fold performance",
        seconds=5,
        run=lambda _, db, turn: performance.fold(db),
        due=lambda _: performance_store.HAS_EVENTS,
    ),
    # Adjustments are made in steps with a pause between them; a longer interval would prolong each pause.
    Duty(name="weigh agents", seconds=5, run=lambda _, db, turn: weights.tick(db), wakes_on=notify.CONFIG),
    # Also while nothing waits: by the last look others tell how old a task may be.
    Duty(name=counters.FIND_OLDEST, seconds=5, run=lambda _, db, turn: counters.find_oldest(db)),
    Duty(name=counters.CHECK_COUNTERS, seconds=300, run=lambda _, db, turn: counters.check_counters(db)),
    Duty(
        name=WATCH,
        seconds=5,
        run=lambda c, db, turn: alerts.watch(db, c.capacity, with_webhooks=c.webhook_sender is not None),
    ),
    Duty(name=degradation.WATCH, seconds=5, run=lambda c, db, turn: _watch_resources(c, db)),
    Duty(
        name="sweep permits",
        seconds=5,
        run=lambda _, db, turn: permits.sweep(db),
        due=lambda _: permit_store.HAS_EXPIRED,
    ),
    # With the promotion of delayed tasks and the start of a handler within 5 s of when the model answers again.
    Duty(
        name="wake parked tasks",
        seconds=0.5,
        run=lambda _, db, turn: parking.wake_parked(db),
        due=lambda _: parking_store.HAS_PARKED,
    ),
    Duty(
        name="tell of low budgets",
        seconds=5,
        run=lambda _, db, turn: budgets.tell_of_low_budgets(db),
        due=lambda _: budget_store.HAS_BUDGETS,
    ),
    # A decision is due every 5 s, sooner while the pool grows or in a burst, which is looked for while tasks wait.
    Duty(
        name="scaling",
        seconds=tick.LOOK_SECONDS,
        run=lambda c, db, turn: tick.tick(db, c.database, c.mode),
        wakes_on=notify.BURST,
        due=lambda _: f"{counter_store.HAS_TASKS} OR {tick.IS_DUE}",
        # Later than one is due: a turn just before that would read the queue in vain.
        idle_seconds=6,
    ),
    Duty(name="prune decisions", seconds=600, run=lambda c, db, turn: tick.prune(db, c.history_days)),
    Duty(
        name="sample the pool",
        seconds=UtilisationPolicy().every_seconds,
        run=lambda c, db, turn: utilisation.sample_pool(db, UtilisationPolicy(), c.health.lost_after_seconds),
    ),
    Duty(
        name=budget_enforcement.FOLD_DUTY,
        seconds=1,
        run=lambda _, db, turn: budget_enforcement.fold_compute(db),
        due=lambda _: compute.HAS_EVENTS,
    ),
    Duty(
        name="keep goals within limits",
        seconds=1,
        run=lambda _, db, turn: budget_enforcement.enforce_budgets(db),
        due=lambda _: goal_store.HAS_LIMITED,
    ),
    Duty(
        name=budget_enforcement.RECAPTURE_DUTY,
        seconds=5,
        run=lambda _, db, turn: budget_enforcement.recapture_tasks(db),
        due=lambda _: holds.HAS_HELD,
    ),
)

JOBS: Sequence[Job] = (
    # Every change is announced; this is for those whose announcement was lost.
    Job(name="follow the configuration", seconds=5, run=lambda c: c.config.read(), wakes_on=notify.CONFIG),
    Job(
        name="checkpoint",
        seconds=5,
        run=lambda c: checkpoints.take_when_due(c.database, CheckpointPolicy(), c.history_days),
    ),
    Job(
        name=housekeeping.DUTY,
        seconds=housekeeping.EVERY_SECONDS,
        run=lambda c: housekeeping.run_when_due(c.database, history_days=c.history_days, events_days=c.events_days),
    ),
    Job(
        name="hold tasks back",
        seconds=1,
        run=lambda c: budget_enforcement.process_holds(c.database),
        wakes_on=notify.GOALS,
        due=lambda _: holds.HAS_PENDING,
    ),
)


def webhook_jobs(webhook_sender: MessageSender) -> Sequence[Job]:
    """The job that delivers alerts to other services."""
    return (
        Job(
            name="deliver webhooks",
            seconds=5,
            run=lambda c: webhooks.deliver(c.database, webhook_sender),
            wakes_on=notify.WEBHOOKS,
        ),
    )


def host_jobs(machine: Machine, name: str) -> Sequence[Job]:
    """The job that samples the utilisation of this host."""
    policy = UtilisationPolicy()
    sample = Job(
        name="sample the host",
        seconds=policy.every_seconds,
        run=lambda c: utilisation.sample_host(c.database, machine, name, policy),
    )
    return (sample,)


def pool_duties(provisioner: Provisioner, gauge: Gauge) -> Sequence[Duty]:
    """The duty that keeps the pool of one host at its size and reports the host to the scaling loop."""
    duty = Duty(
        name=f"fleet {provisioner.kind} {provisioner.host}",
        seconds=5,
        run=lambda c, db, turn: pool.tick(db, c.mode, _report(c, provisioner, gauge)),
        wakes_on=notify.FLEET,
        is_local=True,
    )
    return (duty,)


def _report(context: Context, provisioner: Provisioner, gauge: Gauge) -> Report:
    return Report(
        provisioner=provisioner.kind, host=provisioner.host, usual_size=context.pool_size, **asdict(gauge.read())
    )


def pool_jobs(provisioner: Provisioner) -> Sequence[Job]:
    """The jobs that start and end worker processes on this host."""
    return (
        Job(
            name="provision",
            seconds=2,
            run=lambda c: pool.provision(c.database, provisioner),
            wakes_on=notify.LAUNCHES,
            due=lambda _: pool_store.HAS_LAUNCHES,
        ),
        Job(
            name="reconcile",
            seconds=5,
            run=lambda c: pool.reconcile(c.database, provisioner, c.stop_grace_seconds),
            wakes_on=notify.FLEET,
        ),
    )


def engine_jobs(engine: Engine) -> Sequence[Job]:
    """The jobs that keep the pool of an engine at its size, and follow what the engine announces."""
    return (
        Job(
            name=f"keep {engine.kind} {engine.name}",
            seconds=2,
            # A class of workers begins with none, and has some once tasks wait that belong to it.
            run=lambda c: engine_pool.keep(
                c.database, engine, EnginePolicy(usual_size=c.pool_size if engine.serves is None else 0)
            ),
            wakes_on=notify.FLEET,
        ),
    )


async def _watch_resources(context: Context, connection: AsyncConnection) -> dict[str, Any]:
    strain = await observations.latest_strain(connection, context.capacity)
    return await degradation.watch(connection, strain)
