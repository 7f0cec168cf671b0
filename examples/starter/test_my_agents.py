"""Tests: the agent by itself, and the supervisor against the service where one runs. `python -m unittest` runs them."""

import os
import unittest
from uuid import uuid4

from my_agents import error_of, propose
from supervisor import pursue

from app.terminal.connection import find_access
from app.terminal.failures import Failure
from examples.supervising.client import Convener, Unreachable
from worker_agent.task import Task


class MyAgents(unittest.TestCase):
    def test_the_agent_comes_nearer(self) -> None:
        result = propose(Task(agent_type="generation", payload={"best": 1.0, "width": 1.0, "seed": "a"}))
        assert error_of(result["number"]) < error_of(1.0)
        assert 0 < result["quality"] <= 1

    def test_the_supervisor_pursues_a_goal_until_the_service_stops_it(self) -> None:
        try:
            access = find_access(os.environ.get("CONVENER_URL"), ("supervisor.key",))
            with Convener(access.url, access.key, give_up_seconds=10) as service:
                result = pursue(service, f"test-{uuid4().hex[:8]}")
        except (Failure, Unreachable) as error:
            self.skipTest(f"no service: `convener up --handlers my_agents` starts one here ({error})")
        assert error_of(result["number"]) < 0.5
        assert result["iterations"] >= 1


if __name__ == "__main__":
    unittest.main()
