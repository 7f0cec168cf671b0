"""The decision on a batch of permit requests, together with the reservations of those that were refused before."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import ceil, inf

from app.llm.rules.circuit_breaker import BreakerState
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.models import concurrency_ceiling, meters
from app.llm.rules.permit_queue import in_queue_order, match_reservations
from app.llm.rules.permits import (
    QUEUED_REASONS,
    Denial,
    Grant,
    PermitCounts,
    PermitPolicy,
    PermitRequest,
    PermitSnapshot,
    Refused,
    RequestId,
    Reservation,
    VirtualTimes,
)
from app.llm.rules.rate_limit import Dimension, Meter, charge, wait_time, worker_key, worker_meter
from app.llm.rules.spending import Amount, Budget, BudgetLedger, BudgetOwner, estimated_amount
from app.llm.rules.virtual_clock import VirtualClock

Refusal = tuple[Refused, timedelta]


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitPlan:
    """An answer to each request, in their order; the reservations they resume; meters and virtual times afterwards."""

    answers: Sequence[Grant | Denial]
    resumed_ids: Sequence[RequestId]
    meters: Mapping[str, Mapping[Dimension, Meter]]
    worker_tats: Mapping[str, Mapping[str, datetime]]
    virtual_times: VirtualTimes


def plan_permits(
    snapshot: PermitSnapshot,
    requests: Sequence[PermitRequest],
    policy: PermitPolicy,
    concurrency_policy: ConcurrencyPolicy,
) -> PermitPlan:
    """Grant or deny each request. A request resumes its own reservation, or else one of the same caller.

    A free permit is held for the moment around which a refused request is due, and no longer: so nobody who comes back
    in time is overtaken, and no permit idles for those who stay away.
    """
    present, absent = match_reservations(snapshot, requests)
    request_ids = {request.id for request in requests}
    absent_ids = {reservation.request.id for reservation in absent}
    asking = {(request.holder, request.model) for request in requests}
    holders = asking | {(place.request.holder, place.request.model) for place in absent}
    capacity = _Capacity(snapshot, holders, asking, policy, concurrency_policy)
    capacity.count_places(absent)
    clock = VirtualClock(snapshot, requests, policy)
    queue = in_queue_order([*present, *absent], request_ids, snapshot, policy, clock)
    grants, waiting = _grant_permits(queue, request_ids, capacity, clock)
    pending_ids = request_ids - grants.keys()
    queue = in_queue_order(waiting, pending_ids, snapshot, policy, clock)
    answers: dict[RequestId, Grant | Denial] = {**grants, **_deny_waiting(queue, pending_ids, capacity, clock)}
    return PermitPlan(
        answers=[answers[request.id] for request in requests],
        resumed_ids=[place.request.id for place in snapshot.reservations if place.request.id not in absent_ids],
        meters=capacity.charged_meters,
        worker_tats=capacity.charged_tats,
        virtual_times=clock.times(),
    )


def _grant_permits(
    queue: Iterator[Reservation], request_ids: Collection[RequestId], capacity: "_Capacity", clock: VirtualClock
) -> tuple[dict[RequestId, Grant], list[Reservation]]:
    """Grant permits to requests, and hold them for absent ones about to come; also return the places left waiting."""
    grants: dict[RequestId, Grant] = {}
    waiting: list[Reservation] = []
    above_share: list[Reservation] = []
    for place in queue:
        request, is_present = place.request, place.request.id in request_ids
        refusal = capacity.refusal(request)
        if refusal is not None or not (is_present or capacity.holds_for(place)):
            is_above = is_present and refusal is not None and refusal[0] is Refused.SHARE
            (above_share if is_above else waiting).append(place)
        elif is_present:
            grants[request.id] = capacity.grant(request)
            clock.grant(request)
        else:
            capacity.take(request)
            clock.reserve(request)
    # Nobody within a share of their own is kept waiting by what is left now.
    for place in above_share:
        if capacity.refusal(place.request, is_scarce=False) is None:
            grants[place.request.id] = capacity.grant(place.request)
            clock.grant(place.request)
        else:
            waiting.append(place)
    return grants, waiting


def _deny_waiting(
    queue: Iterator[Reservation], pending_ids: Collection[RequestId], capacity: "_Capacity", clock: VirtualClock
) -> dict[RequestId, Denial]:
    """Deny the pending requests, each with the wait behind those before it in the queue, absent ones included."""
    denials: dict[RequestId, Denial] = {}
    for place in queue:
        request = place.request
        refusal, has_place = capacity.enqueue(place, is_pending=request.id in pending_ids)
        clock.reserve(request)
        # Capacity only shrinks during a decision, so every pending request is refused again here.
        if request.id in pending_ids and refusal is not None:
            reason, retry_after = refusal
            denial = Denial(
                request=request, reason=reason, retry_after=retry_after, since=place.since, has_place=has_place
            )
            full = capacity.full_budget(request) if reason is Refused.BUDGET else None
            denials[request.id] = denial if full is None else replace(denial, budget_owner=full[0])
    return denials


class _Callers:
    """Numbers of callers, each a holder and its model: of each model, and of all together."""

    def __init__(self, callers: Collection[tuple[str, str]]) -> None:
        self.of_model = Counter(model for _, model in callers)
        self.of_all = len({holder for holder, _ in callers})


class _Capacity:
    """Free permits and rates, counted down during a decision, by held permits as by granted ones."""

    def __init__(
        self,
        snapshot: PermitSnapshot,
        waiting: Collection[tuple[str, str]],
        present: Collection[tuple[str, str]],
        policy: PermitPolicy,
        concurrency_policy: ConcurrencyPolicy,
    ) -> None:
        self._snapshot = snapshot
        self._policy = policy
        self._concurrency_policy = concurrency_policy
        counts, models = snapshot.permit_counts.items(), snapshot.models.items()
        self._free = snapshot.total_limit - snapshot.in_use
        self._budgets = BudgetLedger(snapshot.budgets)
        self._in_use = Counter({name: count.permits for name, count in counts})
        self._probes = Counter({name: count.probes for name, count in counts})
        self._held = Counter(snapshot.held)
        self._held_of_all = Counter[str]()
        for (holder, _), count in snapshot.held.items():
            self._held_of_all[holder] += count
        in_time = {(r.request.holder, r.request.model) for r in snapshot.reservations if self._is_in_time(r)}
        gone = {(r.request.holder, r.request.model) for r in snapshot.reservations} - in_time
        # All that hold or wait have a share. Who has not come back in time does not contend for a permit any more.
        self._active = _Callers({*snapshot.held, *waiting})
        self._contending = _Callers({*snapshot.held, *(set(waiting) - gone), *present})
        self._queue_lengths: Counter[str] = Counter()
        self._place_counts: Counter[str] = Counter()
        self._grant_counts: Counter[str] = Counter()
        self._limits = {
            name: model.concurrency.allowed_calls(concurrency_ceiling(model, snapshot.total_limit))
            for name, model in models
        }
        self._states = {name: model.breaker.state(snapshot.now) for name, model in models}
        self._meters = {name: meters(model, snapshot.now) for name, model in models}
        # These are stored: charged for granted permits only, as held and waiting requests have cost nothing yet.
        self.charged_meters = {name: dict(by_dimension) for name, by_dimension in self._meters.items()}
        self.charged_tats: dict[str, dict[str, datetime]] = defaultdict(dict)

    def refusal(self, request: PermitRequest, *, is_scarce: bool = True) -> Refusal | None:
        """Reason and wait if there is no capacity for this request; None: there is. While it is scarce shares count."""
        return (
            self._budget_refusal(request)
            or self._service_refusal(request)
            or self._concurrency_refusal(request)
            or self._share_refusal(request, is_scarce)
            or self._rate_refusal(request)
        )

    def take(self, request: PermitRequest) -> None:
        """Count the request as a call under way."""
        name, now = request.model, self._snapshot.now
        self._free -= 1
        self._in_use[name] += 1
        self._held[request.holder, name] += 1
        self._held_of_all[request.holder] += 1
        self._probes[name] += self.is_probe(name)
        self._meters[name] = _charge_all(self._meters[name], request, now)
        owners = request.budget_owners
        self._budgets.take(owners, self._budgets.reservation(owners, self._estimate(request)))

    def grant(self, request: PermitRequest) -> Grant:
        """Take capacity for a permit that is written down."""
        name, now, is_probe = request.model, self._snapshot.now, self.is_probe(request.model)
        reserved = self._budgets.reservation(request.budget_owners, self._estimate(request))
        self.take(request)
        self._grant_counts[name] += 1
        self.charged_meters[name] = _charge_all(self.charged_meters[name], request, now)
        for dimension, own in self._worker_meters(request).items():
            # Alone a worker has the whole rate; it does not owe all of that once another comes.
            charged = charge(own, own.chargeable(_cost(request, dimension)), now).bounded(now)
            self.charged_tats[name][worker_key(dimension, request.holder)] = charged.tat
        in_use = self._snapshot.permit_counts.get(name, PermitCounts()).permits + self._grant_counts[name]
        limit = self._limits[name]
        return Grant(request=request, is_probe=is_probe, limit=limit, in_use=in_use, reserved=reserved)

    def holds_for(self, reservation: Reservation) -> bool:
        """Whether a free permit is held for an absent request, as it is about to come back."""
        latency = self._snapshot.models[reservation.request.model].concurrency.mean_latency(self._concurrency_policy)
        lead = min(self._policy.hold_before_seconds, self._policy.hold_before_latency_share * latency)
        remaining = (reservation.due - self._snapshot.now).total_seconds()
        return -self._policy.hold_after_seconds <= remaining <= lead

    def count_places(self, absent: Collection[Reservation]) -> None:
        """Count the places that holders keep although they do not ask now."""
        self._place_counts.update(place.request.holder for place in absent)

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
        has_place = self._may_keep_place(request, refusal[1]) if is_pending else self._is_in_time(place)
        self._held_of_all[request.holder] += has_place
        self._place_counts[request.holder] += has_place and is_pending
        if has_place and refusal[0] is Refused.CONCURRENCY:
            self._queue_lengths[request.model] += 1
        elif has_place:
            self._meters[request.model] = _charge_all(self._meters[request.model], request, self._snapshot.now)
        return (refusal[0], self._bounded(refusal[1])), has_place

    def _bounded(self, wait: timedelta) -> timedelta:
        """The wait, or the longest for which there are places: by then people may have set another rate."""
        return min(wait, timedelta(seconds=self._policy.max_place_seconds))

    def _may_keep_place(self, request: PermitRequest, wait: timedelta) -> bool:
        """Whether a refused request gets a place, of which a key has a number and a worker its share of calls."""
        has_room = request.worker_id is not None or self._place_counts[request.holder] < self._policy.max_places_per_key
        return has_room and self._policy.lapse_wait(wait) <= timedelta(seconds=self._policy.max_place_seconds)

    def _is_in_time(self, place: Reservation) -> bool:
        """Whether it is not overdue: whoever has not come back when it was due does not wait any more."""
        return place.due >= self._snapshot.now - timedelta(seconds=self._policy.hold_after_seconds)

    def is_probe(self, model: str) -> bool:
        """Whether the next call of this model is the one that tries it out."""
        return self._states[model] is BreakerState.HALF_OPEN

    def full_budget(self, request: PermitRequest) -> tuple[BudgetOwner, Budget] | None:
        """The first budget that the request uses and that has no room for it."""
        return self._budgets.full_budget(request.budget_owners, self._estimate(request))

    def _estimate(self, request: PermitRequest) -> Amount:
        return estimated_amount(self._snapshot.models[request.model].limits, request.tokens)

    def _budget_refusal(self, request: PermitRequest) -> Refusal | None:
        if (full := self.full_budget(request)) is None:
            return None
        used_up, policy = full[1].is_used_up, self._policy
        seconds = policy.budget_over_seconds if used_up else policy.budget_retry_seconds
        return Refused.BUDGET, timedelta(seconds=seconds)

    def _service_refusal(self, request: PermitRequest) -> Refusal | None:
        model, now = self._snapshot.models[request.model], self._snapshot.now
        if self._states[request.model] is BreakerState.OPEN:
            return _left_alone(model.breaker.cause), timedelta(seconds=model.breaker.remaining_seconds(now))
        if seconds := model.concurrency.cooldown_seconds(now):
            return Refused.COOLDOWN, timedelta(seconds=seconds)
        own = model.callers.get(request.holder)
        if own is not None and (seconds := own.cooldown_seconds(now)):
            return Refused.COOLDOWN, timedelta(seconds=seconds)
        if own is not None and (seconds := own.breaker.remaining_seconds(now)):
            return _left_alone(own.condition), timedelta(seconds=seconds)
        # A half-open breaker lets one call through at a time, and no caller keeps others from it by a second one.
        holds_one = self._held[request.holder, request.model] > 0
        is_own_probe = own is not None and own.breaker.state(now) is BreakerState.HALF_OPEN
        if (self.is_probe(request.model) and (self._probes[request.model] or holds_one)) or (
            is_own_probe and holds_one
        ):
            cause = model.breaker.cause or (own.condition if own is not None else None)
            return _left_alone(cause), timedelta(seconds=self._policy.probe_retry_seconds)
        return None

    def _concurrency_refusal(self, request: PermitRequest) -> Refusal | None:
        limit, own = self._limits[request.model], self._snapshot.models[request.model].callers.get(request.holder)
        own_limit = inf if own is None or own.limit is None else max(1, int(own.limit))
        has_room = self._free > 0 and self._in_use[request.model] < limit
        if request.worker_id is None:
            has_room = has_room and not self._is_for_others(request, limit)
        if has_room and self._held[request.holder, request.model] < own_limit:
            return None
        return Refused.CONCURRENCY, self._free_in(request.model, self._queue_lengths[request.model] + 1, limit)

    def _is_for_others(self, request: PermitRequest, limit: int) -> bool:
        """Whether a key that is no worker's holds all permits but one, which is for others while any call or wait."""
        of_model, of_all = self._held[request.holder, request.model], self._held_of_all[request.holder]
        return (self._contending.of_model[request.model] > 1 and of_model >= max(1, limit - 1)) or (
            self._contending.of_all > 1 and of_all >= max(1, self._snapshot.total_limit - 1)
        )

    def _share_refusal(self, request: PermitRequest, is_scarce: bool) -> Refusal | None:
        """The refusal of a worker that holds its share; one permit is always left for another caller."""
        if request.worker_id is None:
            return None
        total, limit = self._snapshot.total_limit, self._limits[request.model]
        of_all, of_model = (min(self._policy.max_per_worker, max(1, bound - 1)) for bound in (total, limit))
        if is_scarce:
            active, min_share = self._active, self._policy.min_share
            of_all = min(of_all, max(min_share, ceil(total / max(1, active.of_all))))
            of_model = min(of_model, max(min_share, ceil(limit / max(1, active.of_model[request.model]))))
        held = self._held[request.holder, request.model]
        if self._held_of_all[request.holder] < of_all and held < of_model:
            return None
        # One of its own calls makes room for another soon, but a rate lets nobody in sooner for that.
        wait, rate = self._free_in(request.model, 1, min(of_all, of_model)), self._rate_refusal(request)
        return Refused.SHARE, wait if rate is None else max(wait, self._bounded(rate[1]))

    def _free_in(self, name: str, place: int, permits: int) -> timedelta:
        """The wait until one of so many permits is free for the one at this place of the queue."""
        # By Little's law one of them, each in use for `latency`, is freed every latency / permits seconds.
        policy, latency = self._policy, self._snapshot.models[name].concurrency.mean_latency(self._concurrency_policy)
        seconds = policy.retry_share * place * latency / permits
        return timedelta(seconds=min(policy.max_retry_seconds, max(policy.min_retry_seconds, seconds)))

    def _rate_refusal(self, request: PermitRequest) -> Refusal | None:
        waits = {
            Refused(dimension.value): wait_time(meter, _cost(request, dimension), self._snapshot.now)
            for dimension, meter in self._meters[request.model].items()
        }
        # Alone a worker may have the whole rate: nobody else wants any of it.
        if self._active.of_model[request.model] > 1:
            for dimension, own in self._worker_meters(request).items():
                reason, wait = Refused(dimension.value), wait_time(own, _cost(request, dimension), self._snapshot.now)
                waits[reason] = max(waits[reason], wait)
        longest = max(waits, key=lambda reason: waits[reason], default=None)
        return (longest, waits[longest]) if longest is not None and waits[longest] > timedelta() else None

    def _worker_meters(self, request: PermitRequest) -> dict[Dimension, Meter]:
        """The worker's own meters beside those of all; nobody else has any."""
        if request.worker_id is None:
            return {}
        tats = {**self._snapshot.models[request.model].worker_tats, **self.charged_tats[request.model]}
        return {
            dimension: worker_meter(meter, tats.get(worker_key(dimension, request.holder)), self._snapshot.now)
            for dimension, meter in self._meters[request.model].items()
        }


def _left_alone(condition: str | None) -> Refused:
    """The reason of a refusal while a breaker is open, by the condition that opened it."""
    return Refused(condition) if condition else Refused.BREAKER_OPEN


def _charge_all(by_dimension: dict[Dimension, Meter], request: PermitRequest, now: datetime) -> dict[Dimension, Meter]:
    return {
        dimension: charge(meter, meter.chargeable(_cost(request, dimension)), now)
        for dimension, meter in by_dimension.items()
    }


def _cost(request: PermitRequest, dimension: Dimension) -> int:
    return 1 if dimension is Dimension.REQUESTS else request.tokens
