"""The causes for which a task is where it is: the first that holds is the one to act on, the others come after it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from app.diagnosis.rules import mends
from app.diagnosis.rules.facts import Facts, GoalHold, Place, Workers
from app.diagnosis.rules.mends import Mend
from app.kernel.lanes import Lane
from app.kernel.resources import Resources, in_words
from app.kernel.states import TaskState
from app.kernel.text import NO_REASON, moment_text, one_line, plural
from app.queue.rules.degradation import MEANINGS, DegradationStep, deferred_lanes, suspended_agents
from app.queue.rules.holds import Hold

# The duties that end a delay have a turn every 15 s, also without anything to do.
_LOOPS_AWAY = timedelta(seconds=30)
# No task waits longer beside workers that are idle, nor does any transaction of ours hold locks for longer.
MOMENTARY = timedelta(seconds=5)
# Between two tasks a worker idles for a moment; beside one that idles on nothing waits for so long.
_PUZZLING = timedelta(minutes=1)


class Code(StrEnum):
    """What keeps a task from running, or what has become of it."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RUNNING = "running"
    BLOCKED = "blocked"
    GOAL_PAUSED = "goal_paused"
    GOAL_BUDGET = "goal_budget"
    GOAL_STOPPED = "goal_stopped"
    GOAL_RETURNING = "goal_returning"
    DELAYED = "delayed"
    RETRY = "retry"
    HANDED_BACK = "handed_back"
    UNACKNOWLEDGED = "unacknowledged"
    MODEL_UNAVAILABLE = "model_unavailable"
    BUDGET_USED_UP = "budget_used_up"
    WAKING = "waking"
    LOOPS_AWAY = "loops_away"
    PAUSED = "paused"
    UNSERVED = "unserved"
    UNOFFERED = "unoffered"
    TOO_LONG = "too_long"
    WORKERS_STARTING = "workers_starting"
    WORKERS_SILENT = "workers_silent"
    WORKERS_NOT_READY = "workers_not_ready"
    WORKERS_DRAINING = "workers_draining"
    DEGRADED = "degraded"
    AVOIDED = "avoided"
    LOCKED = "locked"
    BUSY = "busy"
    QUEUED = "queued"
    NEXT = "next"


