"""Bodies of requests and responses about research goals."""

import json
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.goals.rules.budgets import limit_uses
from app.goals.rules.exploration import Arm
from app.goals.rules.goals import Constraints, GoalAction, GoalState
from app.goals.rules.stopping import Quality, StoppingRule, Unit
from app.goals.service.goals import GoalView
from app.goals.service.iterations import IterationReport
from app.goals.store.goals import Goal
from app.goals.store.iterations import Iteration
from app.http.fields import Body, Moment, NewGoalId, Reason, Sentence
from app.kernel.access import Principal, Scope
from app.kernel.agents import AgentType
from app.kernel.namespaces import shown_name, split_name
from app.queue.api.queues import TotalsOut
from app.queue.rules.holds import Hold

_NO_WORDS = "it was stopped; why is for keys with content:read"
_MIN_SECONDS, _MAX_SECONDS = 0.001, 10 * 366 * 86400.0
# Elo and all usual scores lie well within; a larger number is most likely a mistake.
_MAX_SCORE = 1e12
# Strict: no number in quotation marks, and neither 3.0 nor true for an integer.
Number = Annotated[float, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Weight = Annotated[Number, Field(ge=0.01, le=100, description="2 gets twice the share of 1 wherever both wait")]
Seconds = Annotated[Number, Field(ge=_MIN_SECONDS, le=_MAX_SECONDS)]
Score = Annotated[Number, Field(ge=-_MAX_SCORE, le=_MAX_SCORE)]
Count = Annotated[Whole, Field(ge=1, le=1000)]

_EXAMPLE: dict[str, Any] = {
    "id": "kepler",
    "objective": "how does the period of a planet depend on its distance?",
    "constraints": {"time_limit_seconds": 600, "compute_budget_seconds": 1200, "max_iterations": 30},
}


class ConstraintsIn(Body):
    """What bounds a goal. Absent: as the configuration in force has it, or no such limit."""

    time_limit_seconds: Seconds | None = Field(None, description="since it was created, pauses included")
    compute_budget_seconds: Seconds | None = Field(None, description="on workers, as the service measures it")
    money_budget: Number | None = Field(
        None,
        ge=1e-6,
        le=1e9,
        description="against what the reports say, or what calls of language models have cost where that is more",
    )
    token_budget: Annotated[int, Field(ge=1, le=10**15)] | None = Field(
        None, description="of its calls of language models, questions and answers together"
    )
    min_iterations: Count | None = None
    max_iterations: Count | None = None
    improvement_threshold: Number | None = Field(None, ge=0.001, le=0.1)
    improvement_unit: Unit | None = Field(
        None,
        description="`win_probability` for Elo (0.05 are 35 Elo), `relative` for other scores; by default the latter"
        " where the first that is measured is at most 100 either way",
    )
    rule: StoppingRule | None = Field(None, description="how a plateau is recognised; `anchored_best` by default")
    patience: Count | None = Field(None, description="iterations without improvement until it stops; 10 by default")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_iterations and self.max_iterations and self.min_iterations > self.max_iterations:
            raise ValueError("min_iterations must not be above max_iterations")
        return self

    def to_constraints(self) -> Constraints:
        """The same constraints as the operations take them."""
        return Constraints(**{name: getattr(self, name) for name in Constraints.__dataclass_fields__})


class GoalIn(Body):
    """A research goal. The same body again is the same goal, where you choose the `id`."""

    id: NewGoalId | None = Field(None, description="made up when absent; the `goal_id` of its tasks; no `/` in it")
    objective: Annotated[Sentence, Field(min_length=1)]
    constraints: ConstraintsIn = Field(default_factory=ConstraintsIn)
    weight: Weight | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})


