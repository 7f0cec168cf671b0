"""The hypotheses that are in the race, their ratings, and who meets whom."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from examples.supervising.elo import START, after
from examples.supervising.task import Json

_CAPACITY = 12
_CHALLENGERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """A reviewed hypothesis. `content` is what the model wrote; `score` is that of its review, 0 to 1."""

    id: str
    arm: str
    content: Json
    critique: str
    score: float
    elo: float = START
    matches: int = 0

    def shown(self) -> Json:
        """As agents get it."""
        return {"id": self.id, **self.content, "critique": self.critique}


@dataclass(slots=True)
class Tournament:
    """A population rated by matches."""

    entries: dict[str, Hypothesis] = field(default_factory=dict)
    played: int = 0
    merged: int = 0

    def admit(self, newcomers: Iterable[Hypothesis]) -> None:
        """Take them in."""
        self.entries |= {entry.id: entry for entry in newcomers}

    def ranked(self) -> list[Hypothesis]:
        """Best first; those that have not played by their review."""
        return sorted(self.entries.values(), key=lambda entry: (-entry.elo, -entry.score, entry.id))

    def merge(self, groups: Iterable[Sequence[str]]) -> None:
        """Of those that say the same the one that has played most stays."""
        for group in groups:
            members = [self.entries[key] for key in group if key in self.entries]
            for extra in sorted(members, key=lambda entry: (-entry.matches, -entry.elo, entry.id))[1:]:
                del self.entries[extra.id]
                self.merged += 1

    def pairs(self) -> list[tuple[Hypothesis, Hypothesis]]:
        """Every newcomer meets the strongest, and these meet each other once more."""
        ranked = self.ranked()
        strong = [entry for entry in ranked if entry.matches][:_CHALLENGERS] or ranked[:_CHALLENGERS]
        known = {entry.id for entry in strong}
        fresh = [entry for entry in ranked if not entry.matches and entry.id not in known]
        among = [(one, other) for place, one in enumerate(strong) for other in strong[place + 1 :]]
        return among + [(newcomer, other) for newcomer in fresh for other in strong]

    def record(self, outcomes: Iterable[Json]) -> None:
        """Change the ratings, and let go who has no place any more."""
        for outcome in outcomes:
            one, other = self.entries[outcome["first"]], self.entries[outcome["second"]]
            ratings = after(one.elo, other.elo, outcome["points"])
            for entry, rating in zip((one, other), ratings, strict=True):
                self.entries[entry.id] = replace(entry, elo=rating, matches=entry.matches + 1)
            self.played += 1

    def close_round(self) -> None:
        """Let go who has no place any more."""
        self.entries = {entry.id: entry for entry in self.ranked()[:_CAPACITY]}
