"""Reads from the headers of a refusal when to retry, and computes the backoff."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_CAP_SECONDS = 60.0
# A longer duration is capped: the time limit of the task ends the wait long before.
_MAX_SECONDS = 86_400.0
# The search for parts takes the square of a longer one: 60 kB would hold the daemon for minutes.
_MAX_CHARACTERS = 100
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|h|m|s)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitHints:
    """Seconds until a call may succeed again, as far as the headers of an answer say; None where they do not."""

    retry_after: float | None = None
    reset_requests: float | None = None
    reset_tokens: float | None = None

    @property
    def min_seconds(self) -> float:
        """Seconds before which a retry is useless: Retry-After if present, else the later reset."""
        if self.retry_after is not None:
            return self.retry_after
        return max(self.reset_requests or 0.0, self.reset_tokens or 0.0)


def read_hints(headers: Mapping[str, str], now: datetime) -> RateLimitHints:
    """Read the headers of an answer; absent, past and malformed values are left out."""
    return RateLimitHints(
        retry_after=_milliseconds(headers.get("retry-after-ms")) or read_retry_after(headers.get("retry-after"), now),
        reset_requests=parse_duration(headers.get("x-ratelimit-reset-requests")),
        reset_tokens=parse_duration(headers.get("x-ratelimit-reset-tokens")),
    )


def parse_duration(text: str | None) -> float | None:
    """Seconds of `1s`, `6m0s`, `12ms`, `1h2m3.5s` or a plain number; None for -1, 0 and anything else."""
    if text is None or len(text) > _MAX_CHARACTERS:
        return None
    plain = text.strip().lower()
    if _NUMBER.fullmatch(plain):
        return _plausible(float(plain))
    parts = _PART.findall(plain)
    if not parts or "".join(number + unit for number, unit in parts) != plain:
        return None
    return _plausible(sum(float(number) * _UNITS[unit] for number, unit in parts))


def backoff_seconds(refusals: int, hints: RateLimitHints, random_fraction: float) -> float:
    """Seconds to wait after so many refusals in a row: full jitter, `U(0, min(60, 2^k))`, never below the hints.

    Jitter is added to a hint, so that callers with the same hint do not return at once. Source: "Exponential Backoff
    And Jitter", AWS Architecture Blog, 2015. `random_fraction` is in [0, 1).
    """
    jitter = random_fraction * min(_CAP_SECONDS, 2.0 ** min(max(0, refusals), 60))
    return hints.min_seconds + jitter if hints.min_seconds else jitter


def read_retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds of a Retry-After (RFC 9110), which may be a number or a date; None where it says nothing of use."""
    seconds = parse_duration(text)
    if seconds is not None or not text or len(text) > _MAX_CHARACTERS:
        return seconds
    try:
        retry_at = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return _plausible((retry_at.replace(tzinfo=retry_at.tzinfo or UTC) - now).total_seconds())


def _milliseconds(text: str | None) -> float | None:
    seconds = parse_duration(text)
    return None if seconds is None else _plausible(seconds / 1000)


def _plausible(seconds: float) -> float | None:
    return min(seconds, _MAX_SECONDS) if seconds > 0 and math.isfinite(seconds) else None
