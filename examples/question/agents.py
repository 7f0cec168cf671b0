"""The six agents: each asks the model one kind of question and makes sure that the answer can be used."""

from collections.abc import Callable
from typing import Any

from examples.question import prompts
from examples.question.prompts import SYSTEM, Json
from worker_agent import Task, Transient

_CREATIVE, _SOBER = 1.0, 0.2
_TOKENS = 2000


def generate(task: Task) -> Json:
    """`count` new hypotheses."""
    payload = task.payload
    question = prompts.generation(payload["question"], payload["count"], payload["guidance"], payload["known"])
    return {"hypotheses": _ask_hypotheses(task, question, payload["count"])}


def evolve(task: Task) -> Json:
    """`count` hypotheses derived from the best."""
    payload = task.payload
    question = prompts.evolution(payload["question"], payload["parents"], payload["count"], payload["guidance"])
    return {"hypotheses": _ask_hypotheses(task, question, payload["count"])}


def reflect(task: Task) -> Json:
    """A review of one hypothesis; `score` from 0 to 1."""
    review = _ask(
        task, prompts.reflection(task.payload["question"], task.payload["hypothesis"]), prompts.REVIEW, _SOBER
    )
    try:
        scores = [min(10, max(1, int(review[name]))) for name in ("soundness", "novelty", "testability")]
        critique, is_refuted = str(review["critique"]), bool(review["is_refuted"])
    except (KeyError, TypeError, ValueError) as error:
        raise Transient("llm_unusable", f"the review lacks something: {error!r}") from error
    score = 0.0 if is_refuted else (sum(scores) / len(scores) - 1) / 9
    return {"score": score, "critique": critique, "is_refuted": is_refuted}


def rank(task: Task) -> Json:
    """Points of each match. Each is judged in both orders: models prefer what comes first, or what comes last."""
    outcomes = []
    pairs = task.payload["pairs"]
    for place, (first, second) in enumerate(pairs, 1):
        points = (_points(task, first, second) + 1 - _points(task, second, first)) / 2
        outcomes.append({"first": first["id"], "second": second["id"], "points": points})
        task.progress(100 * place / len(pairs), f"match {place} of {len(pairs)}")
    return {"outcomes": outcomes}


def cluster(task: Task) -> Json:
    """Groups of ids of hypotheses that say the same; no id is in two groups."""
    entries = task.payload["hypotheses"]
    answer = _ask(task, prompts.proximity(task.payload["question"], entries), prompts.GROUPS, _SOBER)
    assigned_numbers: set[int] = set()
    groups = []
    for group in answer.get("groups") or ():
        numbers = [n for n in dict.fromkeys(group) if type(n) is int and 0 <= n < len(entries)]
        new_numbers = [n for n in numbers if n not in assigned_numbers]
        assigned_numbers |= set(new_numbers)
        if len(new_numbers) > 1:
            groups.append([entries[n]["id"] for n in new_numbers])
    return {"groups": groups}


def review(task: Task) -> Json:
    """Guidance for the next proposals, and a summary."""
    answer = _ask(task, prompts.meta_review(task.payload["question"], task.payload["best"]), prompts.SUMMARY, _SOBER)
    return {"guidance": str(answer.get("guidance", "")), "summary": str(answer.get("summary", ""))}


def _points(task: Task, first: Json, second: Json) -> float:
    answer = _ask(task, prompts.ranking(task.payload["question"], first, second), prompts.JUDGEMENT, _SOBER)
    return {"first": 1.0, "second": 0.0}.get(answer.get("better", ""), 0.5)


def _ask_hypotheses(task: Task, question: str, count: int) -> list[Json]:
    answer = _ask(task, question, prompts.HYPOTHESES, _CREATIVE)
    hypotheses = [
        {name: str(entry[name]) for name in prompts.HYPOTHESIS["required"]}
        for entry in answer.get("hypotheses") or ()
        if isinstance(entry, dict) and all(entry.get(name) for name in prompts.HYPOTHESIS["required"])
    ]
    if not hypotheses:
        raise Transient("llm_unusable", "the model wrote no hypothesis that can be used")
    return hypotheses[:count]


def _ask(task: Task, question: str, schema: Json, temperature: float) -> Json:
    answer = task.llm.ask(question, system=SYSTEM, schema=schema, temperature=temperature, max_tokens=_TOKENS).json()
    if not isinstance(answer, dict):
        raise Transient("llm_unusable", f"the model was to answer with an object, not {type(answer).__name__}")
    return answer


HANDLERS: dict[str, Callable[[Any], Json]] = {
    "generation": generate,
    "reflection": reflect,
    "ranking": rank,
    "evolution": evolve,
    "proximity": cluster,
    "meta_review": review,
}
