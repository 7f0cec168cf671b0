"""A finished call changes the state of its model's service: for its caller at once, for all where others confirm it."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from math import inf

from app.llm.rules import callers as rules
from app.llm.rules import circuit_breaker, concurrency
from app.llm.rules.callers import CallerState, ConfirmationPolicy
from app.llm.rules.circuit_breaker import Breaker, BreakerPolicy, BreakerState
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.conditions import TRY_SECONDS, Condition, condition_end, condition_of
from app.llm.rules.models import Model
from app.llm.rules.outcomes import FAILURES, LOSSES, CallReport, Outcome

_ANSWERS = frozenset({Outcome.SUCCESS, Outcome.CLIENT_ERROR})


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedTurn:
    """A call of `caller` under a permit granted at `granted_at`; `in_use` are calls of the model, with this one.

    `principal` vouches for the caller; `has_rivals` says that callers of other principals call the model too.
    """

    caller: str
    principal: str
    has_rivals: bool = False
    report: CallReport
    granted_at: datetime
    is_probe: bool
    in_use: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPolicy:
    """The numbers of all rules that a report passes."""

    concurrency: ConcurrencyPolicy
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    confirmation: ConfirmationPolicy = field(default_factory=ConfirmationPolicy)


def record_call(model: Model, turn: FinishedTurn, *, ceiling: int, now: datetime, policy: ReportPolicy) -> Model:
    """The model after a call; `ceiling` is the most calls that people allow."""
    outcome = turn.report.outcome
    model = replace(model, callers=rules.remembered(model.callers, now, policy.confirmation))
    condition = condition_of(turn.report)
    if condition is not None:
        return _record_condition(model, turn, condition, now, policy)
    if outcome in LOSSES:
        model = _record_loss(model, turn, now, policy)
    elif outcome in _ANSWERS:
        model = _record_answer(model, turn, ceiling, now, policy)
    return _move_breaker(model, turn, now, policy)


def _record_condition(
    model: Model, turn: FinishedTurn, condition: Condition, now: datetime, policy: ReportPolicy
) -> Model:
    """The model after a call that found its service in a condition: for its caller at once, for all once confirmed."""
    until = condition_end(turn.report, now)
    longest = now + timedelta(seconds=policy.concurrency.max_cooldown_seconds)
    next_try = now + timedelta(seconds=TRY_SECONDS)
    open_until = next_try if until is None else min(until, longest)
    own = model.callers.get(turn.caller) or CallerState(reported_at=now)
    own = replace(
        own,
        reported_at=now,
        principal=turn.principal,
        condition=condition.value,
        condition_until=until,
        open_until=open_until,
        is_refuted=False,
    )
    callers = {**model.callers, turn.caller: own}
    since = now - timedelta(seconds=policy.confirmation.window_seconds)
    agreeing = {
        name: caller
        for name, caller in callers.items()
        if caller.condition and not caller.is_refuted and caller.reported_at > since
    }
    is_confirmed = rules.voices(agreeing, has_rivals=turn.has_rivals) >= policy.confirmation.voices
    # What is confirmed already goes on until somebody is answered.
    goes_on = turn.is_probe and model.breaker.cause is not None
    breaker = model.breaker
    if is_confirmed or goes_on:
        ends = [caller.open_until for caller in agreeing.values() if caller.open_until is not None]
        end = max(next_try, min(ends, default=open_until))
        breaker = Breaker(failures=breaker.failures, open_until=end, cause=condition.value, until=until)
    return replace(model, callers=callers, breaker=breaker)


def _record_answer(model: Model, turn: FinishedTurn, ceiling: int, now: datetime, policy: ReportPolicy) -> Model:
    callers = dict(model.callers)
    own = callers.pop(turn.caller, None)
    callers = rules.refuted(callers, turn.granted_at)
    if own is not None:
        own = _with_breaker(model, own, turn, now, policy)
        own = replace(_with_growth(own, turn.report.outcome, model), failures=0, condition="", condition_until=None)
        # Nothing that this caller has reported holds any longer.
        if own.limit is not None or own.is_blocked(now):
            callers[turn.caller] = own
    if turn.report.outcome is not Outcome.SUCCESS:
        return replace(model, callers=callers)
    state = concurrency.record_success(
        model.concurrency,
        turn.report.latency_seconds,
        in_use=turn.in_use,
        ceiling=ceiling,
        policy=policy.concurrency,
    )
    return replace(model, callers=callers, concurrency=state)


def _record_loss(model: Model, turn: FinishedTurn, now: datetime, policy: ReportPolicy) -> Model:
    own = model.callers.get(turn.caller) or CallerState(reported_at=now)
    own = _with_breaker(model, replace(own, reported_at=now, principal=turn.principal), turn, now, policy)
    until = concurrency.requested_cooldown(turn.report, now, policy.concurrency)
    if until is not None:
        own = replace(own, cooldown_until=max(until, own.cooldown_until or until), is_refuted=False)
    callers = {**model.callers, turn.caller: own}
    state = model.concurrency
    if rules.is_confirmed_loss(callers, turn.caller, now, policy.confirmation, has_rivals=turn.has_rivals):
        smaller = concurrency.record_loss(state, now, policy.concurrency)
        if smaller.shrunk_at != state.shrunk_at:
            callers[turn.caller] = replace(own, counted_at=now)
        state = smaller
    else:
        callers[turn.caller] = _shrunk(own, model, now, policy.concurrency)
    end = rules.confirmed_cooldown(callers, now, policy.confirmation, has_rivals=turn.has_rivals)
    if end is not None:
        state = replace(state, cooldown_until=max(end, state.cooldown_until or end))
    return replace(model, callers=callers, concurrency=state)


def _with_breaker(
    model: Model, own: CallerState, turn: FinishedTurn, now: datetime, policy: ReportPolicy
) -> CallerState:
    """The caller's own breaker after its call, and its failures as others count them."""
    outcome = turn.report.outcome
    if model.breaker.state(now) is not BreakerState.CLOSED:
        # Only the probe counts. A caller whose probe has failed is not the next one to try.
        if not turn.is_probe or outcome not in FAILURES:
            return own
        until = now + timedelta(seconds=2 * policy.breaker.open_seconds)
        return replace(own, failures=1, failures_in_row=own.failures_in_row + 1, open_until=until)
    tries_again = own.open_until is not None and turn.granted_at >= own.open_until
    own = replace(own, condition="", condition_until=None)
    breaker = circuit_breaker.record_call(own.breaker, outcome, is_probe=tries_again, now=now, policy=policy.breaker)
    return replace(own.with_breaker(breaker), failures=own.failures + (outcome in FAILURES))


