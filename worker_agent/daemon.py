"""The shell around the state machine: one queue of events, one loop, and the threads that perform its actions."""

import logging
import signal
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import current_thread, main_thread
from typing import assert_never

from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.call_runner import CallRunner
from worker_agent.child_process import ResourceLimits, start_child
from worker_agent.confinement import Confinement, Method
from worker_agent.connections.trust import SYSTEM_TRUST, Trust
from worker_agent.failures import MAX_POSTPONEMENT_SECONDS
from worker_agent.gpus import GpuKeeper
from worker_agent.handler_run import HandlerRun
from worker_agent.handlers import Handler
from worker_agent.heartbeat import DaemonStatus, HeartbeatSender
from worker_agent.kernel_calls import PARENT_ENDED
from worker_agent.lifetime import Lifetime
from worker_agent.llm.proxy import ModelProxy, ProxyAccess
from worker_agent.llm.settings import GatewaySettings
from worker_agent.local_errors import LocalErrors
from worker_agent.logs import log_action, log_event
from worker_agent.metrics import MetricsPusher
from worker_agent.orphans import adopt_orphans
from worker_agent.outage import Outage
from worker_agent.protections import Protection
from worker_agent.protocol import StateMachine
from worker_agent.task_trace import TaskTrace
from worker_agent.tracing.spans import Tracing
from worker_agent.transport import Transport
from worker_agent.wire import JsonObject, Lease, Postponement, TaskError, Usage

log = logging.getLogger(__name__)


