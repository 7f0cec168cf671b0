"""What proposals turned out to be worth, once their formulas have played: the service weighs its agents by it."""

from collections.abc import Iterable, Mapping
from uuid import NAMESPACE_URL, uuid5

from examples.kepler.tournament import RATED_AFTER_MATCHES, Hypothesis
from examples.supervising.dispatch import task_id
from examples.supervising.elo import START, expected
from examples.supervising.task import Json


def judgements(goal_id: str, number: int, entries: Iterable[Hypothesis], proposers: Mapping[str, int]) -> Json | None:
    """The judgements of a round; None when nobody has played enough. A proposal is worth what its best formula is.

    That is the share of points which it takes from an average one: 0.5 at the rating that everybody starts with.
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
