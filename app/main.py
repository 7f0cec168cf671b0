"""Entry point of the API: serves requests until a signal stops it."""

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
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import uvicorn
from fastapi import FastAPI

from app import application
from app.admin.service.config import AuditedReads, CurrentConfig, Effective
from app.admin.service.keyring import Keyring
from app.agents.service.agents import AgentReports
from app.agents.service.weights import follow_weights, refresh_weights
from app.dashboard.feed import Feeds
from app.dashboard.sight import LastHours
from app.db import presence, schema
from app.db.database import Database
from app.db.rights import warn_of_excess_rights
from app.db.schema import ExpectedSchema
from app.health.rules.utilisation import UtilisationPolicy
from app.health.service.delivery import WebhookSender
from app.health.service.refusals import keep_writing, write_counts
from app.health.service.snapshot_cache import SnapshotCache, SnapshotSettings
from app.health.service.stand_in import stand_in
from app.health.service.utilisation import keep_sampling
from app.http.bodies import Uploads, start_threads
from app.http.bounds import BoundedHeads
from app.http.connection_room import raise_limits
from app.http.refusals import Refusals
from app.http.services import PayloadLimit, Services
from app.http.shares import Shares
from app.http.sockets import SocketTaken, UnixSocket
from app.http.tls import EXPOSED, EXPOSED_REMEDY, ServerCertificate, UnusableCertificate, served_certificate
from app.kernel.errors import DatabaseUnavailable
from app.kernel.modes import Mode
from app.llm.rules.permits import PermitPolicy
from app.llm.service.models import list_models
from app.llm.service.permits import PermitService
from app.logs import set_level, start_logging
from app.queue.api.event_stream import EventReaders
from app.queue.broker.broker import Broker
from app.queue.rules.admission import capacity_policy
from app.queue.rules.tasks import LeasePolicy, lease_policy
from app.queue.service.admission import Admission, settings_policy
from app.queue.service.leases import LeaseService
from app.queue.service.submits import SubmitService
from app.queue.service.task_traces import TaskTraces
from app.queue.service.tasks import Intake
from app.scaling.service import state
from app.scaling.service.bursts import Bursts
from app.server import GRACE_SECONDS, Server, begin_shutdown
from app.settings import Settings, load_settings
from app.terminal.databases import check_database, ends_by_failure
from app.terminal.failures import ExitCode, Failure
from app.workers.provisioners.host import Machine
from app.workers.rules.workers import HealthPolicy, health_policy
from app.workers.service.eviction import Evictor
from app.workers.service.signs_of_life import SignsOfLife
from app.workers.service.workers import Heartbeats
from app.workers.store import pool
from worker_agent.tracing.exporting import start_tracing

log = logging.getLogger(__name__)
_LISTING_SECONDS = 1.0
_STATEMENT_SECONDS = 15.0
_LAST_TRACES_SECONDS = 0.5


def services_for(
    settings: Settings,
    database: Database,
    certificate: ServerCertificate | None,
    traces: TaskTraces | None,
) -> Services:
    """All objects that routes work with."""
    leases = LeasePolicy(
        lease_seconds=settings.lease_seconds, acknowledge_within_seconds=settings.acknowledge_within_seconds
    )
    capacity = settings_policy(settings)
    broker = Broker(database, leases, on_first_leases=pool.record_first_leases, traces=traces)
    initial = settings.mode or Mode.PRODUCTION
    config = CurrentConfig(database, initial)
    admission, bursts = Admission(capacity), Bursts(database, config)
    intake = Intake(
        admission=admission,
        duplicate_window_seconds=settings.duplicate_window_seconds,
        on_submitted=bursts.count_new_tasks,
    )
    terms = SnapshotSettings(
        capacity=capacity,
        initial_mode=initial,
        silent_seconds=HealthPolicy().lost_after_seconds,
        certificate_expiry=lambda: None if certificate is None else certificate.expires_at,
    )
    services = Services(
        database,
        Keyring(database),
        Refusals(),
        Shares(),
        Evictor(),
        config,
        AuditedReads(database, config),
        PayloadLimit(max_bytes=settings.max_payload_bytes),
        leases,
        broker,
        broker.degradation,
        LeaseService(database, leases, broker.fairness),
        admission,
        intake,
        SubmitService(database, intake, traces),
        EventReaders(),
        AgentReports(state.bottleneck),
        PermitService(
            database,
            broker.fairness,
            PermitPolicy(ttl_seconds=settings.permit_seconds, max_per_worker=settings.permits_per_worker),
        ),
        HealthPolicy(),
        Heartbeats(database, leases, broker.preferences),
        SignsOfLife(database, broker),
        bursts,
        # Connections of its own: it must not wait behind the work that it reports on.
        SnapshotCache(
            Database(
                database.url,
                direct_url=database.direct_url,
                hot_connections=1,
                connections=1,
                statement_seconds=_STATEMENT_SECONDS,
                outage=database.outage,
            ),
            terms,
        ),
        ExpectedSchema(revision=schema.head()),
        Feeds(),
        LastHours(),
    )
    config.subscribe(lambda effective: _apply(effective, settings, services))
    return services


