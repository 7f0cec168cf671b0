"""States of the protocol and the actions that follow."""

from typing import Any

from worker_agent import actions as act
from worker_agent.wire import Directive

STOP = Directive(kind="stop", reason="scale down")
DRAIN = Directive(kind="drain")


def only(actions: list[act.Action]) -> Any:
    (action,) = actions
    return action