_FOUND_BY_DAEMON = frozenset({"memory_limit", "result_too_large", "invalid_result"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSettings:
    """Settings of one daemon; `profile` is the body of its registration.

    `not_ready_reason` says why it cannot work, which is then all that it does: report that.
    """

    url: str
    trust: Trust = SYSTEM_TRUST
    pool_key: str = field(repr=False)
    key_file: Path | None = None
    profile: JsonObject
    is_launched: bool  # by somebody who also starts the next one
    handlers: Mapping[str, Handler]
    not_ready_reason: str | None = None
    limits: ResourceLimits
    confinement: Confinement
    protections: tuple[Protection, ...]
    grace_seconds: float
    # Until somebody ends it; None: nobody is going to.
    seconds_left: float | None = None
    language_model: GatewaySettings | None = None
    gpus: GpuKeeper = field(default_factory=GpuKeeper)

    def read_pool_key(self) -> str:
        """The key of the pool that its file holds by now, as after a rotation; else that of the start."""
        with suppress(OSError, ValueError):
            return self.pool_key if self.key_file is None else usable_key(self.key_file.read_text())
        return self.pool_key


def usable_key(text: str) -> str:
    """The key in a text. Raises ValueError."""
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError("no usable pool key: set CONVENER_KEY, or give --key-file")
    return key


class Daemon:
    """A worker, from its start until it is stopped."""

    def __init__(self, settings: DaemonSettings, tracing: Tracing | None = None) -> None:
        self._settings = settings
        self._trace = TaskTrace(tracing)
        self._events: SimpleQueue[ev.Event] = SimpleQueue()
        self._machine = StateMachine(new_id=lambda: str(uuid.uuid4()), grace_seconds=settings.grace_seconds)
        self._alarm_at: float | None = None
        self._handler_run: HandlerRun | None = None
        self._adopts_orphans = settings.confinement.method is not Method.NAMESPACES and adopt_orphans()
        gateway = settings.language_model
        self._model_proxy = (
            None
            if gateway is None
            else ModelProxy(gateway, settings.url, self._worker_key, trust=settings.trust, tracing=tracing)
        )
        self._access: ProxyAccess | None = None
        self._exit: act.Exit | None = None
        self._status = DaemonStatus()
        self._has_been_told = False
        self._errors = errors = LocalErrors()
        outage = Outage(errors)
        self._lifetime = None if settings.seconds_left is None else Lifetime(settings.seconds_left)
        self._calls = CallRunner(
            Transport(settings.url, settings.trust),
            profile=settings.profile,
            lifetime=self._lifetime,
            pool_key=settings.read_pool_key,
            post=self._events.put,
            errors=errors,
            outage=outage,
        )
        self._heartbeat = HeartbeatSender(
            Transport(settings.url, settings.trust),
            status=lambda: self._status,
            post=self._events.put,
            errors=errors,
            outage=outage,
        )
        self._metrics = MetricsPusher(
            partial(Transport, settings.url, settings.trust), key=self._worker_key, errors=errors
        )

    def run(self) -> act.Exit:
        """Serve until drained, stopped, refused or superseded."""
        self._catch_signals()
        if self._lifetime is not None:
            self._lifetime.call_before_the_end(self._settings.grace_seconds, self.stop)
        self._heartbeat.start()
        if self._model_proxy is not None:
            self._model_proxy.start()
        self._events.put(ev.Begin())
        try:
            while self._exit is None:
                self._handle(self._next_event())
        finally:
            self._kill_handler()
            if self._lifetime is not None:
                self._lifetime.close()
            self._heartbeat.stop()
            self._metrics.stop()
            self._calls.close()
            if self._model_proxy is not None:
                self._model_proxy.stop()
        return self._exit

    def stop(self) -> None:
        """Stop as on SIGTERM; safe in a signal handler and from any thread."""
        self._has_been_told = True
        self._events.put(ev.StopSignal())

    def _stop_without_haste(self) -> None:
        if not self._has_been_told:
            self.stop()

    def _catch_signals(self) -> None:
        if current_thread() is main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self.stop())
            signal.signal(PARENT_ENDED, lambda *_: self._stop_without_haste())

    def _next_event(self) -> ev.Event:
        if self._alarm_at is None:
            return self._events.get()
        try:
            return self._events.get(timeout=max(0.0, self._alarm_at - time.monotonic()))
        except Empty:
            self._alarm_at = None
            return ev.GraceExpired()

    def _handle(self, event: ev.Event) -> None:
        log_event(event)
        if isinstance(event, ev.HandlerEnd):
            self._handler_run = None
            event = self._told(self._parked(event))
            self._close_access()
            self._trace.end(event)
            self._calls.finish_log()
            self._metrics.push_now()
        actions = self._machine.handle(event, time.monotonic())
        # Before the actions, as a heartbeat among them must report the new state.
        self._update_status()
        for action in map(self._traced, actions):
            log_action(action)
            if isinstance(action, act.Call):
                self._calls.start_call(action)
            else:
                self._perform(action)
        if self._machine.lease is None:
            self._trace.leave()

    def _traced(self, action: act.Action) -> act.Action:
        return act.RunHandler(self._trace.begin(action.lease)) if isinstance(action, act.RunHandler) else action

    def _update_status(self) -> None:
        machine = self._machine
        self._status = DaemonStatus(
            registration_number=machine.registrations,
            registration=machine.registration,
            state=machine.wire_state,
            lease=None if machine.lease is None else machine.lease.ref,
            handler_pid=None if self._handler_run is None else self._handler_run.pid,
            not_ready_reason=self._settings.not_ready_reason,
            assignment=None if machine.assignment is None else machine.assignment.version,
        )

    def _perform(self, action: act.LocalAction) -> None:
        match action:
            case act.RunHandler(lease):
                self._start_handler(lease)
            case act.KillHandler():
                self._kill_handler()
            case act.ReportProgress(lease, progress):
                self._calls.report_progress(lease, progress)
            case act.SendHeartbeat():
                self._heartbeat.send_now()
            case act.SetAlarm(seconds):
                self._alarm_at = time.monotonic() + seconds
            case act.AbortCall():
                self._calls.abort()
            case act.Exit():
                self._exit = action
            case _:
                assert_never(action)

    def _kill_handler(self) -> None:
        if self._handler_run is not None:
            self._handler_run.kill()

    def _start_handler(self, lease: Lease) -> None:
        handler = self._settings.handlers.get(lease.agent_type)
        try:
            if handler is None:
                raise ValueError(f"this worker has no handler for {lease.agent_type}")
            limits = self._settings.limits.within(self._machine.assignment, lease)
            asked = int((lease.resources or {}).get("gpus", 0))
            variables = {**self._open_access(lease), **self._settings.gpus.environment(asked)}
            child = start_child(lease, handler, limits, self._settings.confinement, variables)
            self._handler_run = HandlerRun(
                child,
                lease.timeout_seconds,
                self._events.put,
                partial(self._add_measurement, lease),
                self._calls.open_log(lease),
                adopts_orphans=self._adopts_orphans,
                is_stopping=lambda: self._has_been_told,
            )
        except ValueError as error:
            failure = TaskError(code="handler_unavailable", message=str(error), retryable=True)
            self._events.put(ev.HandlerFailed(failure))
            return
        except OSError as error:
            self._events.put(ev.HandlerNotStarted(str(error)))
            return
        self._status = replace(self._status, handler_pid=self._handler_run.pid)

    def _add_measurement(self, lease: Lease, measurement: JsonObject) -> None:
        sample = {name: measurement[name] for name in ("name", "kind", "value")} | {"agent": lease.agent_type}
        if measurement["by_goal"] and lease.goal_id is not None:
            sample["goal"] = lease.goal_id
        self._metrics.add(sample)

    def _worker_key(self) -> str | None:
        registration = self._status.registration
        return None if registration is None else registration.key

    def _open_access(self, lease: Lease) -> Mapping[str, str]:
        if self._model_proxy is None:
            return {}
        self._access = self._model_proxy.open_access(lease)
        return self._access.environment

    def _parked(self, end: ev.HandlerEnd) -> ev.HandlerEnd:
        """The end of a handler that gave up because a model answers nobody: its task waits for that, unharmed."""
        wait = None if self._access is None else self._access.task_key.waits
        if wait is None or wait.model is None or not isinstance(end, ev.HandlerFailed | ev.HandlerPostponed):
            return end
        # What the daemon itself finds has nothing to do with the model.
        if isinstance(end, ev.HandlerFailed) and end.error.code in _FOUND_BY_DAEMON:
            return end
        seconds = min(wait.seconds, MAX_POSTPONEMENT_SECONDS)
        usage = end.usage or Usage(wall_seconds=0.0, cpu_seconds=0.0, max_memory_mb=0.0)
        return ev.HandlerPostponed(Postponement(seconds=seconds, reason=wait.reason, model=wait.model), usage)

    def _told(self, end: ev.HandlerEnd) -> ev.HandlerEnd:
        """The end of a handler; that it could not be started here is told to the log, and with the next heartbeat."""
        if not isinstance(end, ev.HandlerNotStarted):
            return end
        reason = f"no handler can be started here: {end.reason}"
        lease = self._machine.lease
        log.warning(reason, extra={"fields": {"task": None if lease is None else lease.task_id}})
        self._errors.add(reason)
        return replace(end, reason=reason)

    def _close_access(self) -> None:
        if self._model_proxy is not None and self._access is not None:
            self._model_proxy.close_access(self._access)
            self._access = None
