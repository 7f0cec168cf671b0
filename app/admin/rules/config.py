"""The deployment configuration: what people decide about pool, limits, weights and iterations, and its three modes.

The shape is that of the specification. The API checks the range of each single value; this module holds the rules
between values, the presets of the modes, and the scaling of weights.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from dataclasses import fields as dataclass_fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from app.kernel.agents import AgentType
from app.kernel.modes import Mode
from app.kernel.shares import Weights, raise_to_floor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Section = TypeVar("Section", bound="DataclassInstance")
# Weights that sum to 1 within this are left alone, so that rounding errors do not show as changes.
_EPSILON = 1e-9
# No agent may be disabled: each has at least this share of the leases.
WEIGHT_FLOOR = 0.02


class ConfigAction(StrEnum):
    """What made a version of the configuration; the first is the preset of a mode."""

    INITIAL = "initial"
    SET = "set"
    PATCH = "patch"
    ROLLBACK = "rollback"
    MODE = "mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """Bounds in workers, thresholds as shares of 1, and the seconds that a worker may take for a task.

    The timeout is of a task that names none of its own: then the task is taken from its worker. The wait target is how
    long a task may wait for a worker, in seconds.
    """

    min_workers: int
    max_workers: int
    scale_up_threshold: float = 0.8
    scale_down_threshold: float = 0.3
    worker_timeout_seconds: int = 300
    wait_target_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """Memory (GB) and cores of one worker, and concurrent language-model calls of all workers."""

    max_memory_per_worker_gb: float = 4.0
    max_cpu_per_worker: float = 2.0
    max_concurrent_llm_calls: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsConfig:
    """The share of each agent; that of reflection comes from example 2 of the specification."""

    generation_agent: float = 0.25
    reflection_agent: float = 0.15
    ranking_agent: float = 0.2
    evolution_agent: float = 0.2
    proximity_agent: float = 0.1
    meta_review_agent: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationConfig:
    """Test-time compute of a research goal; the threshold is a gain in win probability."""

    enabled: bool = True
    min_iterations: int = 3
    max_iterations: int = 100
    improvement_threshold: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceConfig:
    """A namespace that shares the service with others: its weight against theirs, and its share of the queue's room.

    The share leaves room for the others; it counts only where there are others.
    """

    weight: float = 1.0
    max_tasks_share: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaConfig:
    """The part of the queue that each priority may take up; None: as the setting of the process says."""

    low: float | None = None
    medium: float | None = None
    high: float | None = None
    critical: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgingConfig:
    """Seconds after which a waiting task of a priority rises by one."""

    low_after_seconds: float = 600.0
    medium_after_seconds: float = 1200.0
    high_after_seconds: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """Room, order and second tries of tasks; None: as the setting of the process says."""

    max_size: int | None = None
    displaces: bool | None = None
    quotas: QuotaConfig = field(default_factory=QuotaConfig)
    aging: AgingConfig = field(default_factory=AgingConfig)
    # A task whose attempt has failed waits this long for another worker before the same one may try again.
    avoid_failed_worker_seconds: float = 3.0
    max_rescues: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryConfig:
    """Seconds by which failures are noticed; None: as the setting of the process or the mode says."""

    heartbeat_interval_seconds: float | None = None
    lost_after_seconds: float | None = None
    lease_seconds: float | None = None
    acknowledge_within_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The whole configuration; a namespace that is not in it is as by default."""

    worker_pool: PoolConfig
    resource_limits: LimitsConfig
    agent_weights: WeightsConfig
    test_time_compute: IterationConfig
    namespaces: Mapping[str, NamespaceConfig] = field(default_factory=dict)
    queue: QueueConfig = field(default_factory=QueueConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A message about the value at a path like `worker_pool.min_workers`."""

    path: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """Behaviour of a mode: `growth` is the largest factor of one scaling decision, times are in seconds."""

    scales: bool
    heartbeat_interval_seconds: float = 5.0
    lost_after_seconds: float = 15.0
    log_level: str = "info"
    # Example 1 of the specification doubles; a wrong estimate can then cost no more than as much again.
    growth: float = 2.0
    # Just under a tick of the scaling loop, which may come a little early.
    scale_down_window_seconds: float = 4.5
    audits_reads: bool = False
    wants_reasons: bool = False
    # Whether `growth` also holds for the workers that people start, and for the minimum that they set.
    slows_people: bool = False
    # Smallest and largest size that a pool may be given; None: any.
    bounds: tuple[int, int] | None = None


_POOLS: Mapping[Mode, PoolConfig] = {
    Mode.DEVELOPMENT: PoolConfig(min_workers=2, max_workers=5),
    Mode.PRODUCTION: PoolConfig(min_workers=10, max_workers=1000),
    Mode.TRUSTED_TESTER: PoolConfig(min_workers=5, max_workers=50),
}

_CONDUCTS: Mapping[Mode, Conduct] = {
    Mode.DEVELOPMENT: Conduct(
        scales=False,
        # Somebody who kills a worker wants to see it replaced, and what happens.
        heartbeat_interval_seconds=2.0,
        lost_after_seconds=6.0,
        log_level="debug",
        bounds=(_POOLS[Mode.DEVELOPMENT].min_workers, _POOLS[Mode.DEVELOPMENT].max_workers),
    ),
    Mode.PRODUCTION: Conduct(scales=True),
    Mode.TRUSTED_TESTER: Conduct(
        scales=True,
        growth=1.25,
        scale_down_window_seconds=300.0,
        audits_reads=True,
        wants_reasons=True,
        slows_people=True,
        bounds=(_POOLS[Mode.TRUSTED_TESTER].min_workers, _POOLS[Mode.TRUSTED_TESTER].max_workers),
    ),
}


def preset(mode: Mode) -> Document:
    """The configuration that a new system in this mode starts with."""
    return Document(
        worker_pool=_POOLS[mode],
        resource_limits=LimitsConfig(),
        agent_weights=WeightsConfig(),
        test_time_compute=IterationConfig(),
    )


def with_mode(document: Document, mode: Mode) -> Document:
    """The document after a change to this mode: the pool is the mode's, all else stays."""
    return replace(document, worker_pool=_POOLS[mode])


def conduct(mode: Mode) -> Conduct:
    """Behaviour of a mode. Only that of the trusted testers has stricter rules for people."""
    return _CONDUCTS[mode]


def problems(document: Document, mode: Mode) -> list[Remark]:
    """Contradictions between values, each of which is allowed by itself."""
    pool, remarks = document.worker_pool, []
    if pool.min_workers > pool.max_workers:
        message = f"must not be above max_workers, which is {pool.max_workers}"
        remarks.append(Remark(path="worker_pool.min_workers", message=message))
    if pool.scale_down_threshold >= pool.scale_up_threshold:
        message = f"must be below scale_up_threshold, which is {pool.scale_up_threshold:g}"
        remarks.append(Remark(path="worker_pool.scale_down_threshold", message=message))
    recovery, usual = document.recovery, conduct(mode)
    interval = recovery.heartbeat_interval_seconds or usual.heartbeat_interval_seconds
    if recovery.lost_after_seconds is not None and recovery.lost_after_seconds <= interval:
        message = f"must be above heartbeat_interval_seconds, which is {interval:g}"
        remarks.append(Remark(path="recovery.lost_after_seconds", message=message))
    if not any(asdict(document.agent_weights).values()):
        remarks.append(Remark(path="agent_weights", message="at least one weight must be above 0"))
    return remarks + _out_of_bounds(pool, mode)


def _out_of_bounds(pool: PoolConfig, mode: Mode) -> list[Remark]:
    bounds = conduct(mode).bounds
    if bounds is None:
        return []
    sizes = {"min_workers": pool.min_workers, "max_workers": pool.max_workers}
    message = f"must be between {bounds[0]} and {bounds[1]} in the mode {mode.value}"
    wrong = [name for name, size in sizes.items() if not bounds[0] <= size <= bounds[1]]
    return [Remark(path=f"worker_pool.{name}", message=message) for name in wrong]


def largest_step(conduct: Conduct, workers: int) -> int:
    """The size that a pool of so many workers may grow to in one step; one worker more is always allowed."""
    return max(workers + 1, math.floor(conduct.growth * workers))


def step_problems(former: Document, document: Document, mode: Mode) -> list[Remark]:
    """A minimum that is raised by more than a step, where the mode slows people too: the pool would follow at once."""
    minimum, largest = document.worker_pool.min_workers, largest_step(conduct(mode), former.worker_pool.min_workers)
    if not conduct(mode).slows_people or minimum <= largest:
        return []
    message = f"may be raised to {largest} at once in the mode {mode.value}, and further in the next change"
    return [Remark(path="worker_pool.min_workers", message=message)]


def as_json(document: Document) -> dict[str, Any]:
    """The document as a JSON object."""
    return asdict(document)


def from_json(fields: Mapping[str, Any]) -> Document:
    """Build a document from fields that have been validated; what a newer version has added is left out."""
    queue = fields.get("queue", {})
    nested = {
        "quotas": section(QuotaConfig, queue.get("quotas", {})),
        "aging": section(AgingConfig, queue.get("aging", {})),
    }
    return Document(
        worker_pool=section(PoolConfig, fields["worker_pool"]),
        resource_limits=section(LimitsConfig, fields["resource_limits"]),
        agent_weights=section(WeightsConfig, fields["agent_weights"]),
        test_time_compute=section(IterationConfig, fields["test_time_compute"]),
        namespaces={name: section(NamespaceConfig, values) for name, values in fields.get("namespaces", {}).items()},
        queue=section(QueueConfig, {**queue, **nested}),
        recovery=section(RecoveryConfig, fields.get("recovery", {})),
    )


def section(kind: type[Section], values: Mapping[str, Any]) -> Section:
    """The section of these values, without those that it does not have."""
    names = {known_field.name for known_field in dataclass_fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def balance_weights(document: Document, fixed_names: Collection[str] = ()) -> Document:
    """The document with weights that sum to 1.

    Weights named in `fixed_names` stay what they are as long as the others can make up the rest in their proportions:
    a weight that is set to a half is meant to be a half.
    """
    weights: dict[str, float] = asdict(document.agent_weights)
    fixed_sum = sum(weight for name, weight in weights.items() if name in fixed_names)
    other_sum = sum(weight for name, weight in weights.items() if name not in fixed_names)
    # The others cannot make up the rest, so all weights are scaled, also those meant to stay.
    if other_sum <= 0 or fixed_sum > 1:
        fixed_sum, other_sum, fixed_names = 0.0, sum(weights.values()), ()
    room = 1 - fixed_sum
    if other_sum <= 0 or abs(room - other_sum) <= _EPSILON:
        return document
    new = {name: weight if name in fixed_names else weight / other_sum * room for name, weight in weights.items()}
    return replace(document, agent_weights=WeightsConfig(**new))


def weight_name(agent: AgentType) -> str:
    """The agent's name in the document."""
    return f"{agent.value}_agent"


def weights_by_name(weights: Weights) -> dict[str, float]:
    """Weights by the agents' names in the document."""
    return {weight_name(agent): weights[agent] for agent in AgentType}


def effective_weights(document: Document, floor: float = WEIGHT_FLOOR) -> tuple[dict[AgentType, float], list[Remark]]:
    """The shares in force, which sum to 1 with none under the floor, and a remark on each that had to be raised."""
    weights = {agent: getattr(document.agent_weights, weight_name(agent)) for agent in AgentType}
    total = sum(weights.values())
    # The weights need not sum to 1 here, so each is compared with the floor as a share of their sum.
    low = [agent for agent, weight in weights.items() if weight < floor * total]
    if not low and abs(total - 1) <= _EPSILON:
        return weights, []
    why = "no agent may be disabled, so it has"
    return raise_to_floor(weights, floor), [
        Remark(path=f"agent_weights.{weight_name(agent)}", message=f"{why} {floor:g} instead of {weights[agent]:g}")
        for agent in low
    ]


def apply_merge_patch(target: Any, patch: Any) -> Any:
    """The JSON value `target` after the merge patch. Source: RFC 7396, section 2."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = apply_merge_patch(result.get(name), value)
    return result
