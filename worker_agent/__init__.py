"""The worker daemon: it leases tasks from a Convener control plane and runs each in a process of its own.

An agent is a function. A module that holds one, `my_agents.py`::

    from worker_agent import Permanent, Task

    def generate(task: Task) -> dict[str, object]:
        topic = task.payload.get("topic")
        if topic is None:
            raise Permanent("missing_topic", "the payload needs a topic")
        task.progress(50, "thinking", checkpoint={"drafts": 1})
        return {"hypotheses": [f"{topic} is periodic"]}

    HANDLERS = {"generation": generate}

is served by `convener-worker --url http://127.0.0.1:8765 --handlers my_agents`, with the pool key in CONVENER_KEY.
"""

import sys

from worker_agent.failures import Permanent, Postponed, Transient
from worker_agent.task import Task

# The HTTP library would import its own command line, with parsers and colours, which nobody here calls.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # that is how a module is kept out

__version__ = "0.1.0"
__all__ = ["Permanent", "Postponed", "Task", "Transient", "__version__"]