def _apply(config: Effective, settings: Settings, services: Services) -> None:
    """Let everything go by this configuration, and where that leaves something open by the settings."""
    document = config.document
    leases = lease_policy(
        document,
        LeasePolicy(
            lease_seconds=settings.lease_seconds, acknowledge_within_seconds=settings.acknowledge_within_seconds
        ),
    )
    health = health_policy(
        document.recovery,
        config.conduct,
        heartbeat_interval_seconds=settings.heartbeat_interval_seconds,
        lost_after_seconds=settings.lost_after_seconds,
    )
    for holder in (services[Broker], services[LeaseService], services[Heartbeats]):
        holder.policy = leases
    services.put(leases)
    services.put(health)
    services[SignsOfLife].lost_after_seconds = health.lost_after_seconds
    capacity = services[Admission].policy = capacity_policy(document.queue, settings_policy(settings))
    snapshots = services[SnapshotCache]
    snapshots.settings = replace(snapshots.settings, capacity=capacity, silent_seconds=health.lost_after_seconds)


def create_app(
    settings: Settings,
    certificate: ServerCertificate | None = None,
    on_config: Callable[[Effective], None] | None = None,
    traces: TaskTraces | None = None,
) -> FastAPI:
    """The application, which opens its connections when it starts; `on_config` hears of every configuration."""
    if settings.database_url is None:
        raise ValueError("the API needs CONVENER_DATABASE_URL")
    url = settings.database_url

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(url, direct_url=settings.database_direct_url, statement_seconds=_STATEMENT_SECONDS)
        services = app.state.services = services_for(settings, database, certificate, traces)
        database.start()
        await start_threads()
        broker, config = services[Broker], services[CurrentConfig]
        if on_config is not None:
            config.subscribe(on_config)
        broker.start()
        await warn_of_excess_rights(database)
        await refresh_weights(database, config, broker.fairness, broker.degradation)
        listing = asyncio.create_task(list_models(database, settings.llm_models), name="models")
        await asyncio.wait({listing}, timeout=_LISTING_SECONDS)
        following = follow_weights(database, config, broker.fairness, broker.degradation)
        weights = asyncio.create_task(following, name="weights")
        sampling = asyncio.create_task(
            keep_sampling(database, Machine(), settings.host_name, UtilisationPolicy()), name="sampling"
        )
        writing = asyncio.create_task(keep_writing(database, services[Refusals]), name="refusals")
        keys = asyncio.create_task(services[Keyring].follow(), name="keys")
        noting = asyncio.create_task(
            presence.keep_noting(
                database,
                lambda: services[HealthPolicy].presence,
                lambda: max(services[Heartbeats].stalled_seconds, services[Keyring].stalled_seconds),
            ),
            name="presence",
        )
        sender = WebhookSender(settings.webhook) if settings.webhook else None
        watching = asyncio.create_task(stand_in(database, lambda: services[Admission].policy, sender), name="alerts")
        signs = asyncio.create_task(services[SignsOfLife].keep_storing(), name="signs of life")
        following_tasks = [weights, sampling, writing, keys, noting, watching, signs]
        if certificate is not None:
            following_tasks.append(asyncio.create_task(certificate.follow(), name="certificate"))
        try:
            yield
        finally:
            for task in (*following_tasks, listing):
                task.cancel()
            # Callers that wait are answered first; then the batches that have arrived are written, while the database
            # is still open.
            await begin_shutdown(services)
            await services[LeaseService].stop()
            await services[SubmitService].stop()
            await services[Heartbeats].stop()
            await services[Bursts].stop()
            await services[PermitService].stop()
            with suppress(DatabaseUnavailable):
                await write_counts(database, services[Refusals])
            await services[SnapshotCache].close()
            await database.close()

    uploads = Uploads(settings.max_body_bytes, settings.max_bodies_bytes)
    return application.build(lifespan, uploads=uploads, metrics_open=settings.metrics_open)


def _follow_log_level(config: Effective) -> None:
    set_level(config.conduct.log_level)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; connections are given a few seconds to finish.

    Raises SocketTaken, UnusableCertificate, and Failure where the port cannot be had.
    """
    limits = raise_limits()
    certificate = served_certificate(settings.tls_certificate, settings.tls_key)
    on_config = _follow_log_level if settings.log_level is None else None
    tracing = start_tracing("convener-api")
    config = uvicorn.Config(
        create_app(settings, certificate, on_config, None if tracing is None else TaskTraces(tracing)),
        http=BoundedHeads,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=75,  # longer than nginx keeps its own (60 s), so that it is the proxy that closes
        backlog=limits.waiting,
        server_header=False,
        # Otherwise whoever connects from this machine could name any address as its own.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies or None,
        ssl_context_factory=(lambda *_: certificate.context) if certificate else None,
    )
    BoundedHeads.room.max_connections = limits.open
    unix_socket = UnixSocket(settings.socket) if settings.socket else None
    server = Server(config, unix_socket, drain_seconds=settings.drain_seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        # Also before uvicorn listens to them, and when it raises them again at its end: then they change nothing.
        signal.signal(number, server.handle_exit)
    garbage_collection.settle()
    log.info("serving on %s", " and ".join(settings.addresses))
    if settings.is_exposed:
        log.warning("%s: %s", EXPOSED, EXPOSED_REMEDY)
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(server.serve())
    finally:
        if unix_socket is not None:
            unix_socket.remove()
        if tracing is not None:
            tracing.close_within(_LAST_TRACES_SECONDS)


def main() -> None:
    """Entry point of `python -m app.main`."""
    settings = load_settings()
    start_logging(settings)
    try:
        ends_by_failure(lambda: _start(settings))
    except Exception:
        log.exception("ended by an error")
        raise SystemExit(1) from None


def _start(settings: Settings) -> None:
    asyncio.run(check_database(str(settings.database_url), settings.database_direct_url))
    try:
        serve(settings)
    except UnusableCertificate as error:
        raise Failure(str(error), ExitCode.USAGE) from None
    except SocketTaken as error:
        raise Failure(str(error), ExitCode.REFUSED) from None


if __name__ == "__main__":
    main()