# With these the task is in line, and its place and its start can be told.
IN_LINE = frozenset({Code.BUSY, Code.QUEUED, Code.NEXT, Code.DEGRADED, Code.AVOIDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One cause in a sentence, since when it holds and until when, where these are known, and what would change it."""

    code: Code
    text: str
    since: datetime | None = None
    until: datetime | None = None
    mends: Sequence[Mend] = ()


def causes(facts: Facts) -> list[Cause]:
    """Every cause that holds, in the order in which they have to be over; there is always one."""
    state = facts.task.state
    if state in (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED):
        return [_finished(facts)]
    if state in (TaskState.ASSIGNED, TaskState.EXECUTING):
        return [_running(facts)]
    return list(_waiting(facts))


def _waiting(facts: Facts) -> Iterator[Cause]:
    in_the_way = [
        cause for cause in (_blocked(facts), _held(facts), _delayed(facts), _paused(facts)) if cause is not None
    ]
    yield from in_the_way
    service = _workers(facts)
    if not in_the_way or service.code not in IN_LINE | {Code.LOCKED}:
        yield service


def _finished(facts: Facts) -> Cause:
    task, code = facts.task, Code(facts.task.state)
    message = one_line((task.error or {}).get("message") or (task.error or {}).get("code"))
    if code is not Code.FAILED:
        text = f"it is {task.state}" + (f": {message}" if message and code is not Code.COMPLETED else "")
        return Cause(code=code, text=text, since=task.finished_at)
    # Without a failure it was given up for another reason, which the message tells.
    attempt = f" at attempt {task.failures} of {task.max_attempts}" if task.failures else ""
    text = f"it failed for good{attempt}" + (f": {message}" if message else "")
    return Cause(code=code, text=text, since=task.finished_at, mends=(mends.logs(task.id), mends.requeue(task.id)))


def _running(facts: Facts) -> Cause:
    task = facts.task
    verb = "runs on" if task.state is TaskState.EXECUTING else "is leased to, and not begun yet by,"
    text = f"it {verb} worker {task.worker_name or task.worker_id} since {moment_text(task.leased_at, facts.at)}"
    if task.progress:
        text += f", progress {float(task.progress.get('percent') or 0):.0f} %"
        if message := one_line(task.progress.get("message")):
            text += f" ({message})"
    return Cause(code=Code.RUNNING, text=text, since=task.leased_at)


def _blocked(facts: Facts) -> Cause | None:
    task = facts.task
    if task.state is not TaskState.BLOCKED:
        return None
    others = f" and {plural(task.open_dependencies - 1, 'other task')}" if task.open_dependencies > 1 else ""
    ways = (mends.ask_why(task.blocker),) if task.blocker else ()
    text = f"it is blocked by task {task.blocker}{others}, which must complete before it"
    return Cause(code=Code.BLOCKED, text=text, mends=ways)


_HOLD_CODES = {Hold.PAUSED: Code.GOAL_PAUSED, Hold.BUDGET: Code.GOAL_BUDGET, Hold.STOPPED: Code.GOAL_STOPPED}


def _held(facts: Facts) -> Cause | None:
    hold, task = facts.hold, facts.task
    goal = mends.shown_goal(task.goal_id)
    if hold is not None and (hold.is_closed or (hold.is_metered and task.is_held)):
        code = _HOLD_CODES[hold.reason]
        text = f"its goal {goal} {_hold_text(hold)}"
        return Cause(code=code, text=text, since=hold.since, mends=mends.of_hold(hold.reason, task.goal_id))
    if not task.is_held:
        return None
    text = f"its goal {goal} goes on again, and its tasks are being brought back, some thousands a second"
    return Cause(code=Code.GOAL_RETURNING, text=text, mends=_if_loops_away(facts))


def _hold_text(hold: GoalHold) -> str:
    why = f": {one_line(hold.goal_reason)}" if hold.goal_reason else ""
    if hold.reason is Hold.PAUSED:
        return f"is paused{why or f': {NO_REASON}'}"
    if hold.reason is Hold.STOPPED:
        return f"has stopped{why}; its tasks are being cancelled"
    if not hold.is_closed:
        return "could overrun its compute budget if all workers ran it, so its tasks are let through one by one"
    return f"has reached a limit{why}"


def _delayed(facts: Facts) -> Cause | None:
    task, last = facts.task, facts.last
    if task.run_at is None:
        return None
    if task.run_at <= facts.at:
        return None if task.is_held or task.state is TaskState.BLOCKED else _due(facts)
    until = moment_text(task.run_at, facts.at)
    if facts.awaited is not None:
        return _parked(facts)
    if last is None:
        return Cause(code=Code.DELAYED, text=f"it is to run at {until}, not before", until=task.run_at)
    # One that ran into its hard deadline has failed, though its outcome is that of a lease that ended.
    if last.outcome == "failed" or last.code == "timeout":
        why = one_line(last.message) or "it gave no reason"
        text = f"attempt {last.attempt} of {task.max_attempts} failed: {why}; the next one is due at {until}"
        return Cause(code=Code.RETRY, text=text, until=task.run_at, mends=(mends.logs(task.id),))
    if last.outcome == "released":
        return Cause(code=Code.HANDED_BACK, text=f"a worker has handed it back until {until}", until=task.run_at)
    text = f"its last lease ended before a worker had begun it ({last.outcome}); it rests until {until}"
    return Cause(code=Code.UNACKNOWLEDGED, text=text, until=task.run_at)


def _due(facts: Facts) -> Cause:
    if ways := _if_loops_away(facts):
        length = f"since {moment_text(facts.loops_seen_at, facts.at)}" if facts.loops_seen_at else "yet"
        text = f"its time has come, but no background loops have run {length}, which make delayed tasks ready"
        return Cause(code=Code.LOOPS_AWAY, text=text, since=facts.loops_seen_at, mends=ways)
    return Cause(code=Code.WAKING, text="its time has come: it is made ready within a second", until=facts.task.run_at)


def _if_loops_away(facts: Facts) -> Sequence[Mend]:
    is_away = facts.loops_seen_at is None or facts.at - facts.loops_seen_at > _LOOPS_AWAY
    return (mends.START_LOOPS,) if is_away else ()


def _parked(facts: Facts) -> Cause | None:
    awaited, run_at = facts.awaited, facts.task.run_at
    assert awaited is not None
    latest = f"; it is tried again at {moment_text(run_at, facts.at)} at the latest"
    if awaited.condition is None:
        if ways := _if_loops_away(facts):
            text = f"{awaited.name} is back, but no background loops run, which wake the tasks that wait for it{latest}"
            return Cause(code=Code.LOOPS_AWAY, text=text, since=facts.loops_seen_at, until=run_at, mends=ways)
        text = f"{awaited.name} is back: the tasks that wait for it are being woken"
        return Cause(code=Code.WAKING, text=text, until=run_at)
    ends = f" until {moment_text(awaited.until, facts.at)}" if awaited.until else ""
    if awaited.owner is not None:
        text = f"{awaited.name} is used up{ends}{latest}"
        return Cause(code=Code.BUDGET_USED_UP, text=text, until=awaited.until, mends=mends.of_budget(awaited.owner))
    text = f"the language model {awaited.name} is unavailable: {awaited.condition.replace('_', ' ')}{ends}{latest}"
    ways = mends.of_model(awaited.name, awaited.condition)
    return Cause(code=Code.MODEL_UNAVAILABLE, text=text, until=awaited.until, mends=ways)


def _paused(facts: Facts) -> Cause | None:
    if facts.pause is None:
        return None
    agent, why = facts.task.agent_type, one_line(facts.pause.reason) or NO_REASON
    text = f"the queue of {agent} is paused since {moment_text(facts.pause.since, facts.at)}: {why}"
    return Cause(code=Code.PAUSED, text=text, since=facts.pause.since, mends=(mends.resume_queue(agent),))


def _workers(facts: Facts) -> Cause:
    """The cause on the side of the workers."""
    workers = facts.workers
    if not workers.idle + workers.busy:
        return _class_without_workers(facts) or _nobody(facts)
    if workers.idle and (cause := _passed_over(facts)) is not None:
        return cause
    if (cause := _degraded(facts)) is not None:
        return cause
    line = _line_text(facts.place)
    if not workers.idle:
        who = f"all {plural(workers.busy, 'worker')} {_that_serve(facts, 2)} are busy"
        who = who if workers.busy > 1 else f"the one worker {_that_serve(facts, 1)} is busy"
        text = f"{who}; {line}{_missing(workers)}"
        ways: Sequence[Mend] = (*mends.raise_priority(facts.task.id, facts.task.priority), mends.START_WORKER)
        return Cause(code=Code.BUSY, text=text, since=facts.task.waiting_since, mends=ways)
    idle = f"{plural(workers.idle, 'worker')} {_that_serve(facts, workers.idle)} "
    idle += "is idle" if workers.idle == 1 else "are idle"
    if facts.place.ahead >= workers.idle:
        ways = mends.raise_priority(facts.task.id, facts.task.priority)
        return Cause(code=Code.QUEUED, text=f"{idle}, and {line}", since=facts.task.waiting_since, mends=ways)
    return _next(facts, idle, line)


def _next(facts: Facts, idle: str, line: str) -> Cause:
    waited = facts.at - (facts.task.waiting_since or facts.at)
    text = f"{idle} and {'takes' if facts.workers.idle == 1 else 'take'} it in a moment; {line}"
    if waited <= _PUZZLING:
        return Cause(code=Code.NEXT, text=text, since=facts.task.waiting_since)
    text += f"; as it has waited for {waited // timedelta(minutes=1)} min, look whether anybody idles on: "
    text += "a worker that does not ask for work hangs, or does not reach the API"
    return Cause(code=Code.NEXT, text=text, since=facts.task.waiting_since, mends=(mends.LIST_WORKERS,))


def _missing(workers: Workers) -> str:
    """Why further workers do not come, where an engine that starts them says so."""
    return "".join(
        f"; {plural(wait.members, 'further worker does', 'further workers do')} not come: {one_line(wait.reason)}"
        for wait in workers.member_waits
    )


def _class_without_workers(facts: Facts) -> Cause | None:
    """The cause where the loops keep a class of workers for such tasks, of which none is there yet."""
    workers = facts.workers
    if not workers.classes or workers.silent or workers.not_ready or workers.short:
        return None
    names = " or ".join(workers.classes)
    text = f"no worker of {names} is there yet, which serves {_work(facts)}: the loops start some"
    return Cause(code=Code.WORKERS_STARTING, text=f"{text}{_missing(workers)}")


def _nobody(facts: Facts) -> Cause:
    workers, agent = facts.workers, _work(facts)
    if facts.task.request is not None and workers.offers:
        return _unoffered(facts, facts.task.request)
    if workers.short:
        return _too_long(facts)
    if workers.starting:
        text = f"no worker serves {agent} yet; {plural(workers.starting, 'worker')} that may do so start"
        text = f"{text}{'s' if workers.starting == 1 else ''}{_missing(workers)}"
        return Cause(code=Code.WORKERS_STARTING, text=text)
    if workers.silent:
        who = "the worker" if workers.silent == 1 else f"all {workers.silent:,} workers"
        text = f"{who} that served {agent} missed {'its' if workers.silent == 1 else 'their'} heartbeats"
        ways = (mends.LIST_WORKERS,)
        return Cause(code=Code.WORKERS_SILENT, text=f"{text}: the host or the network may be away", mends=ways)
    if workers.not_ready:
        example = f": {one_line(workers.not_ready_example)}" if workers.not_ready_example else ""
        text = f"no worker that serves {agent} has passed its health report{example}"
        return Cause(code=Code.WORKERS_NOT_READY, text=text, mends=(mends.LIST_WORKERS,))
    if workers.draining:
        text = f"every worker that serves {agent} drains and takes no more tasks ({workers.draining:,})"
        return Cause(code=Code.WORKERS_DRAINING, text=text, mends=mends.serve(facts.task.agent_type))
    text = f"nobody serves {agent}: start a worker whose handlers do"
    if (lost := workers.lost) is not None:
        where = f" on {lost.host}" if lost.host else ""
        text += (
            f"; the last, {lost.name}{where}, ended at {moment_text(lost.ended_at, facts.at)} ({one_line(lost.reason)})"
        )
    text += _missing(workers)
    since = lost.ended_at if lost else None
    revival = mends.revive_host(lost.host) if lost and lost.host and lost.is_silent else ()
    return Cause(code=Code.UNSERVED, text=text, since=since, mends=(*revival, *mends.serve(facts.task.agent_type)))


def _work(facts: Facts) -> str:
    """The agent type, with what the task asks for."""
    agent, request = facts.task.agent_type.value, facts.task.request
    return agent if request is None else f"{agent} with {in_words(request.amounts())}"


def _that_serve(facts: Facts, count: int) -> str:
    """Which workers can run it; those that lack the time are told from them, where there are such."""
    has_time = f" and {'has' if count == 1 else 'have'} the time for it" if facts.workers.short else ""
    return f"that {'serves' if count == 1 else 'serve'} {_work(facts)}{has_time}"


def _too_long(facts: Facts) -> Cause:
    """The cause where an attempt may take longer than any live worker that could run it has left."""
    workers, task = facts.workers, facts.task
    needed, remaining = workers.needed_seconds or 0.0, max(0.0, workers.remaining_seconds or 0.0)
    text = f"no worker that serves {_work(facts)} has the time for it: an attempt may take {needed:,.0f} s, "
    text += f"and the most that one of them has left is {remaining:,.0f} s"
    text += "; one that starts anew has enough" if workers.fits_at_start else ", and none had enough when it started"
    if workers.starting:
        text += f"; {plural(workers.starting, 'worker')} that may have it start{'s' if workers.starting == 1 else ''}"
    text += _missing(workers)
    ways = mends.fit(needed, has_own_timeout=task.timeout_seconds is not None, fits_at_start=workers.fits_at_start)
    return Cause(code=Code.TOO_LONG, text=text, since=task.waiting_since, mends=ways)


def _unoffered(facts: Facts, request: Resources) -> Cause:
    """The cause where no live worker that runs the agent type offers what the task asks for."""
    offers, amounts = facts.workers.offers, request.amounts()
    largest_offers = {name: max(offer.amount(name) for offer in offers) for name in amounts}
    uncovered = {name: amount for name, amount in amounts.items() if largest_offers[name] < amount}
    if uncovered:
        text = f"nobody who serves {facts.task.agent_type} offers {in_words(uncovered)}: "
        text += "the most that one of them offers is " + in_words({name: largest_offers[name] for name in uncovered})
    else:
        text = f"nobody who serves {facts.task.agent_type} offers all of {in_words(amounts)} at once"
    if facts.workers.starting:
        text += f"; {plural(facts.workers.starting, 'worker')} that may do so start"
        text += "s" if facts.workers.starting == 1 else ""
    return Cause(code=Code.UNOFFERED, text=text, since=facts.task.waiting_since, mends=mends.offer(request))


def _passed_over(facts: Facts) -> Cause | None:
    """The cause for which idle workers do not take the task, though they could."""
    task, workers = facts.task, facts.workers
    if task.waiting_since is None:
        return None
    until = task.waiting_since + timedelta(seconds=facts.avoid_seconds)
    if not workers.idle_other and not facts.place.ahead and facts.at <= until:
        text = (
            f"the only idle worker that serves {task.agent_type} has just failed it, so another one may take it "
            f"first, until {moment_text(until, facts.at)}"
        )
        return Cause(code=Code.AVOIDED, text=text, since=task.waiting_since, until=until)
    if (blocking := facts.blocking) is None or facts.at - task.waiting_since < MOMENTARY:
        return None
    session = "a session" if blocking.pid is None else f"session {blocking.pid} ({one_line(blocking.application)})"
    text = (
        f"idle workers pass over it, and {session} of the database holds locks on tasks since "
        f"{moment_text(blocking.since, facts.at)}"
    )
    ways = () if blocking.pid is None else (mends.end_session(blocking.pid, awaits_standby=blocking.awaits_standby),)
    return Cause(code=Code.LOCKED, text=text, since=blocking.since, mends=ways)


def _degraded(facts: Facts) -> Cause | None:
    """The cause where a step of degradation lets other work go first that all of the workers can run."""
    task, step = facts.task, facts.step
    lane = Lane(agent_type=task.agent_type, priority=task.priority)
    deferred, suspended = deferred_lanes(step), suspended_agents(step)
    if lane in deferred:
        others = [other for other, count in facts.waiting.items() if count > 0 and other not in deferred]
    elif task.agent_type in suspended and not facts.workers.idle:
        others = [other for other in facts.waiting if facts.waiting[other] > 0 and other.agent_type not in suspended]
        others = [other for other in others if other.priority >= task.priority]
    else:
        return None
    types = {other.agent_type for other in others}
    if not facts.workers.skills or not all(types & skills for skills in facts.workers.skills):
        return None
    if sum(facts.waiting[other] for other in others) < facts.workers.idle:
        return None
    meaning = MEANINGS[DegradationStep.LOW_RANKED_EVOLUTION if lane in deferred else step]
    others_wait = f"{', '.join(sorted(types))} {'waits' if len(types) == 1 else 'wait'}"
    text = f"degradation step {step.value} is in force: {meaning}, and {others_wait}"
    return Cause(code=Code.DEGRADED, text=text, since=task.waiting_since, mends=mends.DEGRADATION)


def _line_text(place: Place) -> str:
    if not place.ahead:
        return "no task of its type is before it"
    about = "" if place.is_exact else "about "
    verb = "is" if place.ahead == 1 else "are"
    higher = f", {place.higher:,} of them of higher priority" if place.higher else ""
    return f"{about}{plural(place.ahead, 'task')} of its type {verb} before it{higher}"
