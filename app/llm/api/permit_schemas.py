"""Bodies about permits of language-model calls."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from app.http.fields import AgentName, Body, Moment, PriorityIn, PriorityName, Word
from app.http.json import JsonObject
from app.http.problems import Problem
from app.kernel.agents import AgentType
from app.llm.api.model_schemas import ModelName
from app.llm.rules.conditions import ServiceState
from app.llm.rules.outcomes import Outcome
from app.llm.rules.permits import Refused
from app.llm.rules.spending import BudgetScope

_ID = "8f14e45f-ceea-467f-ab8a-1d2e3f4a5b6c"
# More than any model reads or writes at once.
_MAX_TOKENS = 100_000_000
DAY_SECONDS = 86_400.0

Count = Annotated[int, Field(ge=0, le=_MAX_TOKENS)]
# Services send -1 for `unknown`.
Reset = Annotated[float, Field(ge=-1, le=1e9)]
CacheKey = Annotated[
    str,
    Field(
        max_length=64,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the canonical request. The service keeps the answer under a key of its own, which holds"
        " for this model within the goal of the task; without a goal, for this worker or key",
    ),
]
PermitToken = Annotated[str, Field(min_length=1, max_length=100)]


class PermitIn(Body):
    """Somebody wants to call a model once.

    A worker asks for the task that it holds, whose lease says agent type, goal and priority: what it names itself must
    be the same. Anybody else names the agent type.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"request_id": _ID, "model": "gpt-4.1", "agent_type": "ranking", "estimated_tokens": 1500},
                {"request_id": _ID, "model": "gpt-4.1", "task_id": _ID, "estimated_tokens": 1500},
            ]
        }
    )

    request_id: UUID = Field(
        description="a new one for every call; repeated after a refusal it keeps its place, after a grant that was lost"
        " on the way it is answered with the same permit"
    )
    model: ModelName = Field(description="one that is listed at `/llm/models`")
    agent_type: AgentName | None = None
    goal_id: Word | None = None
    task_id: UUID | None = None
    priority: PriorityIn | None = Field(None, description="`critical` is for operators; `medium` by default")
    estimated_tokens: Count = Field(description="of request and answer together; 0: unknown")
    cache_key: CacheKey | None = Field(None, description="a refusal then brings the cached answer, where there is one")


class PermitOut(BaseModel):
    """One call may be made until `expires_at`. Renew it for a longer one; settle it afterwards.

    A call that still runs when its permit is over must be ended, as others may call instead.
    """

    permit_id: UUID
    token: str
    model: str
    expires_at: Moment
    ttl_seconds: float = Field(
        description="until then, by the clock of the service: a caller counts it from when it sent the request. Less"
        " where the permit was granted before, and that answer was lost"
    )
    fallback_models: list[str] = Field(description="models to ask when this call fails, the best first")
    limit: int = Field(description="calls of this model that may be under way at once")
    in_use: int = Field(description="those that are, with this one")


class CachedOut(BaseModel):
    """An answer from the cache: not that of a call made now, so the result is marked as degraded."""

    answer: dict[str, Any]
    stored_at: Moment
    degraded: Literal[True] = True


class RefusedBudgetOut(BaseModel):
    """The budget that has no room; `until`: its period ends then."""

    scope: BudgetScope
    name: str = Field(description="of the goal as it is stored, the agent type, or the id of the key")
    until: Moment | None


class RefusalOut(Problem):
    """Come back with the same `request_id` after `retry_after` seconds, or soon after: that keeps one's place."""

    retry_after: float
    reason: Refused
    fallback_models: list[str] = Field(description="models to try instead, the best first; those out of order left out")
    cached: CachedOut | None
    state: ServiceState = Field(description="of the model's service")
    park_seconds: float = Field(
        description="for so long a task that needs the model may be released with `waits_for_model`; it is woken"
        " earlier when the service answers again, or when the budget has room"
    )
    waits_for: str = Field(description="what such a task names in `waits_for_model`: the model, or a budget")
    budget: RefusedBudgetOut | None = Field(description="the one that has no room, where that is the reason")


class RenewIn(Body):
    """The call goes on."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"token": "0123456789abcdef0123456789abcdef"}]})

    token: PermitToken


class RenewedOut(BaseModel):
    """The permit lives on."""

    expires_at: Moment
    ttl_seconds: float = Field(description="until then; a caller counts it from when it sent the request")


class CacheIn(Body):
    """An answer to keep for when a call is not permitted: to the question that the permit was granted for.

    One that is there already stays until its time is over.
    """

    key: CacheKey
    answer: JsonObject
    ttl_seconds: float = Field(DAY_SECONDS, gt=0, le=DAY_SECONDS)


class SettleIn(Body):
    """What the call came to; null where that is not known. The headers of the answer are in seconds, -1: unknown."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "token": "0123456789abcdef0123456789abcdef",
                    "outcome": "success",
                    "status": 200,
                    "prompt_tokens": 900,
                    "completion_tokens": 420,
                    "latency_ms": 2300,
                }
            ]
        }
    )

    token: PermitToken
    outcome: Outcome
    status: int | None = Field(None, ge=100, le=599, description="of HTTP")
    error_code: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="code or type of the error in the answer, like `insufficient_quota`"
    )
    key_expires_at: Moment | None = Field(None, description="when the key that was used expires, where that is known")
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    cost_usd: float | None = Field(None, ge=0, le=1e6, description="by the prices of the model when it is not given")
    latency_ms: float | None = Field(None, ge=0, le=1e9)
    retry_after_seconds: Reset | None = None
    reset_requests_seconds: Reset | None = None
    reset_tokens_seconds: Reset | None = None
    cache: CacheIn | None = Field(None, description="kept when the call succeeded")


class SettledOut(BaseModel):
    """How the model stands now, for whoever settles."""

    limit: int = Field(description="calls of this model that may be under way at once")
    in_use: int
    cooldown_seconds: float = Field(description="for so long there is no permit for this model")
    late: bool = Field(description="the permit was over before; everything was counted all the same")


class LivePermitOut(BaseModel):
    """Somebody is calling a model."""

    permit_id: UUID
    model: str
    agent_type: AgentType
    priority: PriorityName
    namespace: str
    goal_id: str | None
    task_id: UUID | None
    worker_id: UUID | None
    key_id: str
    estimated_tokens: int
    is_probe: bool = Field(description="tries out whether a model works again")
    granted_at: Moment
    expires_at: Moment


class PermitPage(BaseModel):
    """The oldest first; pass `next` as `after` for what follows."""

    items: list[LivePermitOut]
    next: UUID | None
