"""The state machine: anything may happen in any order, and after every step the database is what the model says.

Hypothesis leaves out half of the rules in each example, so a rule sees by itself to what it cannot do without.
"""

from hypothesis import strategies as st
from hypothesis.stateful import initialize

from tests.properties.drafts import NAMES, Draft, drafts
from tests.properties.lease_rules import LeaseRules
from tests.properties.pool_rules import PoolRules
from tests.properties.settling import settle
from tests.properties.supervisor_rules import SupervisorRules
from tests.properties.upkeep_rules import UpkeepRules


class QueueMachine(LeaseRules, PoolRules, SupervisorRules, UpkeepRules):
    """Begins with two workers and a few tasks, and ends with all tasks done."""

    @initialize(batch=st.lists(drafts, min_size=2, max_size=5))
    def begin(self, batch: list[Draft]) -> None:
        for name in NAMES[:2]:
            self.begin_worker(name)
        self.take_in(self.orders_of(batch))

    def teardown(self) -> None:
        """Every example ends well, unless it has failed already."""
        if self.is_sound:
            settle(self)
