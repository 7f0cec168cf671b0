"""Diagnoses: the facts on a task are read in one snapshot, and the rules tell what it waits for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.store import config
from app.diagnosis.rules import causes as rules
from app.diagnosis.rules import start
from app.diagnosis.rules.causes import IN_LINE, Cause, Code
from app.diagnosis.rules.facts import Awaited, Facts, Place, TaskFacts, Workers
from app.diagnosis.rules.start import Line, StartEstimate
from app.diagnosis.store import facts as store
from app.diagnosis.store.facts import Position, Surroundings
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane
from app.kernel.resources import NOTHING
from app.kernel.states import FINISHED, TaskState
from app.llm.rules.conditions import is_awaited, service_state
from app.llm.rules.spending import BudgetOwner
from app.llm.store import budgets, models
from app.queue.errors import TaskNotFound
from app.queue.rules.fair_queueing import EQUAL_WEIGHTS
from app.queue.rules.tasks import LeasePolicy
from app.queue.service import degradation
from app.queue.service.expiry import PROMOTE
from app.scaling.rules import estimates as scaling
from app.scaling.rules.estimates import Estimates
from app.scaling.rules.target import scaling_policy
from app.scaling.service import state as scaling_state
from app.scaling.store import decisions
from app.workers.store import hosts

# An older decision says nothing of those to come.
_FRESH = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The causes for which a task waits at the moment `at`, in the order in which they have to be over.

    `place` is that in line, `start` is the estimate of its start, `behind` the diagnosis of the task that blocks it.
    """

    task_id: UUID
    state: TaskState
    at: datetime
    causes: Sequence[Cause]
    place: Place | None = None
    start: StartEstimate | None = None
    behind: "Diagnosis | None" = None


async def diagnose(
    connection: AsyncConnection,
    task_id: UUID,
    namespace: str | None = None,
    *,
    policy: LeasePolicy,
    is_confined: bool = False,
    follow: bool = True,
) -> Diagnosis:
    """The diagnosis of a task of this namespace, if one is given; who is confined to it learns no names of others.

    Raises TaskNotFound.
    """
    row = await store.task(connection, task_id, namespace)
    if row is None:
        raise TaskNotFound
    task, position = row
    around = await store.surroundings(connection, task, position.lane, PROMOTE)
    facts = Facts(at=around.at, task=task, avoid_seconds=policy.avoid_seconds)
    if task.state not in FINISHED and task.worker_id is None:
        facts = await _waiting_facts(connection, facts, position, around, policy)
    if is_confined:
        facts = _confined(facts)
    all_causes = rules.causes(facts)
    is_in_line = any(cause.code in IN_LINE for cause in all_causes)
    behind = None
    if follow and task.blocker is not None and all_causes[0].code is Code.BLOCKED:
        try:
            behind = await diagnose(
                connection,
                task.blocker,
                namespace,
                policy=policy,
                is_confined=is_confined,
                follow=False,
            )
        except TaskNotFound:
            behind = None
    is_soon = all_causes[0].code in (Code.BUSY, Code.QUEUED, Code.NEXT)
    return Diagnosis(
        task_id=task.id,
        state=task.state,
        at=facts.at,
        causes=all_causes,
        place=facts.place if is_in_line else None,
        start=start.estimate_start(await _line(connection, facts)) if is_soon else None,
        behind=behind,
    )


async def _waiting_facts(
    connection: AsyncConnection, facts: Facts, position: Position, around: Surroundings, policy: LeasePolicy
) -> Facts:
    task = facts.task
    facts = replace(
        facts,
        last=around.last,
        hold=around.hold,
        pause=around.pause,
        loops_seen_at=around.loops_seen_at,
        awaited=await _awaited(connection, around.awaited, facts.at) if around.awaited else None,
        workers=await _read_workers(connection, task, policy.task_timeout_seconds),
    )
    if task.state is not TaskState.PENDING or task.run_at is not None or task.is_held:
        return facts
    waiting = await store.waiting(connection)
    position = replace(position, floor=around.floor)
    place = await store.place(connection, position, waiting)
    return replace(
        facts,
        place=place,
        waiting=waiting,
        step=await degradation.current_step(connection),
        blocking=await store.blocking(connection, rules.MOMENTARY) if facts.workers.idle else None,
    )


