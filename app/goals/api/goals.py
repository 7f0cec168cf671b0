"""Routes of research goals: their life, their iterations, and their weights."""

import json
from typing import Annotated
from uuid import uuid4

from fastapi import Depends, Path, Query, Response
from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import IterationConfig
from app.admin.service import config
from app.admin.service.config import CurrentConfig
from app.goals import errors
from app.goals.api.schemas import (
    ExtendIn,
    GoalIn,
    GoalOut,
    GoalPage,
    GoalReplayOut,
    IterationIn,
    IterationOut,
    IterationPage,
    Weight,
    goal_out,
    goal_summary,
    iteration_out,
)
from app.goals.rules.goals import GoalState
from app.goals.service import goals as service
from app.goals.service import iterations
from app.goals.store import goals as store
from app.goals.store import iterations as iteration_store
from app.goals.store.goals import GoalRequest
from app.http import computing
from app.http.fields import Body, Limit, ReasonIn, Word
from app.http.guard import Caller, requires
from app.http.namespaces import Into, Within
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import Services, ServicesDep
from app.http.transactions import Reading, Writing
from app.kernel.access import Scope
from app.kernel.namespaces import DEFAULT, shown_name, stored_name
from app.queue.errors import GoalStopped

router = Router(prefix="/goals", tags=["goals"])
_CONTENT = [requires(Scope.READ, Scope.CONTENT)]
# The answer shows all of what it changed.
_CHANGE = [requires(Scope.SUBMIT, Scope.CONTENT)]


async def _stored_goal(goal_id: Annotated[Word, Path()], into: Into) -> str:
    return stored_name(into, goal_id) or goal_id


# The name under which the goal of the path is stored.
StoredGoal = Annotated[str, Depends(_stored_goal)]
Number = Annotated[int, Path(ge=1, le=1000)]
_FOUND = responses_for(errors.GoalNotFound)
_LIVE = responses_for(errors.GoalNotFound, GoalStopped)


