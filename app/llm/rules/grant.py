"""The decision on a batch of permit requests, together with the reservations of those that were refused before."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from app.llm.rules.capacity import Capacity
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.permit_queue import in_queue_order, match_reservations
from app.llm.rules.permits import (
    Denial,
    Grant,
    PermitPolicy,
    PermitRequest,
    PermitSnapshot,
    Refused,
    RequestId,
    Reservation,
    VirtualTimes,
)
from app.llm.rules.rate_limit import Dimension, Meter
from app.llm.rules.virtual_clock import VirtualClock


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
    capacity = Capacity(snapshot, requests, absent, policy, concurrency_policy)
    clock = VirtualClock(snapshot, requests, policy)
    queue = in_queue_order([*present, *absent], request_ids, snapshot, policy, clock)
    grants, waiting = _grant_permits(queue, request_ids, capacity, clock)
    pending_ids = request_ids - grants.keys()
    queue = in_queue_order(waiting, pending_ids, snapshot, policy, clock)
    answers: dict[RequestId, Grant | Denial] = {**grants, **_deny_waiting(queue, pending_ids, capacity, clock)}
    return PermitPlan(
        answers=[answers[request.id] for request in requests],
        resumed_ids=[place.request.id for place in snapshot.reservations if place.request.id not in absent_ids],
        meters=capacity.rates.charged_meters,
        worker_tats=capacity.rates.charged_tats,
        virtual_times=clock.times(),
    )


def _grant_permits(
    queue: Iterator[Reservation], request_ids: Collection[RequestId], capacity: Capacity, clock: VirtualClock
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
    queue: Iterator[Reservation], pending_ids: Collection[RequestId], capacity: Capacity, clock: VirtualClock
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
