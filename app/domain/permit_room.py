"""How much room there is for calls while a batch of asks is looked at one after the other."""

from collections import Counter
from datetime import datetime, timedelta

from app.domain.breakers import BreakerState
from app.domain.llm_models import ceiling, meters
from app.domain.permits import QUEUED, Ask, Claim, Granted, PermitPolicy, PermitSnapshot, Refused, Usage
from app.domain.pressure import PressurePolicy
from app.domain.rates import Dimension, Meter, charged, wait

Refusal = tuple[Refused, timedelta]


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

    def refusal(self, ask: Ask) -> Refusal | None:
        """Why there is no room for this; None: there is."""
        return self._closed(ask) or self._crowded(ask) or self._too_fast(ask)

    def take(self, ask: Ask) -> None:
        """Somebody has this room."""
        name, now = ask.model, self._snapshot.now
        self._free -= 1
        self._in_use[name] += 1
        self._probes[name] += self.is_probe(name)
        self._meters[name] = _charged(self._meters[name], ask, now)

    def grant(self, ask: Ask) -> Granted:
        """Take it for good."""
        is_probe = self.is_probe(ask.model)
        self.take(ask)
        self._granted[ask.model] += 1
        self.paid[ask.model] = _charged(self.paid[ask.model], ask, self._snapshot.now)
        in_use = self._snapshot.usage.get(ask.model, Usage()).permits + self._granted[ask.model]
        return Granted(ask=ask, is_probe=is_probe, limit=self._limits[ask.model], in_use=in_use)

    def keeps_for(self, claim: Claim) -> bool:
        """Whether room is kept for somebody who is not here."""
        latency = self._snapshot.models[claim.ask.model].pressure.latency(self._pressure)
        ahead = min(self._policy.ahead, self._policy.ahead_share * latency)
        early = (claim.due - self._snapshot.now).total_seconds()
        return -self._policy.grace <= early <= ahead

    def queue(self, ask: Ask) -> Refusal | None:
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

    def _closed(self, ask: Ask) -> Refusal | None:
        model, now = self._snapshot.models[ask.model], self._snapshot.now
        if self._states[ask.model] is BreakerState.OPEN:
            return Refused.BREAKER_OPEN, timedelta(seconds=model.breaker.open_for(now))
        if seconds := model.pressure.cooldown_seconds(now):
            return Refused.COOLDOWN, timedelta(seconds=seconds)
        if self.is_probe(ask.model) and self._probes[ask.model]:
            return Refused.BREAKER_OPEN, timedelta(seconds=self._policy.probing)
        return None

    def _crowded(self, ask: Ask) -> Refusal | None:
        limit = self._limits[ask.model]
        if self._free > 0 and self._in_use[ask.model] < limit:
            return None
        latency = self._snapshot.models[ask.model].pressure.latency(self._pressure)
        seconds = self._policy.eager * (self._ahead[ask.model] + 1) * latency / limit
        return Refused.CONCURRENCY, timedelta(seconds=min(self._policy.latest, max(self._policy.soonest, seconds)))

    def _too_fast(self, ask: Ask) -> Refusal | None:
        found = {
            Refused(dimension.value): wait(meter, _cost(ask, dimension), self._snapshot.now)
            for dimension, meter in self._meters[ask.model].items()
        }
        longest = max(found, key=lambda reason: found[reason], default=None)
        return (longest, found[longest]) if longest is not None and found[longest] > timedelta() else None


def _charged(kinds: dict[Dimension, Meter], ask: Ask, now: datetime) -> dict[Dimension, Meter]:
    return {dimension: charged(meter, _cost(ask, dimension), now) for dimension, meter in kinds.items()}


def _cost(ask: Ask, dimension: Dimension) -> int:
    return 1 if dimension is Dimension.REQUESTS else ask.tokens