class GoalWeightIn(Body):
    """A goal's share of each lane in which its tasks wait, against other goals; 1 where nobody has said otherwise."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"weight": 2}]})

    weight: Weight


class GoalWeightOut(BaseModel):
    """A goal and its weight."""

    goal_id: str
    weight: float


@router.post(
    "",
    operation_id="create_goal",
    summary="Create a research goal",
    status_code=201,
    dependencies=[requires(Scope.SUBMIT)],
    responses={200: {"model": GoalOut, "description": "it exists already"}, **responses_for(errors.GoalConflict)},
)
async def create(
    body: GoalIn, services: ServicesDep, connection: Writing, caller: Caller, namespace: Into, response: Response
) -> GoalOut:
    """Then submit its tasks with its `goal_id`, and report each iteration. Limits hold whether you report or not.

    Safe to repeat with a chosen `id`: the same body is answered with 200, another one refused. Keys without
    `content:read` are not shown the words in it.
    """
    request = GoalRequest(
        id=str(stored_name(namespace, body.id or str(uuid4()))),
        objective=body.objective,
        constraints=body.constraints.to_constraints(),
        weight=body.weight,
        created_by=caller.key_id,
    )
    goal, is_new = await service.create(connection, request)
    response.status_code = 201 if is_new else 200
    shown_goal = await _shown(connection, goal.id, services)
    if caller.may(Scope.CONTENT):
        return shown_goal
    return shown_goal.model_copy(update={"objective": None, "reason": None, "last_decision": None})


@router.get("", operation_id="list_goals", summary="List research goals", dependencies=_CONTENT)
async def page(
    connection: Reading,
    namespace: Within,
    state: Annotated[
        list[GoalState] | None, Query(max_length=len(GoalState), description="only in these states")
    ] = None,
    after: Annotated[str, Query(max_length=200, description="`next` of the page before")] = "",
    limit: Limit = 100,
) -> GoalPage:
    """Those that were created. Goals that are merely named by tasks, or weighed, are not listed.

    One that has stopped is kept as long as the history of tasks, and no shorter than any of its own.
    """
    after_id = str(stored_name(namespace or DEFAULT, after))
    goals = await store.page(connection, states=state or (), namespace=namespace, after_id=after_id, limit=limit)
    # Over all namespaces the place in the list is that of the stored name.
    following = goals.next(lambda goal: goal.id)
    following = following if namespace is None else shown_name(following)
    return GoalPage(items=[goal_summary(goal) for goal in goals.items], next=following)


@router.get(
    "/{goal_id}", operation_id="get_goal", summary="Read a research goal", dependencies=_CONTENT, responses=_FOUND
)
async def read(goal_id: StoredGoal, services: ServicesDep, connection: Reading) -> GoalOut:
    """Its limits, what is used of them by now, and the last decision. Compute is derived from leases."""
    return await _shown(connection, goal_id, services)


@router.post(
    "/{goal_id}/pause",
    operation_id="pause_goal",
    summary="Pause a research goal",
    dependencies=_CHANGE,
    responses=_LIVE,
)
async def pause(
    goal_id: StoredGoal, body: ReasonIn, services: ServicesDep, connection: Writing, caller: Caller
) -> GoalOut:
    """None of its tasks is leased any more; those that run go on, and submitting goes on. Its time goes on as well."""
    await service.pause(connection, goal_id, body.reason, caller.key_id)
    return await _shown(connection, goal_id, services)


@router.post(
    "/{goal_id}/resume",
    operation_id="resume_goal",
    summary="Resume a research goal",
    dependencies=_CHANGE,
    responses=_LIVE,
)
async def resume(
    goal_id: StoredGoal, body: ReasonIn, services: ServicesDep, connection: Writing, caller: Caller
) -> GoalOut:
    """Its tasks are leased again, in the order in which they waited."""
    await service.resume(connection, goal_id, body.reason, caller.key_id)
    return await _shown(connection, goal_id, services)


@router.post(
    "/{goal_id}/stop",
    operation_id="stop_goal",
    summary="Stop a research goal",
    dependencies=_CHANGE,
    responses=_FOUND,
)
async def stop(
    goal_id: StoredGoal, body: ReasonIn, services: ServicesDep, connection: Writing, caller: Caller
) -> GoalOut:
    """For good: its tasks are cancelled, workers that run one hear of it with their next call. Safe to repeat."""
    await service.stop(connection, goal_id, body.reason, caller.key_id)
    return await _shown(connection, goal_id, services)


@router.post(
    "/{goal_id}/extend",
    operation_id="extend_goal",
    summary="Change the limits of a research goal",
    dependencies=_CHANGE,
    responses=responses_for(errors.GoalNotFound, GoalStopped, errors.LimitsRefused),
)
async def extend(
    goal_id: StoredGoal, body: ExtendIn, services: ServicesDep, connection: Writing, caller: Caller
) -> GoalOut:
    """Those that are named; tasks that waited for a budget are leased again.

    A goal that has stopped stays so. Time, compute and iterations are not lowered to what is used of them already.
    """
    await service.extend(connection, goal_id, body.constraints.to_constraints(), caller.key_id, body.reason)
    return await _shown(connection, goal_id, services)


@router.post(
    "/{goal_id}/iterations",
    operation_id="report_iteration",
    summary="Report an iteration",
    status_code=201,
    dependencies=[requires(Scope.SUBMIT)],
    responses={
        200: {"model": IterationOut, "description": "it was reported before"},
        **responses_for(errors.GoalNotFound, GoalStopped, errors.IterationConflict),
    },
)
async def report(
    goal_id: StoredGoal,
    body: IterationIn,
    services: ServicesDep,
    connection: Writing,
    caller: Caller,
    response: Response,
) -> IterationOut:
    """The answer says whether to go on, and with what. When it says stop, the goal has stopped.

    Safe to repeat: the same numbers get the same answer, others are refused.
    """
    config = await _iteration_config(connection, services)
    result = await iterations.record(connection, goal_id, body.to_report(), config, by=caller.key_id)
    response.status_code = 201 if result.is_new else 200
    return iteration_out(result.iteration, caller)


@router.get(
    "/{goal_id}/iterations",
    operation_id="list_iterations",
    summary="List the iterations of a research goal",
    dependencies=[requires(Scope.READ)],
    responses=_FOUND,
)
async def iteration_page(
    goal_id: StoredGoal,
    connection: Reading,
    caller: Caller,
    after: Annotated[int, Query(ge=0, le=1000, description="`next` of the page before")] = 0,
    limit: Limit = 100,
) -> IterationPage:
    """What each has reached, what it cost, and what was decided."""
    await service.read(connection, goal_id)
    rows = await iteration_store.page(connection, goal_id, after_number=after, limit=limit)
    return IterationPage(
        items=[iteration_out(row, caller) for row in rows.items], next=rows.next(lambda row: row.number)
    )


@router.get(
    "/{goal_id}/iterations/{number}/replay",
    operation_id="replay_iteration",
    summary="Decide again on an iteration",
    dependencies=[requires(Scope.READ, Scope.CONTENT)],
    responses=responses_for(errors.GoalNotFound, errors.IterationNotFound),
)
async def replay(goal_id: StoredGoal, number: Number, services: ServicesDep) -> GoalReplayOut:
    """From the inputs that were recorded with it; the answer must be the same to the byte."""
    async with services.database.reading() as connection:
        history = await iterations.read_history(connection, goal_id, number)
    # In a thread, since it takes a while after a thousand iterations; and with no connection held meanwhile.
    outcome = await computing.run(iterations.replay, goal_id, history)
    return GoalReplayOut(
        identical=outcome.recorded_json == outcome.replayed_json,
        recorded=json.loads(outcome.recorded_json),
        replayed=json.loads(outcome.replayed_json),
    )


@router.put(
    "/{goal_id}/weight",
    operation_id="set_goal_weight",
    summary="Give a goal its weight",
    dependencies=[requires(Scope.SUBMIT)],
)
async def weigh(goal_id: StoredGoal, weight: GoalWeightIn, connection: Writing, caller: Caller) -> GoalWeightOut:
    """For the tasks that are submitted from now on; within a second in all processes. The goal may have none yet."""
    await service.set_weight(connection, goal_id, weight.weight, caller.key_id)
    return GoalWeightOut(goal_id=str(shown_name(goal_id)), weight=weight.weight)


@router.get(
    "/{goal_id}/weight",
    operation_id="get_goal_weight",
    summary="Read the weight of a goal",
    dependencies=[requires(Scope.READ)],
)
async def read_weight(goal_id: StoredGoal, connection: Reading) -> GoalWeightOut:
    """1 for a goal that nobody has weighed."""
    return GoalWeightOut(goal_id=str(shown_name(goal_id)), weight=await store.read_weight(connection, goal_id))


async def _shown(connection: AsyncConnection, goal_id: str, services: Services) -> GoalOut:
    return goal_out(await service.view(connection, goal_id, await _iteration_config(connection, services)))


async def _iteration_config(connection: AsyncConnection, services: Services) -> IterationConfig:
    # Through the connection of the caller: if every connection were held by a caller that waits for a second one, all
    # would wait for ever.
    return (await config.current(connection, services[CurrentConfig].initial)).document.test_time_compute
