"""Decides on a batch of asks together with the claims of those who were refused and may come back."""

from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from app.domain.agents import AgentType
from app.domain.permit_room import Room
from app.domain.permits import Ask, AskId, Claim, Denied, Granted, PermitPolicy, PermitSnapshot, Turns
from app.domain.pressure import PressurePolicy
from app.domain.rates import Dimension, Meter
from app.domain.tasks import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitPlan:
    """An answer to each ask, in their order; the claims that were taken up; and how meters and turns stand now."""

    answers: Sequence[Granted | Denied]
    taken_up: Sequence[AskId]
    meters: Mapping[str, Mapping[Dimension, Meter]]
    turns: Turns


def decide(snapshot: PermitSnapshot, asks: Sequence[Ask], policy: PermitPolicy, pressure: PressurePolicy) -> PermitPlan:
    """Whom to give a permit. An ask takes up its own claim, or else one that the same caller left for the same thing.

    A permit is kept free for a moment for one whose turn it is and who is about to come back, and no longer: so nobody
    who comes back in time is overtaken, and no permit idles for those who stay away.
    """
    present, absent = _matched(snapshot, asks)
    room, clock = Room(snapshot, policy, pressure), _Clock(snapshot, asks, policy)
    answers: dict[AskId, Granted | Denied] = {}
    unanswered = {ask.id for ask in asks}
    waiting = []
    for claim in _in_order([*present, *absent], unanswered, snapshot, policy, clock):
        is_here = claim.ask.id in unanswered
        if room.refusal(claim.ask) is not None or not (is_here or room.keeps_for(claim)):
            waiting.append(claim)
        elif is_here:
            answers[claim.ask.id] = room.grant(claim.ask)
            clock.grant(claim.ask)
        else:
            room.take(claim.ask)
            clock.reserve(claim.ask)
    unanswered -= answers.keys()
    for claim in _in_order(waiting, unanswered, snapshot, policy, clock):
        refusal = room.queue(claim.ask)
        clock.reserve(claim.ask)
        if claim.ask.id in unanswered and refusal is not None:
            reason, retry_after = refusal
            answers[claim.ask.id] = Denied(ask=claim.ask, reason=reason, retry_after=retry_after, since=claim.since)
    left = {claim.ask.id for claim in absent}
    return PermitPlan(
        answers=[answers[ask.id] for ask in asks],
        taken_up=[claim.ask.id for claim in snapshot.claims if claim.ask.id not in left],
        meters=room.paid,
        turns=clock.turns(),
    )


def _matched(snapshot: PermitSnapshot, asks: Sequence[Ask]) -> tuple[list[Claim], list[Claim]]:
    """The asks with the time since which they wait, and the claims of those who are not here."""
    left = {claim.ask.id: claim for claim in snapshot.claims}
    own = {ask.id: left.pop(ask.id) for ask in asks if ask.id in left}
    by_caller: dict[tuple[object, ...], deque[Claim]] = defaultdict(deque)
    for claim in sorted(left.values(), key=lambda claim: claim.since):
        by_caller[claim.ask.caller].append(claim)
    present = []
    for ask in asks:
        former = own.get(ask.id)
        if former is None and (others := by_caller[ask.caller]):
            former = left.pop(others.popleft().ask.id)
        since = snapshot.now if former is None else former.since
        present.append(Claim(ask=ask, since=since, due=snapshot.now, lapses=snapshot.now))
    return present, list(left.values())


class _Clock:
    """Virtual times while permits are dealt out: as if all that is kept free were used, and by permits alone."""

    def __init__(self, snapshot: PermitSnapshot, asks: Collection[Ask], policy: PermitPolicy) -> None:
        self._weights = snapshot.weights
        self._usual = policy.usual_tokens
        self._virtual = snapshot.turns.virtual
        self._paid = dict.fromkeys(AgentType, 0.0) | dict(snapshot.turns.finish)
        # An agent type that did not wait starts level with the others, without saved-up credit.
        for agent in {ask.agent_type for ask in asks} - {claim.ask.agent_type for claim in snapshot.claims}:
            self._paid[agent] = max(self._paid[agent], self._virtual)
        self._finish = dict(self._paid)

    def finish(self, agent: AgentType) -> float:
        """When the share of an agent type is used up; the least is furthest behind."""
        return self._finish[agent]

    def reserve(self, ask: Ask) -> None:
        """A permit is kept free."""
        self._finish[ask.agent_type] += self._cost(ask)

    def grant(self, ask: Ask) -> None:
        """A permit is given."""
        self.reserve(ask)
        self._virtual = max(self._virtual, self._paid[ask.agent_type])
        self._paid[ask.agent_type] += self._cost(ask)

    def turns(self) -> Turns:
        """What is to be remembered."""
        return Turns(finish=self._paid, virtual=self._virtual)

    def _cost(self, ask: Ask) -> float:
        return (ask.tokens or self._usual) / self._usual / max(self._weights[ask.agent_type], 1e-9)


class _Place(NamedTuple):
    """Within an agent type the least goes first."""

    urgency: int
    since: datetime
    number: int
    claim: Claim


def _in_order(
    claims: Sequence[Claim], sought: Collection[AskId], snapshot: PermitSnapshot, policy: PermitPolicy, clock: _Clock
) -> Iterator[Claim]:
    """Who is looked at next, up to the last of those sought; it changes while agent types use up their shares."""
    # Nobody gets above the most urgent of those who wait: where all are equal, long waits change nothing between types.
    highest = max((claim.ask.priority for claim in claims), default=Priority.LOW)
    ageing, left = timedelta(seconds=policy.ageing), len(sought)
    places = (
        _Place(
            -min(claim.ask.priority + max(0, (snapshot.now - claim.since) // ageing), highest), claim.since, n, claim
        )
        for n, claim in enumerate(claims)
    )
    lines: dict[AgentType, deque[_Place]] = defaultdict(deque)
    for place in sorted(places):
        lines[place.claim.ask.agent_type].append(place)
    while lines and left:
        agent = min(lines, key=lambda agent: (lines[agent][0].urgency, clock.finish(agent), lines[agent][0].since))
        claim = lines[agent].popleft().claim
        if not lines[agent]:
            del lines[agent]
        left -= claim.ask.id in sought
        yield claim