class ExtendIn(Body):
    """Those limits that are to change, with their new values."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"constraints": {"time_limit_seconds": 1200, "max_iterations": 60}}]}
    )

    constraints: ConstraintsIn
    reason: Reason | None = None


class IterationIn(Body):
    """An iteration that is done. Report each once, in order; a repetition is answered like the first time."""

    iteration: Whole = Field(ge=1, le=1000, description="from 1 on, without gaps")
    quality: Score | None = Field(
        None, description="of the best hypothesis: Elo, or a score, of which more is better; null: not measured"
    )
    top_quality: Score | None = Field(None, description="mean of the top k; judged instead of `quality` where tested")
    top_matches: Whole | None = Field(None, ge=0, le=2**31 - 1, description="fewest matches among the top k")
    new_best: Arm | None = Field(None, description="where a new best came from: new ideas, or better old ones")
    tasks: Whole | None = Field(None, ge=0, le=2**31 - 1)
    compute_seconds: Number | None = Field(None, ge=0, le=1e12, description="your own count, shown beside the measured")
    money: Number = Field(0.0, ge=0, le=1e9, description="spent on this iteration")

    model_config = ConfigDict(json_schema_extra={"examples": [{"iteration": 1, "quality": 1231.5, "tasks": 14}]})

    def to_report(self) -> IterationReport:
        """The same report as the operation takes it."""
        return IterationReport(
            number=self.iteration,
            quality=Quality(best=self.quality, top=self.top_quality, matches=self.top_matches),
            new_best=self.new_best,
            tasks=self.tasks,
            compute_seconds=self.compute_seconds,
            money=self.money,
        )


class GoalDecisionOut(BaseModel):
    """Go on or stop, and why."""

    decision: GoalAction
    reason: str
    exploration_share: float = Field(description="of the next iteration, for generation; the rest is for evolution")
    exploration_reason: str
    next_compute_seconds: float | None = Field(description="for the next iteration; null while nothing is known")
    improvement: float = Field(description="over the anchor, in the unit of the goal; 0: too little to count")
    improvement_per_compute_second: float | None
    iterations_without_improvement: int
    notices: list[str] = Field(description="limits of which at least 80, 90 or 95 % are used")
    compute_seconds: float = Field(description="of the goal until then, as the service has measured it")
    elapsed_seconds: float
    money_spent: float
    draws: list[tuple[float, float]] = Field(description="rates drawn for (exploration, exploitation)")


class IterationOut(GoalDecisionOut):
    """An iteration with the decision on it."""

    goal_id: str
    iteration: int
    reported_at: Moment
    quality: float | None
    top_quality: float | None
    top_matches: int | None
    tasks: int | None
    iteration_compute_seconds: float = Field(description="of this iteration, as the service has measured it")
    claimed_compute_seconds: float | None = Field(description="the same by the word of the client")


class IterationPage(BaseModel):
    """In order; pass `next` as `after` for what follows, until it is null."""

    items: list[IterationOut]
    next: int | None


class GoalReplayOut(BaseModel):
    """A decision as it was recorded, and as the rule makes it from the recorded inputs."""

    identical: bool
    recorded: dict[str, Any]
    replayed: dict[str, Any]


class ComputeOut(BaseModel):
    """Seconds on workers, measured by leases."""

    spent_seconds: float = Field(description="attempts that have ended, also those that failed")
    running: int = Field(description="attempts that run now")
    running_seconds: float
    committed_seconds: float = Field(description="spent, and what runs at its mean; counts against the budget")
    mean_task_seconds: float
    by_agent: dict[AgentType, float]


class UseOut(BaseModel):
    """How much of a limit is used."""

    limit: Literal["iterations", "time", "compute", "money", "tokens"]
    used: float
    allowed: float
    share: float


class GoalSummary(BaseModel):
    """A goal as it is listed."""

    id: str
    namespace: str
    state: GoalState
    hold: Hold | None = Field(description="why its tasks are not leased; null when they are")
    objective: str | None = Field(description="null for keys without `content:read`, which may create a goal")
    reason: str | None = Field(description="why it is in this state; null for the same keys")
    weight: float
    iterations: int
    constraints: dict[str, Any]
    created_at: Moment
    created_by: str = Field(description="id of the key that was shown")
    ended_at: Moment | None


class GoalOut(GoalSummary):
    """Everything about a goal: its limits in force, what is used of them, and the last decision."""

    at: Moment
    elapsed_seconds: float
    compute: ComputeOut
    tasks: TotalsOut = Field(description="of this goal, live or over; counted anew after a checkpoint was restored")
    usage: list[UseOut]
    notices: list[str]
    judged_by: dict[str, Any] = Field(description="the stopping rule with its numbers, as it is in force")
    last_decision: GoalDecisionOut | None


class GoalPage(BaseModel):
    """By id; pass `next` as `after` for what follows, until it is null."""

    items: list[GoalSummary]
    next: str | None


def goal_summary(goal: Goal) -> GoalSummary:
    """A goal as it is listed."""
    return GoalSummary.model_validate(_goal_fields(goal))


def goal_out(view: GoalView) -> GoalOut:
    """Everything about a goal."""
    total = view.compute.total
    names = ("spent_seconds", "running", "running_seconds", "committed_seconds")
    compute = {name: getattr(total, name) for name in names} | {"mean_task_seconds": total.mean_seconds}
    compute |= {"by_agent": view.compute.by_agent}
    usage = [
        {"limit": use.name, "used": use.amount, "allowed": use.limit, "share": use.share}
        for use in limit_uses(view.policy.limits, view.usage)
    ]
    now = {"at": view.at, "elapsed_seconds": view.usage.elapsed_seconds, "compute": compute, "usage": usage}
    now |= {"tasks": view.compute.tasks}
    rest = {
        "notices": view.notices,
        "judged_by": asdict(view.policy.stopping),
        "last_decision": view.goal.last_decision,
    }
    return GoalOut.model_validate({**_goal_fields(view.goal), **now, **rest})


def iteration_out(iteration: Iteration, caller: Principal) -> IterationOut:
    """An iteration with its decision, as the API shows it to the caller."""
    report, decision = json.loads(iteration.report), json.loads(iteration.decision)
    # Why people have stopped a goal is told in their words.
    if decision["decision"] == GoalAction.STOP and not caller.may(Scope.CONTENT):
        decision["reason"] = _NO_WORDS
    quality = report["quality"]
    fields: dict[str, Any] = {
        "goal_id": shown_name(iteration.goal_id),
        "iteration": iteration.number,
        "reported_at": iteration.reported_at,
    }
    fields |= {"quality": quality["best"], "top_quality": quality["top"], "top_matches": quality["matches"]}
    fields |= {"tasks": iteration.tasks, "claimed_compute_seconds": iteration.claimed_seconds}
    # `compute_seconds` of the decision is that of the goal until then, the one of the report that of the iteration.
    return IterationOut.model_validate({**decision, **fields, "iteration_compute_seconds": report["compute_seconds"]})


def _goal_fields(goal: Goal) -> dict[str, Any]:
    names = ("state", "hold", "objective", "reason", "weight", "iterations", "created_by", "ended_at")
    constraints = {name: value for name, value in asdict(goal.constraints).items() if value is not None}
    namespace, name = split_name(goal.id)
    named = {"id": name, "namespace": namespace, "constraints": constraints, "created_at": goal.started_at}
    return {**{name: getattr(goal, name) for name in names}, **named}
