"""The resource classes as one process knows them, and which of them a worker can serve."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from app.kernel import resources
from app.kernel.resources import Resources

# Of more different offers the memory is begun anew.
_MAX_OFFERS = 1_000
# Of the choices between tasks that ask for more and for less, at one priority: so none waits for ever.
_LEAST_EVERY = 8


@dataclass(slots=True)
class ClassView:
    """Requests by class, read anew when a new class is announced or met; `is_stale` until then."""

    is_stale: bool = True
    texts: Mapping[int, str] = field(default_factory=dict)
    _served: dict[Resources, Sequence[int]] = field(default_factory=dict)
    _choices: int = 0

    def update(self, texts: Mapping[int, str]) -> None:
        """Take over the classes in the database."""
        self.texts, self.is_stale = dict(texts), False
        self._served.clear()

    def served_by(self, offer: Resources | None, open_classes: Collection[int]) -> tuple[int, ...]:
        """Those of the classes that a worker with this offer can serve, the one that asks for most first.

        The least goes first in every eighth choice among several.
        """
        if offer is None:
            return ()
        served = self._served.get(offer)
        if served is None:
            if len(self._served) >= _MAX_OFFERS:
                self._served.clear()
            served = self._served[offer] = self._find(offer)
        return tuple([number for number in served if number in open_classes])

    def takes_least(self) -> bool:
        """Whether this choice goes to the tasks that ask for least; counts the choice."""
        self._choices += 1
        return self._choices % _LEAST_EVERY == 0

    def _find(self, offer: Resources) -> Sequence[int]:
        requests = {number: resources.parse(text) for number, text in self.texts.items()}
        served = [number for number, request in requests.items() if offer.covers(request)]
        return sorted(served, key=lambda number: (requests[number].rank, number), reverse=True)
