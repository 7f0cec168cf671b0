"""Bodies of the deployment configuration, with the ranges of the specification."""

from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.admin.rules import config as rules
from app.admin.rules.config import ConfigAction, Document
from app.admin.service.config import ChangeResult, content
from app.admin.store.config import Version
from app.http.fields import Body, Moment, Sentence
from app.kernel import changes as change_kernel
from app.kernel.modes import Mode
from app.kernel.namespaces import PATTERN

Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    """Refuses numbers in quotation marks, 3.0 or true for an integer, and unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class WorkerPool(_Strict):
    """Sizes, shares of 1, seconds."""

    min_workers: int = Field(ge=1, le=100)
    max_workers: int = Field(ge=1, le=1000)
    scale_up_threshold: Share
    scale_down_threshold: Share = Field(description="below scale_up_threshold")
    worker_timeout_seconds: int = Field(ge=60, le=3600)
    wait_target_seconds: float = Field(30, ge=1, le=3600, description="how long a task may wait for a worker")


class ResourceLimits(_Strict):
    """Of one worker; language model calls of all together."""

    max_memory_per_worker_gb: float = Field(ge=1, le=64)
    max_cpu_per_worker: float = Field(ge=0.5, le=16)
    max_concurrent_llm_calls: int = Field(ge=1, le=100)


class AgentWeights(_Strict):
    """Shares; they are scaled to sum 1."""

    generation_agent: Share
    reflection_agent: Share
    ranking_agent: Share
    evolution_agent: Share
    proximity_agent: Share
    meta_review_agent: Share


class Iterations(_Strict):
    """How long a research goal goes on."""

    enabled: bool
    min_iterations: int = Field(ge=1, le=10)
    max_iterations: int = Field(ge=10, le=1000)
    improvement_threshold: float = Field(ge=0.001, le=0.1)


class NamespaceShare(_Strict):
    """What a namespace gets where several share the service."""

    weight: float = Field(1.0, ge=0.01, le=100, description="2 gets twice the leases of 1 wherever both wait")
    max_tasks_share: float = Field(0.8, ge=0.01, le=1, description="of the queue, that its waiting tasks may take up")


NamespaceShares = Annotated[
    dict[Annotated[str, Field(pattern=PATTERN, max_length=63)], NamespaceShare],
    Field(max_length=1000, description="those that are not named have a weight of 1 and a share of 0.8"),
]


_Quota = Annotated[
    float | None,
    Field(ge=0, le=100_000_000, description="share of the queue up to 1, or a number of tasks; null: as the setting"),
]


class Quotas(_Strict):
    """The part of the queue that each priority, with those below, may take up."""

    low: _Quota = None
    medium: _Quota = None
    high: _Quota = None
    critical: _Quota = None


_Wait = Annotated[float, Field(ge=1, le=86_400, description="seconds of waiting until it rises by a priority")]


class Aging(_Strict):
    """When waiting tasks rise."""

    low_after_seconds: _Wait = 600.0
    medium_after_seconds: _Wait = 1200.0
    high_after_seconds: _Wait = 1800.0


class QueueLimits(_Strict):
    """Room, order and second tries of tasks."""

    max_size: int | None = Field(
        None, ge=1, le=100_000_000, description="tasks that may wait; null: CONVENER_MAX_QUEUE_SIZE"
    )
    displaces: bool | None = Field(
        None, description="when full, move the least urgent to the dead letters; null: CONVENER_QUEUE_DISPLACES"
    )
    quotas: Quotas = Field(default_factory=Quotas)
    aging: Aging = Field(default_factory=Aging)
    avoid_failed_worker_seconds: float = Field(
        3.0,
        ge=0,
        le=3600,
        description="for so long a task that failed waits for another worker than the one it failed on",
    )
    max_rescues: int = Field(5, ge=0, le=1000, description="workers that a task may lose; one more, and it is given up")


class Recovery(_Strict):
    """By which times failures are noticed; null: as the setting of the process (CONVENER_...) or the mode says."""

    heartbeat_interval_seconds: float | None = Field(
        None, ge=0.1, le=10, description="of workers that register from now on"
    )
    lost_after_seconds: float | None = Field(
        None, ge=0.3, le=3600, description="of silence; a worker is never held to less than it was told"
    )
    lease_seconds: float | None = Field(None, ge=0.5, le=3600)
    acknowledge_within_seconds: float | None = Field(None, ge=0.5, le=600)


class DocumentIn(_Strict):
    """The whole configuration; every value of the first four sections must be there."""

    model_config = ConfigDict(json_schema_extra={"examples": [rules.as_json(rules.preset(Mode.DEVELOPMENT))]})

    worker_pool: WorkerPool
    resource_limits: ResourceLimits
    agent_weights: AgentWeights
    test_time_compute: Iterations
    namespaces: NamespaceShares = Field(default_factory=dict)
    queue: QueueLimits = Field(default_factory=QueueLimits)
    recovery: Recovery = Field(default_factory=Recovery)


class NoteOut(BaseModel):
    """Something that one should know of a value."""

    path: str
    message: str


class ConductOut(BaseModel):
    """How the mode behaves."""

    scales: bool = Field(description="false: the pool is only kept between its bounds")
    growth: float = Field(description="the most that one decision multiplies the pool by")
    scale_down_window_seconds: float
    audits_reads: bool
    wants_reasons: bool
    slows_people: bool = Field(description="whether `growth` also binds what people start and set")
    heartbeat_interval_seconds: float
    lost_after_seconds: float
    log_level: str


class ConfigOut(BaseModel):
    """The configuration of the specification, and what is known of it."""

    worker_pool: WorkerPool
    resource_limits: ResourceLimits
    agent_weights: AgentWeights
    test_time_compute: Iterations
    namespaces: NamespaceShares
    queue: QueueLimits
    recovery: Recovery
    mode: Mode
    version: int
    effective_weights: dict[str, float] = Field(description="what the weights come to: none is under 0.02")
    notes: list[NoteOut]
    conduct: ConductOut
    changed_at: Moment
    changed_by: str = Field(description="id of the key that was shown; `convener` for the preset of a new system")
    reason: str
    action: ConfigAction


class ChangeOut(BaseModel):
    """One value that differs."""

    path: str
    before: Any
    after: Any


class ChangedOut(ConfigOut):
    """The configuration after the change; after a dry run, as it would be, with the version that it is at still."""

    changes: list[ChangeOut] = Field(description="from the version of If-Match to this one")
    dry_run: bool


class ConfigHistoryItem(BaseModel):
    """A version, and what it changed."""

    version: int
    mode: Mode
    action: ConfigAction
    changed_at: Moment
    changed_by: str
    reason: str
    changes: list[ChangeOut] = Field(description="from the version before; none for the first")


class ConfigHistoryPage(BaseModel):
    """Newest first; pass `next` as `after` for what follows."""

    items: list[ConfigHistoryItem]
    next: int | None


class RollbackIn(Body):
    """Where to, and why."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1, "reason": "the change did not help"}]})

    version: int = Field(ge=1, le=2**63 - 1, strict=True)
    reason: Sentence = ""


