"""Entry point of the loops: runs the schedule and the worker pool of this host until a signal stops it."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until it is taken: Ctrl-C within the start ends it without a word

from app import garbage_collection
from app.secrecy import close_process

if __name__ == "__main__":
    close_process()  # before the other imports, which take a second: secrets wait in a descriptor meanwhile
    garbage_collection.pause()

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from uuid import UUID

from app.admin.service.config import CurrentConfig, Effective
from app.db.database import Database
from app.health.service.delivery import MessageSender, WebhookSender
from app.kernel.errors import DatabaseUnavailable
from app.kernel.modes import Mode
from app.kernel.resources import Resources
from app.logs import set_level, start_logging
from app.loops.runner import Runner
from app.loops.schedule import (
    DUTIES,
    JOBS,
    Context,
    Duty,
    Job,
    engine_jobs,
    host_jobs,
    pool_duties,
    pool_jobs,
    webhook_jobs,
)
from app.postgres.cluster import lock_directory
from app.postgres.errors import ClusterBusy, ClusterUnusable
from app.queue.rules.admission import capacity_policy
from app.queue.rules.aging import aging_policy
from app.queue.rules.tasks import LeasePolicy, lease_policy
from app.queue.service.admission import settings_policy
from app.secrecy import make_private
from app.settings import Settings, load_settings, secret_variables
from app.settings_values import KubernetesClass
from app.terminal.databases import check_database, ends_by_failure, start_failure
from app.terminal.failures import ExitCode, Failure
from app.workers.provisioners.block_settings import UnusableBlocks, block_engine, check_blocks
from app.workers.provisioners.engine import Engine
from app.workers.provisioners.environment import handler_arguments, worker_environment
from app.workers.provisioners.host import Gauge, Machine
from app.workers.provisioners.kubernetes.access import AccessRefused, ClusterAccess, from_kubeconfig, in_cluster
from app.workers.provisioners.local import LocalProvisioner
from app.workers.rules.classes import WorkerClass
from app.workers.rules.workers import HealthPolicy, health_policy
from app.workers.service import pool
from app.workers.service.enrolment import make_block_key

log = logging.getLogger(__name__)
# Together well within 5 s, after which whoever stops this process kills it.
_CANCEL_SECONDS, _LEAVE_SECONDS, _HASTY_GRACE_SECONDS, _CLOSE_SECONDS = 0.5, 2.0, 1.0, 1.0
# A turn of a duty takes a fraction of it, also where much has come together.
_STATEMENT_SECONDS = 10.0


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then end the workers in order."""
    if settings.database_url is None:
        raise ValueError("the loops need CONVENER_DATABASE_URL")
    database = Database(
        settings.database_url,
        direct_url=settings.database_direct_url,
        hot_connections=2,
        # A turn takes milliseconds, so that few are under way at once: all of them at the start.
        connections=3,
        spare_connections=7,
        statement_seconds=_STATEMENT_SECONDS,
    )
    is_local = settings.provisioner == "local"
    provisioner = _provisioner(settings, database) if settings.pool_size and is_local else None
    engines = engines_for(settings, database)
    schedule: Sequence[Duty | Job] = [*DUTIES, *JOBS, *host_jobs(Machine(), settings.host_name)]
    if provisioner is not None:
        schedule = [*schedule, *pool_duties(provisioner, Gauge()), *pool_jobs(provisioner)]
    schedule = [*schedule, *(job for engine in engines for job in engine_jobs(engine))]
    webhook_sender = WebhookSender(settings.webhook) if settings.webhook else None
    if webhook_sender is not None:
        schedule = [*schedule, *webhook_jobs(webhook_sender)]
    context = _context(settings, database, provisioner, webhook_sender)
    runner = Runner(context, schedule, liveness_file=settings.liveness_file)
    database.start()
    work = asyncio.create_task(runner.run())
    following = [asyncio.create_task(engine.run()) for engine in engines]
    log.info("loops are running: %d duties and jobs", len(schedule))
    stop = StopSignals()
    await _until_stopped(work, stop)
    work.cancel()
    await asyncio.wait([work], timeout=_CANCEL_SECONDS)
    # The members of an engine stay: they go on without us, and the next run finds them.
    await _leave_engines(engines, following)
    if provisioner is not None:
        grace_seconds = _HASTY_GRACE_SECONDS if stop.is_hasty else _kill_after_seconds(settings)
        stopping = asyncio.create_task(_stop_workers(database, provisioner, grace_seconds))
        await asyncio.wait([stopping, asyncio.create_task(stop.again.wait())], return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await provisioner.kill_all()
    # Whatever still hangs then, a look-up of a name for one, ends with the process.
    signal.setitimer(signal.ITIMER_REAL, _CLOSE_SECONDS)
    await database.close()


async def _leave_engines(engines: Sequence[Engine], following: Sequence["asyncio.Task[None]"]) -> None:
    for task in following:
        task.cancel()
    if following:
        await asyncio.wait(following, timeout=_CANCEL_SECONDS)
    for engine in engines:
        await engine.close()


async def _stop_workers(database: Database, provisioner: LocalProvisioner, grace_seconds: float) -> None:
    # The host leaves first, so that no new workers are assigned to it.
    try:
        async with asyncio.timeout(_LEAVE_SECONDS):
            await pool.leave(database, provisioner)
    except (DatabaseUnavailable, TimeoutError):
        # Nobody could store what their tasks achieve; the tasks are found by their expired leases.
        log.warning("the database is away, so the workers end without finishing their tasks")
        database.give_up()
        await provisioner.stop_all(_HASTY_GRACE_SECONDS, report_seconds=0)
    else:
        await provisioner.stop_all(grace_seconds)


def _context(
    settings: Settings, database: Database, provisioner: LocalProvisioner | None, webhook_sender: MessageSender | None
) -> Context:
    mode = settings.mode or Mode.PRODUCTION
    config = CurrentConfig(database, mode)
    leases = LeasePolicy(
        lease_seconds=settings.lease_seconds, acknowledge_within_seconds=settings.acknowledge_within_seconds
    )
    context = Context(
        database=database,
        leases=leases,
        capacity=settings_policy(settings),
        health=HealthPolicy(),
        mode=mode,
        config=config,
        provisioner=provisioner,
        webhook_sender=webhook_sender,
        pool_size=settings.pool_size,
        stop_grace_seconds=_kill_after_seconds(settings),
        history_days=settings.history_days,
        events_days=settings.events_days,
    )

    def apply(effective: Effective) -> None:
        document = effective.document
        context.capacity = capacity_policy(document.queue, settings_policy(settings))
        context.aging = aging_policy(document.queue.aging)
        context.leases = lease_policy(document, leases)
        context.health = health_policy(
            document.recovery,
            effective.conduct,
            heartbeat_interval_seconds=settings.heartbeat_interval_seconds,
            lost_after_seconds=settings.lost_after_seconds,
        )
        if settings.log_level is None:
            set_level(effective.conduct.log_level)

    config.subscribe(apply)
    return context


def _provisioner(settings: Settings, database: Database) -> LocalProvisioner:
    async def on_exit(worker_id: UUID, reason: str, error: str | None) -> None:
        # The database may be restarting. An exit that is not reported is only noticed later, as silence.
        for _ in range(60):
            try:
                await pool.report_exit(database, worker_id, reason, error=error)
            except Exception:
                log.warning("could not report the exit of worker %s yet (%s)", worker_id, reason)
                await asyncio.sleep(0.5)
            else:
                return

    arguments = ["--url", settings.addresses[0]]
    arguments += ["--grace", str(settings.stop_grace_seconds)]
    arguments += handler_arguments(settings)
    arguments += ["--gpus", str(settings.worker_gpus)] if settings.worker_gpus else []
    return LocalProvisioner(
        host=settings.host_name,
        owner=str(settings.state_directory),
        arguments=arguments,
        environment=worker_environment(settings),
        secrets=_model_key(settings),
        logs=_worker_logs(settings),
        on_exit=on_exit,
    )


def engines_for(settings: Settings, database: Database) -> Sequence[Engine]:
    """The engines that start workers, where processes of this host do not. Raises UnusableBlocks, AccessRefused."""
    match settings.provisioner:
        case "local":
            return ()
        case "slurm" | "pbs":
            make_key = partial(make_block_key, database)
            return (block_engine(settings, make_key, _model_key(settings)),)
        case "kubernetes":
            # Imported here, as its HTTP client would delay the start of all other loops.
            from app.workers.provisioners.kubernetes.deployment import KubernetesDeployment

            access, namespace = _cluster_access(settings), settings.kubernetes_namespace
            name, limit = settings.kubernetes_deployment, settings.pool_limit
            return (
                KubernetesDeployment(access, name, namespace=namespace, max_size=limit),
                *(
                    KubernetesDeployment(
                        access, each.deployment, namespace=namespace, max_size=each.limit, serves=_worker_class(each)
                    )
                    for each in settings.kubernetes_classes
                ),
            )


def _worker_class(setting: KubernetesClass) -> WorkerClass:
    offer = Resources(
        cores=setting.cores, memory_gb=setting.memory_gb, gpus=setting.gpus, named=frozenset(setting.resources)
    )
    return WorkerClass(agents=frozenset(setting.agents) or None, offer=offer)


def _cluster_access(settings: Settings) -> ClusterAccess:
    return in_cluster() if settings.kubeconfig is None else from_kubeconfig(settings.kubeconfig)


def _model_key(settings: Settings) -> dict[str, str]:
    """The key of the language model, and where workers read it anew."""
    key_file = None if settings.llm_key_file is None else str(settings.llm_key_file.absolute())
    values = {"llm_key": settings.llm_key, "llm_key_file": key_file, "llm_key_command": settings.llm_key_command}
    return secret_variables(values)


def _kill_after_seconds(settings: Settings) -> float:
    """Seconds until a stopping worker is killed: its own grace, and a little for giving its task back."""
    return settings.stop_grace_seconds + 5


class StopSignals:
    """Signals that end this process: SIGTERM lets tasks finish, SIGINT (Ctrl-C) hardly, and another one not at all."""

    def __init__(self) -> None:
        self.first, self.again = asyncio.Event(), asyncio.Event()
        self.is_hasty = False
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.first.is_set():
            self.again.set()
            return
        self.is_hasty = number is signal.SIGINT
        self.first.set()


async def _until_stopped(work: "asyncio.Task[None]", stop: StopSignals) -> None:
    waiting = asyncio.create_task(stop.first.wait())
    await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
    if work.done():  # the runner ends only by an error, which must end this process
        work.result()


def main() -> None:
    """Entry point of `python -m app.background`."""
    settings = load_settings()
    start_logging(settings)
    ends_by_failure(lambda: _check(settings))
    garbage_collection.settle()
    try:
        asyncio.run(run(settings))
    except Exception:
        log.exception("ended by an error")
        raise SystemExit(1) from None


def _check(settings: Settings) -> None:
    """Raise Failure where the workers could not write their logs or have other loops, or the database refuses."""
    if settings.pool_size and settings.provisioner == "local":
        _claim_workers(_worker_logs(settings))
    asyncio.run(check_database(str(settings.database_url), settings.database_direct_url))
    if settings.provisioner == "kubernetes":
        try:
            _cluster_access(settings)
        except AccessRefused as error:
            raise Failure(str(error), ExitCode.USAGE) from None
    if settings.provisioner in ("slurm", "pbs"):
        try:
            check_blocks(settings)
        except UnusableBlocks as error:
            raise Failure(str(error), ExitCode.USAGE) from None


def _claim_workers(logs: Path) -> None:
    """Keep the workers of a state directory on this host to ourselves until we end. Raises Failure."""
    try:
        make_private(logs)
        # Processes are known by the state directory alone, so that other loops would take ours for leftovers of theirs
        # and end them. Hosts that share a home directory do not see each other's. A file system without locks, or
        # room, keeps no loops from running.
        with suppress(ClusterUnusable, OSError):
            lock_directory(logs / socket.gethostname())
    except ClusterBusy as error:
        hint = "loops beside these either have a CONVENER_STATE_DIRECTORY of their own, or CONVENER_POOL_SIZE=0"
        raise Failure(str(error), ExitCode.REFUSED, hint=hint) from None
    except OSError as error:
        raise start_failure(error) from None


def _worker_logs(settings: Settings) -> Path:
    return settings.state_directory / "logs" / "workers"


if __name__ == "__main__":
    main()
