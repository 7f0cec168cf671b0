"""Each cause with its sentence, and its mends as the command line and the API take them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app import application
from app.diagnosis.rules.causes import Cause, Code, causes
from app.diagnosis.rules.facts import (
    Awaited,
    Blocking,
    Ended,
    Facts,
    GoalHold,
    LostWorker,
    Pause,
    Place,
    TaskFacts,
    Workers,
)
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
from app.kernel.resources import Resources
from app.kernel.states import TaskState
from app.llm.rules.spending import BudgetOwner, BudgetScope
from app.queue.rules.degradation import DegradationStep
from app.queue.rules.holds import Hold
from app.workers.rules.hosts import MemberWait
from tests.support.command_line import parse
from tests.support.routes import routes

_AT = datetime(2026, 12, 1, 12, 0, 0, tzinfo=UTC)
_SOON = _AT + timedelta(seconds=90)
_ID, _OTHER = UUID(int=1, version=4), UUID(int=2, version=4)
_ALL = frozenset(AgentType)


def _facts(task: dict[str, Any] | None = None, **others: Any) -> Facts:
    usual: dict[str, Any] = {
        "id": _ID,
        "state": TaskState.PENDING,
        "agent_type": AgentType.RANKING,
        "goal_id": "@lab-a/-kepler's",
        "priority": Priority.MEDIUM,
        "max_attempts": 3,
        "waiting_since": _AT,
    }
    fields: dict[str, Any] = {
        "at": _AT,
        "loops_seen_at": _AT,
        "workers": Workers(idle=1, idle_other=1, skills=[_ALL]),
    } | others
    return Facts(task=TaskFacts(**(usual | (task or {}))), **fields)


def _hold(reason: Hold, **changes: Any) -> GoalHold:
    usual: dict[str, Any] = {"is_closed": True, "is_metered": False, "since": _AT, "goal_reason": "the money is spent"}
    return GoalHold(reason=reason, **(usual | changes))


_AWAY = Workers(lost=LostWorker(name="h-1", host="h", ended_at=_AT, reason="silent for 15 s"))
_BUSY = Workers(busy=2, skills=[_ALL])
_WAIT = {"run_at": _SOON, "token": 1}
_FAILED = Ended(attempt=1, token=1, outcome="failed", message="KeyError: 'x'\n\x1b[2J")
_KEY = Awaited(name="argo:x", condition="key_expired")
_EVOLUTION = {"agent_type": AgentType.EVOLUTION, "priority": Priority.LOW}
_OTHERS = {Lane(agent_type=AgentType.GENERATION, priority=Priority.MEDIUM): 4}
_DONE = {"state": TaskState.FAILED, "finished_at": _AT, "error": {"code": "poison", "message": "lost 6 workers"}}
CASES: list[tuple[Facts, Code, str]] = [
    (_facts({"state": TaskState.COMPLETED}), Code.COMPLETED, "it is completed"),
    (_facts({"state": TaskState.CANCELLED}), Code.CANCELLED, "it is cancelled"),
    (_facts(_DONE), Code.FAILED, "it failed for good: lost 6 workers"),
    (
        _facts(
            {
                "state": TaskState.EXECUTING,
                "worker_id": _OTHER,
                "worker_name": "h-1",
                "leased_at": _AT,
                "progress": {"percent": 40.0, "message": "half"},
            }
        ),
        Code.RUNNING,
        "it runs on worker h-1 since 12:00:00 UTC, progress 40 % (half)",
    ),
    (
        _facts({"state": TaskState.BLOCKED, "blocker": _OTHER, "open_dependencies": 3}),
        Code.BLOCKED,
        f"it is blocked by task {_OTHER} and 2 other tasks, which must complete before it",
    ),
    (_facts(hold=_hold(Hold.PAUSED)), Code.GOAL_PAUSED, "its goal -kepler's is paused: the money is spent"),
    (_facts(hold=_hold(Hold.BUDGET)), Code.GOAL_BUDGET, "has reached a limit: the money is spent"),
    (
        _facts({"is_held": True}, hold=_hold(Hold.BUDGET, is_closed=False, is_metered=True)),
        Code.GOAL_BUDGET,
        # Of many workers and a small budget also before anything is used.
        "could overrun its compute budget if all workers ran it, so its tasks are let through one by one",
    ),
    (_facts(hold=_hold(Hold.STOPPED)), Code.GOAL_STOPPED, "has stopped: the money is spent"),
    (_facts({"is_held": True}), Code.GOAL_RETURNING, "goes on again"),
    (_facts({"run_at": _SOON}), Code.DELAYED, "it is to run at 12:01:30 UTC, not before"),
    (
        _facts(_WAIT, last=_FAILED),
        Code.RETRY,
        "attempt 1 of 3 failed: KeyError: 'x' \\x1b[2J; the next one is due at 12:01:30 UTC",
    ),
    (_facts(_WAIT, last=replace(_FAILED, outcome="expired", code="timeout")), Code.RETRY, "attempt 1 of 3 failed"),
    (_facts(_WAIT, last=replace(_FAILED, outcome="released")), Code.HANDED_BACK, "a worker has handed it back until"),
    (_facts(_WAIT, last=replace(_FAILED, outcome="expired")), Code.UNACKNOWLEDGED, "rests until 12:01:30 UTC"),
    (
        _facts(_WAIT, awaited=replace(_KEY, until=_SOON)),
        Code.MODEL_UNAVAILABLE,
        "the language model argo:x is unavailable: key expired until 12:01:30 UTC",
    ),
    (
        _facts(_WAIT, awaited=Awaited(name="the budget", condition="x", owner=BudgetOwner(BudgetScope.KEY, "k 1"))),
        Code.BUDGET_USED_UP,
        "the budget is used up",
    ),
    (_facts(_WAIT, awaited=replace(_KEY, condition=None)), Code.WAKING, "argo:x is back"),
    (_facts({"run_at": _AT}), Code.WAKING, "its time has come: it is made ready within a second"),
    (_facts({"run_at": _AT}, loops_seen_at=None), Code.LOOPS_AWAY, "no background loops have run yet"),
    (
        _facts(pause=Pause(reason="new prompts", since=_AT)),
        Code.PAUSED,
        "the queue of ranking is paused since 12:00:00 UTC: new prompts",
    ),
    (_facts(workers=Workers()), Code.UNSERVED, "nobody serves ranking: start a worker whose handlers do"),
    (
        _facts({"request": Resources(gpus=2)}, workers=Workers(offers=[Resources(gpus=1), Resources(cores=64)])),
        Code.UNOFFERED,
        "nobody who serves ranking offers 2 GPUs: the most that one of them offers is 1 GPU",
    ),
    (
        _facts(workers=Workers(short=2, needed_seconds=600.0, remaining_seconds=95.4, starting=1)),
        Code.TOO_LONG,
        "one of them has left is 95 s, and none had enough when it started; 1 worker that may have it starts",
    ),
    (
        _facts(
            {"timeout_seconds": 90.0},
            workers=Workers(short=1, needed_seconds=90.0, remaining_seconds=-3.0, fits_at_start=True),
        ),
        Code.TOO_LONG,
        "the most that one of them has left is 0 s; one that starts anew has enough",
    ),
    (
        _facts(workers=replace(_BUSY, short=1, needed_seconds=600.0, remaining_seconds=5.0)),
        Code.BUSY,
        "all 2 workers that serve ranking and have the time for it are busy; no task",
    ),
    (
        _facts(workers=Workers(idle=1, idle_other=1, skills=[_ALL], short=1)),
        Code.NEXT,
        "1 worker that serves ranking and has the time for it is idle and takes it",
    ),
    (_facts(workers=_AWAY), Code.UNSERVED, "the last, h-1 on h, ended at 12:00:00 UTC (silent for 15 s)"),
    (_facts(workers=Workers(starting=1)), Code.WORKERS_STARTING, "1 worker that may do so starts"),
    (
        _facts(workers=Workers(busy=1, member_waits=[MemberWait(reason="no room: 0/3 nodes", members=2)])),
        Code.BUSY,
        "2 further workers do not come: no room: 0/3 nodes",
    ),
    (_facts(workers=Workers(silent=2)), Code.WORKERS_SILENT, "all 2 workers that served ranking missed"),
    (
        _facts(workers=Workers(not_ready=1, not_ready_example="h-1: no memory")),
        Code.WORKERS_NOT_READY,
        "no worker that serves ranking has passed its health report: h-1: no memory",
    ),
    (_facts(workers=Workers(draining=1)), Code.WORKERS_DRAINING, "drains and takes no more tasks"),
    (
        _facts(_EVOLUTION, step=DegradationStep.DEPTH, waiting=_OTHERS),
        Code.DEGRADED,
        "degradation step 2 is in force: evolution of low priority waits while other work does, and generation waits",
    ),
    (
        _facts(step=DegradationStep.ESSENTIALS, waiting=_OTHERS, workers=_BUSY),
        Code.DEGRADED,
        "degradation step 4 is in force",
    ),
    (
        _facts({"avoid_worker_id": _OTHER}, workers=Workers(idle=1), avoid_seconds=3.0),
        Code.AVOIDED,
        "has just failed it, so another one may take it first, until 12:00:03 UTC",
    ),
    (
        _facts({"waiting_since": _AT - timedelta(seconds=9)}, blocking=Blocking(pid=7, application="psql", since=_AT)),
        Code.LOCKED,
        "session 7 (psql) of the database holds locks on tasks since 12:00:00 UTC",
    ),
    (
        _facts(workers=_BUSY, place=Place(higher=1, same=2)),
        Code.BUSY,
        "all 2 workers that serve ranking are busy; 3 tasks of its type are before it, 1 of them of higher priority",
    ),
    (_facts(place=Place(same=5_000, is_exact=False)), Code.QUEUED, "is idle, and about 5,000 tasks of its type"),
    (_facts(), Code.NEXT, "1 worker that serves ranking is idle and takes it in a moment"),
    (
        _facts(at=_AT + timedelta(minutes=7)),
        Code.NEXT,
        "as it has waited for 7 min, look whether anybody idles on: a worker",
    ),
]


@pytest.mark.parametrize(("facts", "code", "words"), CASES, ids=[f"{case[1]}-{n}" for n, case in enumerate(CASES)])
def test_the_cause_in_a_sentence(facts: Facts, code: Code, words: str) -> None:
    first, *then = causes(facts)
    assert (first.code, words in first.text) == (code, True), first
    assert not then


def test_there_is_a_case_for_every_code() -> None:
    assert {code for _, code, _ in CASES} == set(Code)


def test_what_comes_after_the_cause_is_told_too() -> None:
    facts = _facts(
        {"run_at": _SOON}, hold=_hold(Hold.PAUSED), pause=Pause(reason="", since=_AT), workers=Workers(draining=1)
    )
    codes = [Code.GOAL_PAUSED, Code.DELAYED, Code.PAUSED, Code.WORKERS_DRAINING]
    assert [cause.code for cause in causes(facts)] == codes
    # Busy workers are no obstacle of a task that could not run anyway.
    assert [cause.code for cause in causes(replace(facts, workers=_BUSY))] == codes[:-1]


def test_nobody_gives_way_to_work_that_its_workers_cannot_run() -> None:
    able = frozenset({AgentType.EVOLUTION})
    facts = _facts(
        _EVOLUTION, step=DegradationStep.DEPTH, waiting=_OTHERS, workers=Workers(idle=1, skills=[able, _ALL])
    )
    assert causes(replace(facts, workers=replace(facts.workers, idle_other=1)))[0].code is Code.NEXT


def _mends() -> list[tuple[Cause, Any]]:
    return [(cause, mend) for facts, _, _ in CASES for cause in causes(facts) for mend in cause.mends]


def test_every_command_is_one_that_the_command_line_takes() -> None:
    shown = [mend.command for _, mend in _mends() if mend.command]
    assert len(shown) > 20
    for command in shown:
        parse(command)


def test_a_goal_of_a_namespace_is_named_with_it() -> None:
    mend = causes(_facts(hold=_hold(Hold.PAUSED)))[0].mends[0]
    assert mend.command == "convener --namespace lab-a goals resume -- '-kepler'\"'\"'s'"
    assert mend.call == "POST /goals/-kepler%27s/resume?namespace=lab-a"


def test_how_a_task_would_fit_goes_by_where_its_timeout_comes_from_and_whether_workers_ever_had_enough() -> None:
    short = Workers(short=1, needed_seconds=600.0, remaining_seconds=95.0)
    mends = causes(_facts(workers=short))[0].mends
    assert mends[0].command == "convener config set worker_pool.worker_timeout_seconds=SECONDS"
    assert "CONVENER_BLOCK_WALLTIME_MINUTES=11 or more, and" in mends[1].text
    mends = causes(_facts({"timeout_seconds": 600.0}, workers=replace(short, fits_at_start=True)))[0].mends
    assert [mend.call for mend in mends] == ["POST /tasks", "POST /workers/start"]


def test_every_call_is_one_of_the_api() -> None:
    patterns = [(route.methods, route.path_regex) for route in routes(application.build())]
    for _, mend in _mends():
        if mend.call:
            method, path = mend.call.partition("?")[0].split(" ")
            assert any(method in (methods or ()) and regex.match(path) for methods, regex in patterns), mend
