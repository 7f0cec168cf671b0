"""An agent that asks a language model and shows what it sees of its trace."""

import os
from typing import Any

from worker_agent import Task


def ask(task: Task) -> dict[str, Any]:
    """One question; fails in its first attempts, as many as the payload says."""
    answer = task.llm.ask(task.payload["question"], max_tokens=16)
    if task.attempt <= task.payload.get("failures", 0):
        raise RuntimeError(task.payload["question"])
    seen = {name: value for name, value in os.environ.items() if name.startswith(("OTEL", "TRACE"))}
    return {"text": answer.text, "environment": seen, "trace_context": task.trace_context}


HANDLERS = {"ranking": ask}
