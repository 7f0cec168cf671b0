"""A language model: the limits that people set, and the measured state of its service."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import ceil

from app.llm.rules.callers import CallerState
from app.llm.rules.circuit_breaker import Breaker, BreakerState
from app.llm.rules.concurrency import ConcurrencyState
from app.llm.rules.key_reports import KeyReport
from app.llm.rules.rate_limit import Dimension, Meter

# A tenth of a window at once spreads calls over the window, and lets a handful of agents begin together.
_DEFAULT_BURST = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """Limits and prices that people set; None: unlimited, or price unknown. Prices are US dollars per million tokens.

    `burst` requests and `token_burst` tokens may come at once; None: a tenth of the window.
    """

    requests_per_window: int | None = None
    tokens_per_window: int | None = None
    window_seconds: float = 60.0
    burst: int | None = None
    token_burst: int | None = None
    max_concurrency: int | None = None
    fallback_models: Sequence[str] = ()
    input_price: float | None = None
    output_price: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model with its limits and the state of its service, also as single callers report it.

    Version 0: nobody has set its limits yet.
    """

    name: str
    version: int = 0
    limits: ModelLimits = field(default_factory=ModelLimits)
    concurrency: ConcurrencyState = field(default_factory=ConcurrencyState)
    breaker: Breaker = field(default_factory=Breaker)
    callers: Mapping[str, CallerState] = field(default_factory=dict)
    # None: nobody has told of an end.
    key_report: KeyReport | None = None
    tats: Mapping[Dimension, datetime | None] = field(default_factory=dict)
    # Of the meters of single workers, by `rate_limit.worker_key`.
    worker_tats: Mapping[str, datetime] = field(default_factory=dict)

    @property
    def key_expires_at(self) -> datetime | None:
        """The earliest end of a key that a caller has told of."""
        return None if self.key_report is None else self.key_report.expires_at


def meters(model: Model, now: datetime) -> dict[Dimension, Meter]:
    """The meters of a model; an unlimited dimension has none."""
    limits = model.limits
    rates = {
        Dimension.REQUESTS: (limits.requests_per_window, limits.burst),
        Dimension.TOKENS: (limits.tokens_per_window, limits.token_burst),
    }
    unpaid = {
        dimension: Meter(
            limit=limit, window_seconds=limits.window_seconds, burst=burst or ceil(limit * _DEFAULT_BURST), tat=now
        )
        for dimension, (limit, burst) in rates.items()
        if limit is not None
    }
    return {
        dimension: replace(meter, tat=meter.owed_until(model.tats.get(dimension), now))
        for dimension, meter in unpaid.items()
    }


def changed_tats(model: Model, changes: Mapping[str, datetime], now: datetime) -> dict[str, datetime]:
    """The workers' points in time after changes, without those that have passed."""
    return {name: tat for name, tat in {**model.worker_tats, **changes}.items() if tat > now}


def concurrency_ceiling(model: Model, total_limit: int) -> int:
    """The most calls at once that people allow; `total_limit` is for all models together."""
    return total_limit if model.limits.max_concurrency is None else min(total_limit, model.limits.max_concurrency)


def call_cost(limits: ModelLimits, prompt_tokens: int | None, completion_tokens: int | None) -> float:
    """Cost of a call in US dollars; tokens without a known price cost nothing."""
    return (
        (prompt_tokens or 0) * (limits.input_price or 0) + (completion_tokens or 0) * (limits.output_price or 0)
    ) / 1e6


def is_usable(model: Model, caller: str, now: datetime) -> bool:
    """Whether neither an open breaker nor a cool-down rules this model out for the caller now."""
    own = model.callers.get(caller)
    if own is not None and own.is_blocked(now):
        return False
    # Half-open counts as usable: somebody has to be the probe.
    return model.breaker.state(now) is not BreakerState.OPEN and not model.concurrency.cooldown_seconds(now)