def _move_breaker(model: Model, turn: FinishedTurn, now: datetime, policy: ReportPolicy) -> Model:
    """The breaker that binds all, after the callers' own states have been changed by a call."""
    callers, outcome = model.callers, turn.report.outcome
    failing = {name: caller for name, caller in callers.items() if caller.failures}
    if model.breaker.state(now) is BreakerState.CLOSED:
        failures = rules.confirmed_failures(failing, has_rivals=turn.has_rivals)
        if failures < policy.breaker.failure_threshold:
            return replace(model, breaker=Breaker(failures=failures))
        return _opened(model, failures, now, policy)
    if not turn.is_probe:
        return model
    if outcome in _ANSWERS or outcome is Outcome.RATE_LIMITED:
        # Whatever they have reported of the service, it answers again.
        forgiven = {
            name: replace(caller, failures=0, condition="", condition_until=None) for name, caller in callers.items()
        }
        return replace(model, breaker=Breaker(), callers=forgiven)
    if outcome in FAILURES and rules.voices(failing, has_rivals=turn.has_rivals) >= policy.confirmation.voices:
        return _opened(model, model.breaker.failures + 1, now, policy)
    return model


def _opened(model: Model, failures: int, now: datetime, policy: ReportPolicy) -> Model:
    open_until = now + timedelta(seconds=policy.breaker.open_seconds)
    counted = {name: replace(caller, failures=0) for name, caller in model.callers.items()}
    return replace(model, breaker=Breaker(failures=failures, open_until=open_until), callers=counted)


def _shrunk(own: CallerState, model: Model, now: datetime, policy: ConcurrencyPolicy) -> CallerState:
    """The caller with a smaller limit of its own, once in a round trip."""
    if concurrency.is_same_overload(own.shrunk_at, now, model.concurrency.round_trip(policy)):
        return own
    limit = min(own.limit or inf, model.concurrency.limit)
    return replace(own, limit=max(1.0, limit * policy.decrease_factor), shrunk_at=now)


def _with_growth(own: CallerState, outcome: Outcome, model: Model) -> CallerState:
    """The caller with a larger limit of its own after a success; without one when it reaches that of all."""
    if own.limit is None or outcome is not Outcome.SUCCESS:
        return own
    limit = own.limit + 1.0 / own.limit
    return replace(own, limit=limit if limit < model.concurrency.limit else None)
