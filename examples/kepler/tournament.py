"""The tournament: which formulas are in it, who plays whom, and what a result does to the ratings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from examples.kepler.expressions import Tree
from examples.supervising.elo import START, after
from examples.supervising.task import Json

RATED_AFTER_MATCHES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """A fitted formula, `age` counting from the first that was ever proposed (0)."""

    id: str
    age: int
    tree: Tree
    scale: float
    size: int
    score: float
    remarks: Sequence[str]
    elo: float = START
    matches: int = 0
    held_out_error: float | None = None


@dataclass(slots=True, kw_only=True)
class Tournament:
    """A population of hypotheses, rated by their matches."""

    capacity: int = 24
    intake: int = 10
    challengers: int = 8
    played: int = 0
    dropped: int = 0
    _met: int = 0
    _entries: dict[str, Hypothesis] = field(default_factory=dict)

    def admit(self, reviews: Iterable[tuple[str, Json]]) -> None:
        """Take in twice as many newcomers as can stay, the best by score: duplicates are still among them."""
        arrived = []
        for key, review in reviews:
            arrived.append(_hypothesis(key, self._met, review))
            self._met += 1
        best = sorted(arrived, key=lambda entry: (entry.score, entry.age))[: 2 * self.intake]
        self._entries |= {entry.id: entry for entry in best}

    def merge(self, groups: Iterable[Json]) -> None:
        """Drop duplicates. The one that stays takes the rating of the one with most matches: they predict the same."""
        for group in groups:
            members = [self._entries[key] for key in (group["keep"], *group["drop"])]
            rated = max(members, key=lambda entry: (entry.matches, entry.elo))
            self.dropped += len(group["drop"])
            self._entries[group["keep"]] = replace(members[0], elo=rated.elo, matches=rated.matches)
            for key in group["drop"]:
                del self._entries[key]

    def pairs(self) -> list[tuple[str, str]]:
        """Each newcomer against every challenger, and the challengers among themselves. Newcomers in excess leave."""
        ranked = self.ranked()
        newcomers = sorted((h for h in ranked if not h.matches), key=lambda entry: (entry.score, entry.age))
        for excess in newcomers[self.intake :]:
            del self._entries[excess.id]
        strong = [entry for entry in ranked if entry.matches][: self.challengers]
        fresh = newcomers[: self.intake]
        if not strong:
            strong, fresh = fresh[: self.challengers], fresh[self.challengers :]
        among = [(first.id, second.id) for i, first in enumerate(strong) for second in strong[i + 1 :]]
        return among + [(newcomer.id, other.id) for newcomer in fresh for other in strong]

    def record(self, outcomes: Iterable[Json]) -> None:
        for outcome in outcomes:
            first, second = self._entries[outcome["first"]], self._entries[outcome["second"]]
            ratings = after(first.elo, second.elo, outcome["points"])
            for entry, rating in zip((first, second), ratings, strict=True):
                self._entries[entry.id] = replace(entry, elo=rating, matches=entry.matches + 1)
            self.played += 1

    def note_errors(self, errors: dict[str, float | None]) -> None:
        for key, error in errors.items():
            self._entries[key] = replace(self._entries[key], held_out_error=error)

    def close_round(self) -> None:
        """Keep as many as there is room for, by rating."""
        self._entries = {entry.id: entry for entry in self.ranked()[: self.capacity]}

    def ranked(self) -> list[Hypothesis]:
        """All, the highest rating first; those with too few matches after those that have proved themselves."""
        return sorted(
            self._entries.values(),
            key=lambda entry: (entry.matches < RATED_AFTER_MATCHES, -entry.elo, entry.score, entry.age),
        )

    def parents(self, number: int) -> list[Hypothesis]:
        """Parents of the next proposals: in turn the best by rating and the best by score, for a rating lags behind."""
        by_score = sorted(self._entries.values(), key=lambda entry: (entry.score, entry.age))
        turns = [entry for pair in zip(self.ranked(), by_score, strict=True) for entry in pair]
        return list({entry.id: entry for entry in turns}.values())[:number]

    def __getitem__(self, key: str) -> Hypothesis:
        return self._entries[key]

    @property
    def leader(self) -> Hypothesis | None:
        ranked = self.ranked()
        return ranked[0] if ranked else None


def _hypothesis(key: str, age: int, review: Json) -> Hypothesis:
    return Hypothesis(
        id=key,
        age=age,
        tree=review["tree"],
        scale=review["scale"],
        size=review["size"],
        score=review["score"],
        remarks=tuple(review["critique"]["remarks"]),
    )
