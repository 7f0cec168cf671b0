"""Agents that ask a language model, as their payload says."""

import json
import os
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from worker_agent import Task


def ask(task: Task) -> dict[str, Any]:
    """One question; the answer with what is known of its origin. With a client of its own it fails where that does."""
    if task.payload.get("own_client"):
        return {"text": _ask_with_own_client(task.payload["question"])}
    answer = task.llm.ask(task.payload["question"], temperature=task.payload.get("temperature", 1.0), max_tokens=16)
    return {"text": answer.text, "degraded": answer.degraded, "model": answer.model}


def _ask_with_own_client(question: str) -> str:
    body = {"model": os.environ["CONVENER_LLM_MODEL"], "messages": [{"role": "user", "content": question}]}
    request = Request(
        f"{os.environ['OPENAI_BASE_URL']}/chat/completions",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "content-type": "application/json"},
    )
    with build_opener(ProxyHandler({})).open(request) as answer:
        text: str = json.loads(answer.read())["choices"][0]["message"]["content"]
    return text


HANDLERS = {"generation": ask, "ranking": ask}
