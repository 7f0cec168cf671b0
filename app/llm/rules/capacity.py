"""Capacity for calls during a decision on permits: what it still allows, and for which rule it refuses a request."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import timedelta
from math import ceil, inf

from app.llm.rules.circuit_breaker import BreakerState
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.models import Model, concurrency_ceiling
from app.llm.rules.permits import (
    QUEUED_REASONS,
    Grant,
    PermitCounts,
    PermitPolicy,
    PermitRequest,
    PermitSnapshot,
    Refused,
    Reservation,
)
from app.llm.rules.rate_ledger import RateLedger
from app.llm.rules.spending import Amount, Budget, BudgetLedger, BudgetOwner, estimated_amount

Refusal = tuple[Refused, timedelta]


class _ModelCalls:
    """Calls of a model: limit and mean latency, those permitted, those `under_way` with held permits, probes, queue."""

    def __init__(self, model: Model, snapshot: PermitSnapshot, policy: ConcurrencyPolicy) -> None:
        counts = snapshot.permit_counts.get(model.name, PermitCounts())
        self.model = model
        self.limit = model.concurrency.allowed_calls(concurrency_ceiling(model, snapshot.total_limit))
        self.latency = model.concurrency.mean_latency(policy)
        breaker = model.breaker.state(snapshot.now)
        self.is_left_alone = breaker is BreakerState.OPEN
        # Whether the next call is the one that tries the model out.
        self.next_is_probe = breaker is BreakerState.HALF_OPEN
        self.permitted = self.under_way = counts.permits
        self.probes = counts.probes
        self.queue_length = 0


class _HolderCalls:
    """Calls of each holder: of one model, and of all together, where its places count as well; and its places."""

    def __init__(self, snapshot: PermitSnapshot, absent: Collection[Reservation]) -> None:
        self.of_model, self.of_all = defaultdict(int, snapshot.held), Counter[str]()
        for (holder, _), count in snapshot.held.items():
            self.of_all[holder] += count
        # Holders keep these although they do not ask now.
        self.places = Counter(place.request.holder for place in absent)


class _Callers:
    """Numbers of callers, each a holder and its model: of each model, and of all together."""

    def __init__(self, callers: Collection[tuple[str, str]]) -> None:
        self.of_model = Counter(model for _, model in callers)
        self.of_all = len({holder for holder, _ in callers})


class Capacity:
    """Free permits, rates and budgets, counted down during a decision, by held permits as by granted ones."""

    def __init__(
        self,
        snapshot: PermitSnapshot,
        requests: Sequence[PermitRequest],
        absent: Collection[Reservation],
        policy: PermitPolicy,
        concurrency_policy: ConcurrencyPolicy,
    ) -> None:
        self._snapshot = snapshot
        self._policy = policy
        self._free = snapshot.total_limit - snapshot.in_use
        models = snapshot.models.values()
        self._models = {model.name: _ModelCalls(model, snapshot, concurrency_policy) for model in models}
        self._holders = _HolderCalls(snapshot, absent)
        self._budgets = BudgetLedger(snapshot.budgets)
        self.rates = RateLedger(snapshot.models, snapshot.now)
        asking = {(request.holder, request.model) for request in requests}
        waiting = {(place.request.holder, place.request.model) for place in absent}
        in_time = {(place.request.holder, place.request.model) for place in absent if self._is_in_time(place)}
        # All that hold or wait have a share. Who has not come back in time does not contend for a permit any more.
        self._active = _Callers({*snapshot.held, *asking, *waiting})
        self._contending = _Callers({*snapshot.held, *asking, *in_time})

    def refusal(self, request: PermitRequest, *, is_scarce: bool = True) -> Refusal | None:
        """Reason and wait if there is no capacity for this request; None: there is. While it is scarce shares count."""
        return (
            self._budget_refusal(request)
            or self._pause_refusal(request)
            or self._probe_refusal(request)
            or self._concurrency_refusal(request)
            or self._share_refusal(request, is_scarce)
            or self._rate_refusal(request)
        )

    def take(self, request: PermitRequest) -> None:
        """Count the request as a call under way."""
        calls, owners = self._models[request.model], request.budget_owners
        calls.under_way += 1
        calls.probes += calls.next_is_probe
        self._free -= 1
        self._holders.of_model[request.holder, request.model] += 1
        self._holders.of_all[request.holder] += 1
        self.rates.count(request)
        self._budgets.take(owners, self._budgets.reservation(owners, self._estimate(request)))

    def grant(self, request: PermitRequest) -> Grant:
        """Take capacity for a permit that is written down."""
        calls = self._models[request.model]
        reserved = self._budgets.reservation(request.budget_owners, self._estimate(request))
        self.take(request)
        self.rates.charge(request)
        calls.permitted += 1
        is_probe, limit, in_use = calls.next_is_probe, calls.limit, calls.permitted
        return Grant(request=request, is_probe=is_probe, limit=limit, in_use=in_use, reserved=reserved)

    def holds_for(self, reservation: Reservation) -> bool:
        """Whether a free permit is held for an absent request, as it is about to come back."""
        latency = self._models[reservation.request.model].latency
        lead = min(self._policy.hold_before_seconds, self._policy.hold_before_latency_share * latency)
        remaining = (reservation.due - self._snapshot.now).total_seconds()
        return -self._policy.hold_after_seconds <= remaining <= lead

    def enqueue(self, place: Reservation, *, is_pending: bool) -> tuple[Refusal | None, bool]:
        """Queue a request behind those before it; return its reason and wait, and whether it gets a place.

        None: it need not wait. Only places from which somebody may still come in time make others wait.
        """
        request, refusal = place.request, self.refusal(place.request)
        if refusal is None or refusal[0] not in QUEUED_REASONS:
            return refusal, False
        # Places count as calls, so that no worker queues up for more than it may have.
        if (above_share := self._share_refusal(request, is_scarce=False)) is not None:
            return above_share, False
        reason, wait = refusal
        has_place = self._may_keep_place(request, wait) if is_pending else self._is_in_time(place)
        if has_place:
            self._holders.of_all[request.holder] += 1
            self._holders.places[request.holder] += is_pending
            if reason is Refused.CONCURRENCY:
                self._models[request.model].queue_length += 1
            else:
                self.rates.count(request)
        return (reason, self._bounded(wait)), has_place

    def full_budget(self, request: PermitRequest) -> tuple[BudgetOwner, Budget] | None:
        """The first budget that the request uses and that has no room for it."""
        return self._budgets.full_budget(request.budget_owners, self._estimate(request))

    def _estimate(self, request: PermitRequest) -> Amount:
        return estimated_amount(self._models[request.model].model.limits, request.tokens)

    def _bounded(self, wait: timedelta) -> timedelta:
        """The wait, or the longest for which there are places: by then people may have set another rate."""
        return min(wait, timedelta(seconds=self._policy.max_place_seconds))

    def _may_keep_place(self, request: PermitRequest, wait: timedelta) -> bool:
        """Whether a refused request gets a place, of which a key has a number and a worker its share of calls."""
        places, policy = self._holders.places[request.holder], self._policy
        has_room = request.worker_id is not None or places < policy.max_places_per_key
        return has_room and policy.lapse_wait(wait) <= timedelta(seconds=policy.max_place_seconds)

    def _is_in_time(self, place: Reservation) -> bool:
        """Whether it is not overdue: whoever has not come back when it was due does not wait any more."""
        return place.due >= self._snapshot.now - timedelta(seconds=self._policy.hold_after_seconds)

    def _budget_refusal(self, request: PermitRequest) -> Refusal | None:
        if (full := self.full_budget(request)) is None:
            return None
        policy = self._policy
        seconds = policy.budget_over_seconds if full[1].is_used_up else policy.budget_retry_seconds
        return Refused.BUDGET, timedelta(seconds=seconds)

    def _pause_refusal(self, request: PermitRequest) -> Refusal | None:
        """The refusal while a breaker is open or a cool-down lasts, for all or for this caller."""
        calls, now = self._models[request.model], self._snapshot.now
        model, own = calls.model, calls.model.callers.get(request.holder)
        if calls.is_left_alone:
            return _left_alone(model.breaker.cause), timedelta(seconds=model.breaker.remaining_seconds(now))
        if seconds := model.concurrency.cooldown_seconds(now) or (own.cooldown_seconds(now) if own is not None else 0):
            return Refused.COOLDOWN, timedelta(seconds=seconds)
        if own is not None and (seconds := own.breaker.remaining_seconds(now)):
            return _left_alone(own.condition), timedelta(seconds=seconds)
        return None

    def _probe_refusal(self, request: PermitRequest) -> Refusal | None:
        """The refusal of a second call at once while a breaker, that of all or the caller's own, is half-open."""
        calls = self._models[request.model]
        own = calls.model.callers.get(request.holder)
        is_own_probe = own is not None and own.breaker.state(self._snapshot.now) is BreakerState.HALF_OPEN
        if not (calls.next_is_probe or is_own_probe):
            return None
        # A probe that takes long counts no more, but its caller keeps nobody from the next by a second one.
        holds_one = self._holders.of_model[request.holder, request.model] > 0
        if not holds_one and not (calls.next_is_probe and calls.probes):
            return None
        cause = calls.model.breaker.cause or (own.condition if own is not None else None)
        return _left_alone(cause), timedelta(seconds=self._policy.probe_retry_seconds)

    def _concurrency_refusal(self, request: PermitRequest) -> Refusal | None:
        calls = self._models[request.model]
        own = calls.model.callers.get(request.holder)
        own_limit = inf if own is None or own.limit is None else max(1, int(own.limit))
        has_room = self._free > 0 and calls.under_way < calls.limit and not self._is_for_others(request, calls.limit)
        if has_room and self._holders.of_model[request.holder, request.model] < own_limit:
            return None
        return Refused.CONCURRENCY, self._free_in(calls, calls.queue_length + 1, calls.limit)

    def _is_for_others(self, request: PermitRequest, limit: int) -> bool:
        """Whether a key that is no worker's holds all permits but one, which is for others while any call or wait."""
        if request.worker_id is not None:
            return False
        held, contending = self._holders, self._contending
        is_last_of_model = held.of_model[request.holder, request.model] >= max(1, limit - 1)
        is_last_of_all = held.of_all[request.holder] >= max(1, self._snapshot.total_limit - 1)
        return (is_last_of_model and contending.of_model[request.model] > 1) or (
            is_last_of_all and contending.of_all > 1
        )

    def _share_refusal(self, request: PermitRequest, is_scarce: bool) -> Refusal | None:
        """The refusal of a worker that holds its share; one permit is always left for another caller."""
        if request.worker_id is None:
            return None
        calls, total = self._models[request.model], self._snapshot.total_limit
        of_all, of_model = (min(self._policy.max_per_worker, max(1, bound - 1)) for bound in (total, calls.limit))
        if is_scarce:
            active, min_share = self._active, self._policy.min_share
            of_all = min(of_all, max(min_share, ceil(total / max(1, active.of_all))))
            of_model = min(of_model, max(min_share, ceil(calls.limit / max(1, active.of_model[request.model]))))
        held = self._holders
        if held.of_all[request.holder] < of_all and held.of_model[request.holder, request.model] < of_model:
            return None
        # One of its own calls makes room for another soon, but a rate lets nobody in sooner for that.
        wait, rate = self._free_in(calls, 1, min(of_all, of_model)), self._rate_refusal(request)
        return Refused.SHARE, wait if rate is None else max(wait, self._bounded(rate[1]))

    def _rate_refusal(self, request: PermitRequest) -> Refusal | None:
        longest = self.rates.longest_wait(request, is_alone=self._active.of_model[request.model] <= 1)
        return None if longest is None else (Refused(longest[0].value), longest[1])

    def _free_in(self, calls: _ModelCalls, place: int, permits: int) -> timedelta:
        """The wait until one of so many permits is free for the one at this place of the queue."""
        # By Little's law one of them, each in use for `latency`, is freed every latency / permits seconds.
        policy, seconds = self._policy, self._policy.retry_share * place * calls.latency / permits
        return timedelta(seconds=min(policy.max_retry_seconds, max(policy.min_retry_seconds, seconds)))


def _left_alone(condition: str | None) -> Refused:
    """The reason of a refusal while a breaker is open, by the condition that opened it."""
    return Refused(condition) if condition else Refused.BREAKER_OPEN
