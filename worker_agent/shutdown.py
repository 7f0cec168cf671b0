"""Tracks whether the worker is to stop, from signals, directives and the control plane's answers."""

from worker_agent.actions import ExitCode
from worker_agent.states import Intent
from worker_agent.wire import Directive, GoneReason


class Shutdown:
    """Stop requests so far; `grace_seconds` limits the running task after a stop, but not after a plain drain."""

    def __init__(self, grace_seconds: float) -> None:
        self.intent = Intent.SERVE
        self.gone_reason: GoneReason | None = None
        self.reason = ""
        self._grace_seconds: float | None = grace_seconds
        self._restart = False
        self._signals = 0

    @property
    def is_requested(self) -> bool:
        return self.intent > Intent.SERVE

    @property
    def is_final(self) -> bool:
        """Whether the worker must not register (again)."""
        return self.is_requested or self.gone_reason in ("stopped", "superseded")

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.SUPERSEDED if self.gone_reason == "superseded" else ExitCode.STOPPED

    @property
    def restart(self) -> bool:
        return self._restart and self.exit_code is ExitCode.STOPPED

    def count_signal(self) -> Intent:
        """Intent of one more stop signal: the first drains, the second halts."""
        self._signals += 1
        self.reason = self.reason or "stop signal"
        return Intent.DRAIN if self._signals == 1 else Intent.HALT

    def note_directive(self, directive: Directive) -> None:
        self.reason = self.reason or directive.reason or directive.kind
        self._restart = self._restart or directive.kind == "restart"

    def take_grace(self) -> float | None:
        """Seconds of grace on the first call; None ever after."""
        seconds, self._grace_seconds = self._grace_seconds, None
        return seconds

    def raise_intent(self, intent: Intent) -> bool:
        """Raise the intent, never lower it; return whether it changed."""
        has_changed = intent > self.intent
        self.intent = max(self.intent, intent)
        return has_changed
