"""Workers come, beat and leave."""

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.properties.drafts import NAMES, picks, rarely, replicas, weighted
from tests.properties.game import Game, picked
from tests.properties.pool import Beat, Direct, Goodbye

deeds = weighted({"come": 3, "beat": 6, "goodbye": 1, "drain": 1, "direct": 1})


class PoolRules(Game):
    """What becomes of workers."""

    @rule(pick=picks, what=deeds, name=st.sampled_from(NAMES), is_odd=rarely, replica=replicas)
    def live(self, pick: int, what: str, name: str, is_odd: bool, replica: int) -> None:
        """What is odd: one that comes and does not beat, or beats and is mistaken about its lease."""
        worker_id = picked(self.workers(), pick)
        assert worker_id is not None
        task = self.model.held_by(worker_id)
        match what:
            case "come":
                self.begin_worker(name, replica=replica, is_healthy=not is_odd)
            case "goodbye":
                self.do(Goodbye(worker_id=worker_id, replica=replica))
            case "direct":
                self.do(Direct(worker_id=worker_id))
            case _:
                named = self.fence(pick) if is_odd or task is None else task.fence
                self.do(Beat(worker_id=worker_id, fence=named, draining=what == "drain", replica=replica))