class ModeIn(Body):
    """Which, and why."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"mode": "development", "reason": "a small machine"}]})

    mode: Mode
    reason: Sentence = ""


def config_out(version: Version) -> ConfigOut:
    """The response for a version."""
    return ConfigOut.model_validate(_fields(version), from_attributes=True)


def changed_out(result: ChangeResult, *, dry_run: bool) -> ChangedOut:
    """The response to a change or to its dry run."""
    fields = {**_fields(result.version), "changes": result.changes, "dry_run": dry_run}
    return ChangedOut.model_validate(fields, from_attributes=True)


def history_item(version: Version, previous: Version | None) -> ConfigHistoryItem:
    """A version in the history, with its differences from the previous one."""
    changes = change_kernel.changes(content(previous), content(version)) if previous else []
    return ConfigHistoryItem.model_validate({**_head(version), "changes": changes}, from_attributes=True)


def _head(version: Version) -> dict[str, Any]:
    return {name: getattr(version, name) for name in Version.__dataclass_fields__ if name != "document"}


def _fields(version: Version) -> dict[str, Any]:
    weights, notes = rules.effective_weights(version.document)
    return {
        **_head(version),
        **rules.as_json(version.document),
        "effective_weights": rules.weights_by_name(weights),
        "notes": notes,
        "conduct": rules.conduct(version.mode),
    }


def apply_patch(document: Document, merge: dict[str, Any]) -> Document:
    """The document after the patch. Raises RequestValidationError."""
    try:
        body = DocumentIn.model_validate(rules.apply_merge_patch(rules.as_json(document), merge))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    except RecursionError:  # the merge recurses as deep as the patch is nested
        raise RequestValidationError([{"type": "depth", "loc": ("body",), "msg": "is nested too deeply"}]) from None
    # A weight that the patch names is meant exactly; only the others are scaled.
    weights = merge.get("agent_weights") or {}
    return rules.balance_weights(document_from(body), weights)


def document_from(body: BaseModel) -> Document:
    """Convert a validated body into a document."""
    return rules.from_json(body.model_dump())
