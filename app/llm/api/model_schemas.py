"""Bodies about language models and their usage."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.http.fields import Body, Moment, Word
from app.llm.rules.circuit_breaker import BreakerState
from app.llm.rules.conditions import ServiceState
from app.llm.store.usage import Grouping

Amount = Annotated[int, Field(ge=1, le=10**12)]
Price = Annotated[float, Field(ge=0, le=1e6, description="US dollars")]


def _check_printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must have printable characters only")
    return value


ModelName = Annotated[Word, AfterValidator(_check_printable)]


_LIMITS: dict[str, Any] = {
    "requests_per_window": 500,
    "tokens_per_window": 200_000,
    "window_seconds": 60,
    "burst": 20,
    "fallback_models": ["gpt-4.1-mini"],
    "input_price_per_million_tokens": 2.0,
    "output_price_per_million_tokens": 8.0,
}
_MODEL: dict[str, Any] = _LIMITS | {
    "model": "gpt-4.1",
    "state": "ok",
    "state_until": None,
    "key_expires_at": None,
    "version": 1,
    "limit": 32,
    "in_use": 3,
    "breaker": "closed",
    "breaker_open_seconds": 0.0,
    "consecutive_failures": 0,
    "cooldown_seconds": 0.0,
    "mean_latency_ms": 2100.0,
    "is_listed": True,
    "used_at": "2026-11-24T12:00:00Z",
    "held_back": [],
}


class LimitsIn(Body):
    """What people allow; null: no limit of its own."""

    model_config = ConfigDict(json_schema_extra={"examples": [_LIMITS]})

    requests_per_window: Amount | None = None
    tokens_per_window: Amount | None = None
    window_seconds: float = Field(60, ge=1, le=86_400)
    burst: Amount | None = Field(None, description="requests at once; a tenth of the window when it is not given")
    token_burst: Amount | None = Field(None, description="tokens at once; a tenth of the window when it is not given")
    max_concurrency: Annotated[int, Field(ge=1, le=1000)] | None = None
    fallback_models: list[ModelName] = Field(default_factory=list, max_length=10, description="the best first")
    input_price_per_million_tokens: Price | None = None
    output_price_per_million_tokens: Price | None = None


class HeldBackOut(BaseModel):
    """A worker, or a key of somebody who is none, that is held back by what it alone has reported of the service."""

    caller: str = Field(description="id of the worker or key")
    cooldown_seconds: float
    breaker_open_seconds: float


class ModelOut(LimitsIn):
    """A model: its limits, and how its service stands. Two callers must report the same before it holds for all."""

    model_config = ConfigDict(json_schema_extra={"examples": [_MODEL]})

    model: str
    state: ServiceState = Field(description="of its service, as callers report it")
    state_until: Moment | None = Field(description="when that ends, where it is known")
    key_expires_at: Moment | None = Field(description="when the key that callers use expires, where they know it")
    version: int = Field(description="of the limits; 0: nobody has set them")
    limit: int = Field(description="calls that may be under way at once: what its service was seen to bear")
    in_use: int = Field(description="calls that are under way")
    breaker: BreakerState = Field(description="open: it failed again and again; half_open: one call may try it")
    breaker_open_seconds: float = Field(description="for so long nobody may try it")
    consecutive_failures: int
    cooldown_seconds: float = Field(description="for so long its service wants to be left alone, by all")
    mean_latency_ms: float | None = Field(description="decayed; null before the first call")
    is_listed: bool = Field(description="whether permits are granted for it")
    used_at: Moment | None = Field(description="null: nobody has called it since it was listed")
    held_back: list[HeldBackOut] = Field(description="those who alone have reported a cool-down, or failed")


class ModelPage(BaseModel):
    """By name; pass `next` as `after` for what follows."""

    items: list[ModelOut]
    next: str | None


class UsageOut(BaseModel):
    """What calls came to. Percentiles are right within a factor of two."""

    name: str | None = Field(description="of the model, agent type, goal or key; null: of no goal, or of workers")
    calls: int
    outcomes: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    held_seconds: float = Field(description="for which permits were held")
    latency_ms: dict[str, float | None] = Field(description="`mean`, `p50` and `p95`")


class UsagePage(BaseModel):
    """Those with most calls first."""

    by: Grouping
    since: Moment
    items: list[UsageOut]