async def _read_workers(connection: AsyncConnection, task: TaskFacts, usual_timeout_seconds: float) -> Workers:
    """The workers that can run a task, and, where nobody is idle, why an engine does not start more."""
    workers = await store.workers(connection, task, usual_timeout_seconds)
    if workers.idle:
        return workers
    live = await hosts.live(connection)
    waits = [wait for host in live for wait in host.member_waits]
    request = task.request or NOTHING
    classes = [host.host for host in live if host.serves and host.serves.serves(task.agent_type, request)]
    return replace(workers, member_waits=waits, classes=classes)


async def _awaited(connection: AsyncConnection, name: str, at: datetime) -> Awaited:
    """The model or the budget that a parked task waits for."""
    owner = BudgetOwner.awaited(name)
    if owner is not None:
        is_used_up = bool(await budgets.used_up(connection, [owner]))
        stored = await budgets.read(connection, owner)
        until = stored.budget.ends_at if stored else None
        title = f"the budget of {owner.title}"
        return Awaited(name=title, owner=owner, condition="used_up" if is_used_up else None, until=until)
    model = (await models.read(connection, [name])).get(name)
    if model is None or not is_awaited(model, at):
        return Awaited(name=name, condition=None)
    state, until = service_state(model, at)
    return Awaited(name=name, condition=state.value, until=until)


async def _line(connection: AsyncConnection, facts: Facts) -> Line:
    """The line in which a task stands, by the tasks that completed lately and what the scaling loop has learned."""
    learned = await scaling_state.read(connection)
    estimates = learned.estimates if learned else Estimates(at=facts.at - _FRESH)
    task, workers = facts.task, facts.workers
    run_times = await store.run_times(connection)
    seconds = {
        agent: start.service_seconds(durations, scaling.task_seconds(estimates, agent))
        for agent, durations in run_times.items()
    }
    start_seconds = scaling.start_seconds(estimates)
    target = await decisions.target(connection) or 0
    # Those that the last decision wants and nobody has asked for yet.
    due = max(0, target - estimates.workers) if learned else 0
    starting = [max(0.0, start_seconds - age) for age in workers.start_ages] + [start_seconds] * due
    others = start.rivals(
        Lane(agent_type=task.agent_type, priority=task.priority),
        facts.place,
        served=frozenset[AgentType]().union(*workers.skills),
        waiting=facts.waiting,
        arrivals=scaling.arrival_rates(estimates),
        seconds=seconds,
        weights=learned.weights if learned else EQUAL_WEIGHTS,
    )
    return Line(
        ahead=facts.place.same,
        seconds=seconds[task.agent_type],
        rivals=others,
        idle=workers.idle,
        busy=workers.busy,
        starting=starting,
        grows_after_seconds=await _growth_seconds(connection, target) if facts.at - estimates.at < _FRESH else None,
        variation=run_times[task.agent_type].variation,
    )


async def _growth_seconds(connection: AsyncConnection, target: int) -> float | None:
    """Seconds of waiting from which the scaling rule adds workers: half of its target; None where it adds none."""
    version = await config.last(connection)
    if version is None:
        return None
    policy = scaling_policy(version.document, version.mode)
    return None if policy.is_fixed or target >= policy.max_workers else policy.wait_target_seconds / 2


def _confined(facts: Facts) -> Facts:
    """The facts without words about what belongs to all namespaces."""
    pause = replace(facts.pause, reason="") if facts.pause else None
    workers = replace(facts.workers, not_ready_example=None, lost=None, member_waits=())
    blocking = replace(facts.blocking, application="", pid=None) if facts.blocking else None
    return replace(facts, pause=pause, workers=workers, blocking=blocking)
