"""Ends of language-model calls, and the signals about the model's service that they carry."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Outcome(StrEnum):
    """The end of a call, as its caller saw it; `rate_limited` is a 429, `server_error` a 5xx or no whole answer."""

    SUCCESS = "success"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CLIENT_ERROR = "client_error"
    CANCELLED = "cancelled"


# An overloaded service answers with any of these, so each shrinks the concurrency, like a lost packet in TCP. A 429 is
# no failure, though: a service that refuses on purpose is alive, so it does not count for the circuit breaker.
LOSSES = frozenset({Outcome.RATE_LIMITED, Outcome.SERVER_ERROR, Outcome.TIMEOUT})
FAILURES = frozenset({Outcome.SERVER_ERROR, Outcome.TIMEOUT})


@dataclass(frozen=True, slots=True, kw_only=True)
class CallReport:
    """A finished call as its caller reports it; None: unknown to the caller. Waits from headers are in seconds."""

    outcome: Outcome
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_seconds: float | None = None
    retry_after_seconds: float | None = None
    reset_requests_seconds: float | None = None
    reset_tokens_seconds: float | None = None
    # The status of HTTP, and the code of the error in the answer's body.
    status: int | None = None
    error_code: str | None = None
    # When the key of the caller expires, as far as it knows.
    key_expires_at: datetime | None = None

    @property
    def tokens(self) -> int | None:
        """All tokens of the call; None when neither side is known."""
        if self.prompt_tokens is None and self.completion_tokens is None:
            return None
        return (self.prompt_tokens or 0) + (self.completion_tokens or 0)


def requested_wait(report: CallReport) -> float | None:
    """Seconds for which the service asks for no calls: Retry-After (RFC 9110), else the larger of the reset headers.

    None: it does not ask. Services send -1 and 0 for `unknown`, so only what is above 0 counts.
    """
    # A success carries reset headers as well: they tell when the window ends, not that anybody should wait.
    if report.outcome not in LOSSES:
        return None
    if report.retry_after_seconds is not None and report.retry_after_seconds > 0:
        return report.retry_after_seconds
    resets = [seconds for seconds in (report.reset_requests_seconds, report.reset_tokens_seconds) if seconds]
    return max((seconds for seconds in resets if seconds > 0), default=None)
