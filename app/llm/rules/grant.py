"""Decides on a batch of asks together with the claims of those who were refused and may come back."""

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.llm.rules.circuit_breaker import BreakerState
from app.llm.rules.concurrency import PressurePolicy
from app.llm.rules.models import ceiling, meters
from app.llm.rules.permits import (
    QUEUED,
    AskId,
    Denied,
    Granted,
    PermitPolicy,
    PermitRequest,
    PermitSnapshot,
    Refused,
    Reservation,
    Turns,
    Usage,
)
from app.llm.rules.rate_limit import Dimension, Meter, charged, wait

Refusal = tuple[Refused, timedelta]


@dataclass(frozen=True, slots=True, kw_only=True)
class PermitPlan:
    """An answer to each ask, in their order; the claims that were taken up; and how meters and turns stand now."""

    answers: Sequence[Granted | Denied]
    taken_up: Sequence[AskId]
    meters: Mapping[str, Mapping[Dimension, Meter]]
    turns: Turns


def decide(
    snapshot: PermitSnapshot, asks: Sequence[PermitRequest], policy: PermitPolicy, pressure: PressurePolicy
) -> PermitPlan:
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


def _matched(snapshot: PermitSnapshot, asks: Sequence[PermitRequest]) -> tuple[list[Reservation], list[Reservation]]:
    """The asks with the time since which they wait, and the claims of those who are not here."""
    left = {claim.ask.id: claim for claim in snapshot.claims}
    own = {ask.id: left.pop(ask.id) for ask in asks if ask.id in left}
    by_caller: dict[tuple[object, ...], deque[Reservation]] = defaultdict(deque)
    for claim in sorted(left.values(), key=lambda claim: claim.since):
        by_caller[claim.ask.caller].append(claim)
    present = []
    for ask in asks:
        former = own.get(ask.id)
        if former is None and (others := by_caller[ask.caller]):
            former = left.pop(others.popleft().ask.id)
        since = snapshot.now if former is None else former.since
        present.append(Reservation(ask=ask, since=since, due=snapshot.now, lapses=snapshot.now))
    return present, list(left.values())


class _Clock:
    """Virtual times while permits are dealt out: as if all that is kept free were used, and by permits alone."""

    def __init__(self, snapshot: PermitSnapshot, asks: Collection[PermitRequest], policy: PermitPolicy) -> None:
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

    def reserve(self, ask: PermitRequest) -> None:
        """A permit is kept free."""
        self._finish[ask.agent_type] += self._cost(ask)

    def grant(self, ask: PermitRequest) -> None:
        """A permit is given."""
        self.reserve(ask)
        self._virtual = max(self._virtual, self._paid[ask.agent_type])
        self._paid[ask.agent_type] += self._cost(ask)

    def turns(self) -> Turns:
        """What is to be remembered."""
        return Turns(finish=self._paid, virtual=self._virtual)

    def _cost(self, ask: PermitRequest) -> float:
        return (ask.tokens or self._usual) / self._usual / max(self._weights[ask.agent_type], 1e-9)


class _Place(NamedTuple):
    """Within an agent type the least goes first."""

    urgency: int
    since: datetime
    number: int
    claim: Reservation


def _in_order(
    claims: Sequence[Reservation],
    sought: Collection[AskId],
    snapshot: PermitSnapshot,
    policy: PermitPolicy,
    clock: _Clock,
) -> Iterator[Reservation]:
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


