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

from worker_agent.failures import Permanent, Postponed, Transient
from worker_agent.task import Task

__version__ = "0.1.0"
__all__ = ["Permanent", "Postponed", "Task", "Transient", "__version__"]
