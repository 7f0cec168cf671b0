"""Worth of proposals after the matches of their formulas, by which the service weighs its agents."""

from collections.abc import Iterable, Mapping
from uuid import NAMESPACE_URL, uuid5

from examples.kepler.tournament import RATED_AFTER_MATCHES, Hypothesis
from examples.supervising.dispatch import task_id
from examples.supervising.elo import START, expected
from examples.supervising.task import Json


def judgements(goal_id: str, number: int, entries: Iterable[Hypothesis], proposers: Mapping[str, int]) -> Json | None:
    """The judgements of a round; None when no formula has played enough.

    A proposal is worth what its best formula is: the share of points that this takes from one of the initial rating.
    """
    best: dict[int, float] = {}
    for entry in entries:
        if entry.matches >= RATED_AFTER_MATCHES:
            proposal = proposers[entry.id.partition(".")[0]]
            best[proposal] = max(best.get(proposal, 0.0), expected(entry.elo, START))
    items = [
        {"task_id": task_id(goal_id, proposal), "quality": quality, "basis": "elo"}
        for proposal, quality in sorted(best.items())
    ]
    request_id = str(uuid5(NAMESPACE_URL, f"{goal_id}/judgements/{number}"))
    return {"request_id": request_id, "items": items} if items else None
