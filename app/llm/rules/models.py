"""A language model as Convener knows it: what people allow, and what its service has shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import ceil

from app.llm.rules.circuit_breaker import Breaker, BreakerState
from app.llm.rules.concurrency import Pressure
from app.llm.rules.rate_limit import Dimension, Meter

# A tenth of a window at once spreads calls over the window, and lets a handful of agents begin together.
_USUAL_BURST = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What people allow; None: unlimited, and for prices: unknown. Prices are US dollars for a million tokens.

    `burst` requests and `token_burst` tokens may come at once; a tenth of the window when nobody says otherwise.
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
    """Everything about a model. Version 0: nobody has set its limits yet."""

    name: str
    version: int = 0
    limits: Limits = field(default_factory=Limits)
    pressure: Pressure = field(default_factory=Pressure)
    breaker: Breaker = field(default_factory=Breaker)
    tats: Mapping[Dimension, datetime | None] = field(default_factory=dict)


def meters(model: Model, now: datetime) -> dict[Dimension, Meter]:
    """The meters of a model; a dimension that is not limited has none."""
    limits = model.limits
    kinds = {
        Dimension.REQUESTS: (limits.requests_per_window, limits.burst),
        Dimension.TOKENS: (limits.tokens_per_window, limits.token_burst),
    }
    return {
        dimension: Meter(
            limit=limit,
            window_seconds=limits.window_seconds,
            burst=burst or ceil(limit * _USUAL_BURST),
            tat=model.tats.get(dimension) or now,
        )
        for dimension, (limit, burst) in kinds.items()
        if limit is not None
    }


def ceiling(model: Model, most: int) -> int:
    """The most calls at once that people allow, given what all models together may have."""
    return most if model.limits.max_concurrency is None else min(most, model.limits.max_concurrency)


def cost(limits: Limits, prompt_tokens: int | None, completion_tokens: int | None) -> float:
    """US dollars that a call cost by the prices that are known."""
    return (
        (prompt_tokens or 0) * (limits.input_price or 0) + (completion_tokens or 0) * (limits.output_price or 0)
    ) / 1e6


def usable(model: Model, now: datetime) -> bool:
    """Whether it makes sense to ask for this model now."""
    return model.breaker.state(now) is not BreakerState.OPEN and not model.pressure.cooldown_seconds(now)
