"""The population of hypotheses, their ratings, and the matches to play."""

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

    def as_payload(self) -> Json:
        """The hypothesis as agents receive it."""
        return {"id": self.id, **self.content, "critique": self.critique}


@dataclass(slots=True)
class Tournament:
    """A population rated by matches."""

    entries: dict[str, Hypothesis] = field(default_factory=dict)
    played: int = 0
    merged: int = 0

    def admit(self, newcomers: Iterable[Hypothesis]) -> None:
        """Add reviewed hypotheses."""
        self.entries |= {entry.id: entry for entry in newcomers}

    def ranked(self) -> list[Hypothesis]:
        """Best first; those that have not played by their review."""
        return sorted(self.entries.values(), key=lambda entry: (-entry.elo, -entry.score, entry.id))

    def merge(self, groups: Iterable[Sequence[str]]) -> None:
        """Keep of each group of equals the one with most matches."""
        for group in groups:
            members = [self.entries[key] for key in group if key in self.entries]
            for extra in sorted(members, key=lambda entry: (-entry.matches, -entry.elo, entry.id))[1:]:
                del self.entries[extra.id]
                self.merged += 1

    def pairs(self) -> list[tuple[Hypothesis, Hypothesis]]:
        """Every newcomer meets the strongest, and these meet each other once more."""
        ranked = self.ranked()
        strong = [entry for entry in ranked if entry.matches][:_CHALLENGERS] or ranked[:_CHALLENGERS]
        strong_ids = {entry.id for entry in strong}
        newcomers = [entry for entry in ranked if not entry.matches and entry.id not in strong_ids]
        among = [(first, second) for place, first in enumerate(strong) for second in strong[place + 1 :]]
        return among + [(newcomer, second) for newcomer in newcomers for second in strong]

    def record(self, outcomes: Iterable[Json]) -> None:
        """Update the ratings by the outcomes of matches."""
        for outcome in outcomes:
            first, second = self.entries[outcome["first"]], self.entries[outcome["second"]]
            ratings = after(first.elo, second.elo, outcome["points"])
            for entry, rating in zip((first, second), ratings, strict=True):
                self.entries[entry.id] = replace(entry, elo=rating, matches=entry.matches + 1)
            self.played += 1

    def close_round(self) -> None:
        """Keep the best, as many as there is room for."""
        self.entries = {entry.id: entry for entry in self.ranked()[:_CAPACITY]}
