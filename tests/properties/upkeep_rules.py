"""What happens by itself, or at an operator's word."""

from hypothesis import strategies as st
from hypothesis.stateful import rule

from app.kernel.agents import AgentType
from tests.properties import policies
from tests.properties.drafts import AGENTS, replicas, weighted
from tests.properties.game import Game
from tests.properties.model import MAX_RESCUES
from tests.properties.pool import SweepWorkers
from tests.properties.steps import Step
from tests.properties.upkeep import (
    Age,
    Cut,
    Fold,
    KeepInStep,
    PassTime,
    Pause,
    Promote,
    Restart,
    Resume,
    SweepLeases,
    WearOut,
)

duties = weighted({"sweep leases": 4, "sweep workers": 2, "promote": 3, "age": 2, "fold": 1, "keep in step": 1})
events = weighted({"pause": 3, "resume": 2, "restart": 2, "cut": 1, "mend": 2, "wear out": 1})


class UpkeepRules(Game):
    """Time, duties, operators, and the troubles of replicas."""

    @rule(
        seconds=st.sampled_from([0.0, *policies.PASSING]), duty=duties, held_back_before=st.booleans(), replica=replicas
    )
    def pass_time(self, seconds: float, duty: str, held_back_before: bool, replica: int) -> None:
        """Time passes, and one duty has its turn."""
        self.do(PassTime(seconds=seconds))
        self.do(_duty(duty, held_back_before, replica))

    @rule(what=events, agents=st.lists(st.sampled_from(AGENTS), min_size=1, max_size=2, unique=True), replica=replicas)
    def happen(self, what: str, agents: list[AgentType], replica: int) -> None:
        steps: dict[str, Step] = {
            "pause": Pause(agents=agents),
            "resume": Resume(agents=agents),
            "restart": Restart(replica=replica),
            "cut": Cut(is_cut=True),
            "mend": Cut(is_cut=False),
            "wear out": WearOut(rescues=MAX_RESCUES),
        }
        self.do(steps[what])


def _duty(duty: str, held_back_before: bool, replica: int) -> Step:
    turns: dict[str, Step] = {
        "sweep leases": SweepLeases(held_back_before=held_back_before, replica=replica),
        "sweep workers": SweepWorkers(held_back_before=held_back_before, replica=replica),
        "promote": Promote(replica=replica),
        "age": Age(replica=replica),
        "fold": Fold(replica=replica),
        "keep in step": KeepInStep(replica=replica),
    }
    return turns[duty]
