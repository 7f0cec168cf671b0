"""The queue for permits: whose place a request resumes, and the order of the places."""

from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.llm.rules.permits import PermitPolicy, PermitRequest, PermitSnapshot, RequestId, Reservation
from app.llm.rules.virtual_clock import VirtualClock


def match_reservations(
    snapshot: PermitSnapshot, requests: Sequence[PermitRequest]
) -> tuple[list[Reservation], list[Reservation]]:
    """The places of these requests, with the time since which each waits; and the reservations that none resumes."""
    absent = {reservation.request.id: reservation for reservation in snapshot.reservations}
    own = {request.id: absent.pop(request.id) for request in requests if request.id in absent}
    by_caller: dict[tuple[object, ...], list[Reservation]] = defaultdict(list)
    for place in sorted(absent.values(), key=lambda place: place.since):
        if place.due <= snapshot.now:
            by_caller[place.request.caller].append(place)
    present = []
    for request in requests:
        previous = own.get(request.id)
        # Some callers make up a new id for every attempt; they must not lose their place by it, nor hold two. A caller
        # may also have several calls: before its time comes a place is that of another one, and the oldest ones last.
        if previous is None and (same_caller := by_caller[request.caller]):
            previous = absent.pop(same_caller.pop().request.id)
        since = snapshot.now if previous is None else previous.since
        present.append(Reservation(request=request, since=since, due=snapshot.now, lapses=snapshot.now))
    return present, list(absent.values())


class _QueueEntry(NamedTuple):
    """A place in the queue of an agent type; the least goes first."""

    urgency: int
    since: datetime
    # Unique, so that reservations themselves are never compared.
    number: int
    reservation: Reservation


def in_queue_order(
    places: Sequence[Reservation],
    pending_ids: Collection[RequestId],
    snapshot: PermitSnapshot,
    policy: PermitPolicy,
    clock: VirtualClock,
) -> Iterator[Reservation]:
    """The places in the order of the queue, until all pending ones have come; serving one moves the clock."""
    # Nobody gets above the most urgent of those who wait: where all are equal, long waits change nothing between types.
    highest = max((place.request.priority for place in places), default=Priority.LOW)
    aging, pending = timedelta(seconds=policy.aging_seconds), len(pending_ids)
    entries = (
        _QueueEntry(
            -min(place.request.priority + max(0, (snapshot.now - place.since) // aging), highest), place.since, n, place
        )
        for n, place in enumerate(places)
    )
    queues: dict[AgentType, deque[_QueueEntry]] = defaultdict(deque)
    for entry in sorted(entries):
        queues[entry.reservation.request.agent_type].append(entry)
    while queues and pending:
        agent = min(queues, key=lambda agent: (queues[agent][0].urgency, clock.finish(agent), queues[agent][0].since))
        place = queues[agent].popleft().reservation
        if not queues[agent]:
            del queues[agent]
        pending -= place.request.id in pending_ids
        yield place
