"""The shell around the state machine: one queue of events, one loop, and the threads that do what the machine asks."""

import logging
import signal
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from threading import current_thread, main_thread
from typing import assert_never

from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.beating import Heart, Standing
from worker_agent.calls import Caller
from worker_agent.errors import LocalErrors
from worker_agent.handlers import Handler
from worker_agent.journal import tell_action, tell_event
from worker_agent.llm.serving import Access, Gateway
from worker_agent.llm.settings import GatewaySettings
from worker_agent.measuring import Measurements
from worker_agent.protocol import Machine
from worker_agent.running import Run
from worker_agent.spawning import Limits, spawn
from worker_agent.transport import Transport
from worker_agent.wire import JsonObject, Lease, TaskError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Everything that one daemon is told at its start; `profile` is what it registers with."""

    url: str
    pool_key: str = field(repr=False)
    profile: JsonObject
    launch_token: str | None  # in the profile too; whoever has one is replaced by whoever gave it
    handlers: Mapping[str, Handler]
    limits: Limits
    grace_seconds: float
    language_model: GatewaySettings | None = None


class Daemon:
    """`run` returns when the worker is stopped."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._events: SimpleQueue[ev.Event] = SimpleQueue()
        self._machine = Machine(new_id=lambda: str(uuid.uuid4()), grace_seconds=assignment.grace_seconds)
        self._alarm_at: float | None = None
        self._run: Run | None = None
        self._gateway = self._make_gateway()
        self._access: Access | None = None
        self._exit: act.Exit | None = None
        self._standing = Standing()
        errors = LocalErrors()
        self._caller = Caller(
            Transport(assignment.url),
            profile=assignment.profile,
            pool_key=assignment.pool_key,
            post=self._events.put,
            errors=errors,
        )
        self._heart = Heart(
            Transport(assignment.url), standing=lambda: self._standing, post=self._events.put, errors=errors
        )
        self._measurements = Measurements(partial(Transport, assignment.url), key=self._key, errors=errors)

    def run(self) -> act.Exit:
        """Serve until drained, stopped, refused or superseded."""
        self._catch_signals()
        self._heart.start()
        if self._gateway is not None:
            self._gateway.start()
        self._events.put(ev.Begin())
        try:
            while self._exit is None:
                self._turn(self._next_event())
        finally:
            self._kill()
            self._heart.stop()
            self._measurements.stop()
            self._caller.close()
            if self._gateway is not None:
                self._gateway.stop()
        return self._exit

    def stop(self) -> None:
        """What a SIGTERM does; safe in a signal handler and from any thread."""
        self._events.put(ev.StopSignal())

    def _catch_signals(self) -> None:
        if current_thread() is main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self.stop())

    def _next_event(self) -> ev.Event:
        if self._alarm_at is None:
            return self._events.get()
        try:
            return self._events.get(timeout=max(0.0, self._alarm_at - time.monotonic()))
        except Empty:
            self._alarm_at = None
            return ev.GraceOver()

    def _turn(self, event: ev.Event) -> None:
        tell_event(event)
        if isinstance(event, ev.HandlerOver):
            self._run = None
            self._close_access()
            self._measurements.push_now()
        actions = self._machine.handle(event, time.monotonic())
        self._publish()
        for action in actions:
            tell_action(action)
            if isinstance(action, act.Call):
                self._caller.make(action)
            else:
                self._perform(action)

    def _publish(self) -> None:
        machine = self._machine
        self._standing = Standing(
            number=machine.registrations,
            registration=machine.registration,
            state=machine.wire_state,
            lease=None if machine.lease is None else machine.lease.ref,
            handler_pid=None if self._run is None else self._run.pid,
            posting=None if machine.posting is None else machine.posting.version,
        )

    def _perform(self, action: act.Order) -> None:
        match action:
            case act.RunHandler(lease):
                self._start(lease)
            case act.KillHandler():
                self._kill()
            case act.ReportProgress(lease, progress):
                self._caller.report_progress(lease, progress)
            case act.BeatNow():
                self._heart.beat_now()
            case act.SetAlarm(seconds):
                self._alarm_at = time.monotonic() + seconds
            case act.AbortCall():
                self._caller.abort()
            case act.Exit():
                self._exit = action
            case _:
                assert_never(action)

    def _kill(self) -> None:
        if self._run is not None:
            self._run.kill()

    def _start(self, lease: Lease) -> None:
        handler = self._assignment.handlers.get(lease.agent_type)
        try:
            if handler is None:
                raise OSError(f"this worker has no handler for {lease.agent_type}")
            limits = self._assignment.limits.within(self._machine.posting)
            child = spawn(lease, handler, limits, self._open_access(lease))
        except (OSError, ValueError) as error:
            failure = TaskError(code="handler_unavailable", message=str(error), retryable=True)
            self._events.put(ev.HandlerFailed(failure))
            return
        self._run = Run(child, lease.timeout_seconds, self._events.put, partial(self._measure, lease))
        self._standing = replace(self._standing, handler_pid=self._run.pid)

    def _measure(self, lease: Lease, said: JsonObject) -> None:
        sample = {name: said[name] for name in ("name", "kind", "value")} | {"agent": lease.agent_type}
        if said["by_goal"] and lease.goal_id is not None:
            sample["goal"] = lease.goal_id
        self._measurements.add(sample)

    def _make_gateway(self) -> Gateway | None:
        settings = self._assignment.language_model
        return None if settings is None else Gateway(settings, self._assignment.url, self._key)

    def _key(self) -> str | None:
        registration = self._standing.registration
        return None if registration is None else registration.key

    def _open_access(self, lease: Lease) -> Mapping[str, str]:
        if self._gateway is None:
            return {}
        self._access = self._gateway.open(lease)
        return self._access.environment

    def _close_access(self) -> None:
        if self._gateway is not None and self._access is not None:
            self._gateway.close(self._access)
            self._access = None