class Room:
    """Counts down. What is kept for somebody who is on the way back is taken like a permit, but not written down."""

    def __init__(self, snapshot: PermitSnapshot, policy: PermitPolicy, pressure: PressurePolicy) -> None:
        self._snapshot = snapshot
        self._policy = policy
        self._pressure = pressure
        self._free = snapshot.most - snapshot.in_use
        self._in_use = Counter({name: usage.permits for name, usage in snapshot.usage.items()})
        self._probes = Counter({name: usage.probes for name, usage in snapshot.usage.items()})
        self._ahead: Counter[str] = Counter()
        models = snapshot.models.items()
        self._limits = {name: model.pressure.allowed(ceiling(model, snapshot.most)) for name, model in models}
        self._states = {name: model.breaker.state(snapshot.now) for name, model in models}
        self._meters = {name: meters(model, snapshot.now) for name, model in models}
        # What is written down: charged for permits only.
        self.paid = {name: dict(kinds) for name, kinds in self._meters.items()}
        self._granted: Counter[str] = Counter()

    def refusal(self, ask: PermitRequest) -> Refusal | None:
        """Why there is no room for this; None: there is."""
        return self._closed(ask) or self._crowded(ask) or self._too_fast(ask)

    def take(self, ask: PermitRequest) -> None:
        """Somebody has this room."""
        name, now = ask.model, self._snapshot.now
        self._free -= 1
        self._in_use[name] += 1
        self._probes[name] += self.is_probe(name)
        self._meters[name] = _charged(self._meters[name], ask, now)

    def grant(self, ask: PermitRequest) -> Granted:
        """Take it for good."""
        is_probe = self.is_probe(ask.model)
        self.take(ask)
        self._granted[ask.model] += 1
        self.paid[ask.model] = _charged(self.paid[ask.model], ask, self._snapshot.now)
        in_use = self._snapshot.usage.get(ask.model, Usage()).permits + self._granted[ask.model]
        return Granted(ask=ask, is_probe=is_probe, limit=self._limits[ask.model], in_use=in_use)

    def keeps_for(self, claim: Reservation) -> bool:
        """Whether room is kept for somebody who is not here."""
        latency = self._snapshot.models[claim.ask.model].pressure.latency(self._pressure)
        ahead = min(self._policy.ahead, self._policy.ahead_share * latency)
        early = (claim.due - self._snapshot.now).total_seconds()
        return -self._policy.grace <= early <= ahead

    def queue(self, ask: PermitRequest) -> Refusal | None:
        """Why somebody must wait, and for how long, with all those who were queued before; None: no need to."""
        refusal = self.refusal(ask)
        if refusal is not None and refusal[0] is Refused.CONCURRENCY:
            self._ahead[ask.model] += 1
        elif refusal is not None and refusal[0] in QUEUED:
            self._meters[ask.model] = _charged(self._meters[ask.model], ask, self._snapshot.now)
        return refusal

    def is_probe(self, model: str) -> bool:
        """Whether a call of this model now would be the one that tries it."""
        return self._states[model] is BreakerState.HALF_OPEN

    def _closed(self, ask: PermitRequest) -> Refusal | None:
        model, now = self._snapshot.models[ask.model], self._snapshot.now
        if self._states[ask.model] is BreakerState.OPEN:
            return Refused.BREAKER_OPEN, timedelta(seconds=model.breaker.open_for(now))
        if seconds := model.pressure.cooldown_seconds(now):
            return Refused.COOLDOWN, timedelta(seconds=seconds)
        if self.is_probe(ask.model) and self._probes[ask.model]:
            return Refused.BREAKER_OPEN, timedelta(seconds=self._policy.probing)
        return None

    def _crowded(self, ask: PermitRequest) -> Refusal | None:
        limit = self._limits[ask.model]
        if self._free > 0 and self._in_use[ask.model] < limit:
            return None
        latency = self._snapshot.models[ask.model].pressure.latency(self._pressure)
        seconds = self._policy.eager * (self._ahead[ask.model] + 1) * latency / limit
        return Refused.CONCURRENCY, timedelta(seconds=min(self._policy.latest, max(self._policy.soonest, seconds)))

    def _too_fast(self, ask: PermitRequest) -> Refusal | None:
        found = {
            Refused(dimension.value): wait(meter, _cost(ask, dimension), self._snapshot.now)
            for dimension, meter in self._meters[ask.model].items()
        }
        longest = max(found, key=lambda reason: found[reason], default=None)
        return (longest, found[longest]) if longest is not None and found[longest] > timedelta() else None


def _charged(kinds: dict[Dimension, Meter], ask: PermitRequest, now: datetime) -> dict[Dimension, Meter]:
    return {dimension: charged(meter, _cost(ask, dimension), now) for dimension, meter in kinds.items()}


def _cost(ask: PermitRequest, dimension: Dimension) -> int:
    return 1 if dimension is Dimension.REQUESTS else ask.tokens
