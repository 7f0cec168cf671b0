"""How a call of a language model ended, and what it says of the model's service."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The end of a call, as its caller saw it; `rate_limited` is a 429, `server_error` a 5xx or no whole answer."""

    SUCCESS = "success"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CLIENT_ERROR = "client_error"
    CANCELLED = "cancelled"


# What a service that has too much to do answers with. A 429 is such a signal and no failure of the service.
LOSSES = frozenset({Outcome.RATE_LIMITED, Outcome.SERVER_ERROR, Outcome.TIMEOUT})
FAILURES = frozenset({Outcome.SERVER_ERROR, Outcome.TIMEOUT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a caller tells of a finished call; None where it does not know. Headers are in seconds."""

    outcome: Outcome
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_seconds: float | None = None
    retry_after_seconds: float | None = None
    reset_requests_seconds: float | None = None
    reset_tokens_seconds: float | None = None

    @property
    def tokens(self) -> int | None:
        """All tokens of the call; None when neither side is known."""
        if self.prompt_tokens is None and self.completion_tokens is None:
            return None
        return (self.prompt_tokens or 0) + (self.completion_tokens or 0)


def asked_to_wait(report: Report) -> float | None:
    """Seconds for which the service wants to be left alone: Retry-After, else the larger of the reset headers.

    Services send -1 and 0 for `unknown`, so only what is above 0 counts; and a success says nothing of the kind.
    """
    if report.outcome not in LOSSES:
        return None
    if report.retry_after_seconds is not None and report.retry_after_seconds > 0:
        return report.retry_after_seconds
    resets = [seconds for seconds in (report.reset_requests_seconds, report.reset_tokens_seconds) if seconds]
    return max((seconds for seconds in resets if seconds > 0), default=None)
