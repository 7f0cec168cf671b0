"""Agents that ask a language model, as their payload says."""

from typing import Any

from worker_agent import Task


def ask(task: Task) -> dict[str, Any]:
    """One question; the answer with what is known of its origin."""
    answer = task.llm.ask(task.payload["question"], temperature=task.payload.get("temperature", 1.0), max_tokens=16)
    return {"text": answer.text, "degraded": answer.degraded, "model": answer.model}


HANDLERS = {"generation": ask, "ranking": ask}
