"""Prompts of the agents, and the JSON schemas of the answers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

_SCORES = ("soundness", "novelty", "testability")
SYSTEM = (
    "You are one of several scientists who pursue a research question together. Be specific, be honest about what is "
    "not known, and answer in JSON only."
)


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(of: Json) -> Json:
    return {"type": "array", "items": of}


_TEXT: Json = {"type": "string"}
HYPOTHESIS = _object(title=_TEXT, statement=_TEXT, mechanism=_TEXT, test=_TEXT)
# Some services take objects only as the outermost shape.
HYPOTHESES = _object(hypotheses=_list(HYPOTHESIS))
REVIEW = _object(
    **{name: {"type": "integer", "minimum": 1, "maximum": 10} for name in _SCORES},
    critique=_TEXT,
    is_refuted={"type": "boolean"},
)
JUDGEMENT = _object(reasoning=_TEXT, better={"enum": ["first", "second", "neither"]})
GROUPS = _object(groups=_list(_list({"type": "integer"})))
SUMMARY = _object(guidance=_TEXT, summary=_TEXT)


def hypothesis(entry: Mapping[str, Any]) -> str:
    """A hypothesis as a model reads it."""
    return json.dumps({name: entry[name] for name in HYPOTHESIS["required"]}, ensure_ascii=False)


def generation(question: str, count: int, guidance: str, titles: Sequence[str]) -> str:
    """Prompt for new hypotheses, unlike those with these titles."""
    return (
        f"Research question: {question}\n{_advice(guidance)}"
        f"Already proposed, so propose something else: {json.dumps(titles, ensure_ascii=False)}\n"
        f"Propose {count} different hypotheses, each with a title, a statement, the mechanism behind it, and an "
        "experiment or observation that could refute it."
    )


def reflection(question: str, entry: Mapping[str, Any]) -> str:
    """Prompt for a review, as by a skeptical referee."""
    return (
        f"Research question: {question}\nHypothesis: {hypothesis(entry)}\n"
        "Review it as a sceptical referee. Score soundness, novelty and testability from 1 to 10, name the weakest "
        "point in `critique`, and say in `is_refuted` whether well-known facts contradict it."
    )


def ranking(question: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Prompt for the better of two hypotheses."""
    return (
        f"Research question: {question}\nFirst: {hypothesis(first)}\nIts critique: {first['critique']}\n"
        f"Second: {hypothesis(second)}\nIts critique: {second['critique']}\n"
        "Which is more likely to be right, new and useful? Weigh both before you decide; the order means nothing."
    )


def evolution(question: str, parents: Sequence[Mapping[str, Any]], count: int, guidance: str) -> str:
    """Prompt for better hypotheses derived from good ones."""
    lines = "\n".join(f"- {hypothesis(parent)} Critique: {parent['critique']}" for parent in parents)
    return (
        f"Research question: {question}\n{_advice(guidance)}The best hypotheses so far:\n{lines}\n"
        f"Write {count} that are better: meet the critique, combine strengths, simplify, or draw a bolder conclusion."
    )


def proximity(question: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """Prompt for groups of hypotheses that say the same."""
    lines = "\n".join(f"{place}. {entry['title']}: {entry['statement']}" for place, entry in enumerate(entries))
    return (
        f"Research question: {question}\nHypotheses:\n{lines}\n"
        "Group those that say the same in other words: lists of their numbers. Leave out whatever stands alone."
    )


def meta_review(question: str, best: Sequence[Mapping[str, Any]]) -> str:
    """Prompt for guidance and a summary."""
    lines = "\n".join(f"- {hypothesis(entry)} Critique: {entry['critique']}" for entry in best)
    return (
        f"Research question: {question}\nThe best hypotheses, best first:\n{lines}\n"
        "Say in `guidance` what the next proposals should try and avoid, and in `summary` what is known by now."
    )


def _advice(guidance: str) -> str:
    return f"Advice of the last review: {guidance}\n" if guidance else ""
