"""The supervisor: pursues one research goal over HTTP alone, and returns a report."""

import time
from collections.abc import Callable

import httpx

from examples.kepler.limits import Limits
from examples.kepler.progress import Observer
from examples.kepler.report import Report
from examples.kepler.research import Research
from examples.supervising.client import Convener

# The year in which Kepler published his third law.
DEFAULT_SEED = 1619


def run(
    *,
    base_url: str,
    key: str,
    goal_id: str,
    seed: int = DEFAULT_SEED,
    limits: Limits | None = None,
    observer: Observer = lambda progress: None,
    transport: httpx.BaseTransport | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Blocks until the service stops the goal: thinking no longer pays. Unless time runs out, only the seed decides.

    Started again with the same goal it takes up where it was: its tasks have the same ids, and so the same answers.
    Raises Unreachable when the service stays away, Refused when the service does not accept a request.
    """
    research: Research | None = None

    def waiting(cause: str, seconds: float) -> None:
        if research:
            research.tell(f"{cause}: trying again in {seconds:.1f} s")

    with Convener(base_url, key, transport=transport, sleep=sleep, waiting=waiting) as service:
        research = Research(service, goal_id=goal_id, seed=seed, limits=limits or Limits(), observer=observer)
        return research.report(research.pursue())
