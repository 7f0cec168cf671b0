"""Lanes are keys of dictionaries on the hot path."""

import itertools
import os
import subprocess
import sys
from dataclasses import replace

from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority

_LANE = Lane(agent_type=AgentType.RANKING, priority=Priority.LOW, resource_class=3)
_SHOW_HASH = """
from app.kernel.agents import AgentType
from app.kernel.lanes import Lane, Priority
print(hash(Lane(agent_type=AgentType.RANKING, priority=Priority.LOW, resource_class=3)))
"""


def test_equal_lanes_are_one_key() -> None:
    assert {_LANE: 1}[replace(replace(_LANE, resource_class=0), resource_class=3)] == 1
    assert len({replace(_LANE, resource_class=number % 4) for number in range(8)}) == 4


def test_lanes_hardly_share_a_hash() -> None:
    every = itertools.product(AgentType, Priority, range(50))
    lanes = [Lane(agent_type=agent, priority=priority, resource_class=number) for agent, priority, number in every]
    assert len({hash(lane) for lane in lanes}) == len(lanes)


def test_a_lane_has_one_hash_in_all_processes() -> None:
    """It is kept with the lane, which another process may read from a file or a pipe."""
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    shown = subprocess.run(
        [sys.executable, "-c", _SHOW_HASH], env=environment, capture_output=True, text=True, check=True
    )
    assert int(shown.stdout) == hash(_LANE)
