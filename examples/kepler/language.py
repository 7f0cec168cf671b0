"""The same agents with a language model: the model writes the proposals and the summary, and the data judge them.

Generation lets the model write laws, evolution lets it choose what to change in the best ones, meta-review lets it sum
up. Reflection, ranking and proximity stay with the data: a model small enough for any machine cannot tell a good
formula from a bad one, but it need not.
"""

from collections.abc import Callable, Sequence
from itertools import product
from random import Random
from typing import Any, Protocol

from examples.kepler.agents.evolution import VARIATIONS
from examples.kepler.agents.generation import MAX_SIZE
from examples.kepler.agents.meta_review import review as review_data
from examples.kepler.agents.proximity import cluster
from examples.kepler.agents.ranking import rank
from examples.kepler.agents.reflection import reflect
from examples.kepler.expressions import Tree, size, variables
from examples.kepler.notation import text
from examples.kepler.simplify import without_coefficient
from examples.supervising.task import Json, batch
from examples.supervising.task import Task as PlainTask

_POWERS = {"1/3": 1 / 3, "1/2": 0.5, "2/3": 2 / 3, "1": 1.0, "4/3": 4 / 3, "5/3": 5 / 3, "2": 2.0, "5/2": 2.5, "3": 3.0}
# Kepler's own exponent is not among the powers: the model may only come near it, and the fit goes on from there.
_FACTORS: "dict[str, Tree | None]" = {
    "": None,
    " * e": "e",
    " * m": "m",
    " * sqrt(e)": ["sqrt", "e"],
    " * sqrt(m)": ["sqrt", "m"],
}
_LAWS: dict[str, Tree] = {
    f"a^{power}{factor}": ["pow", "a", value] if tree is None else ["*", ["pow", "a", value], tree]
    for (power, value), (factor, tree) in product(_POWERS.items(), _FACTORS.items())
}
_SHOWN = 4
_TEMPERATURE = 1.2
_SYSTEM = "You are a natural philosopher who answers in JSON."


class Answer(Protocol):
    """An answer of the language model."""

    text: str

    def json(self) -> Any: ...


class LanguageModel(Protocol):
    """The part of a task's language model that these agents use."""

    def ask(self, question: str, *, system: str, schema: Json, temperature: float, max_tokens: int) -> Answer: ...


class Task(PlainTask, Protocol):
    """A task whose worker has a language model."""

    @property
    def llm(self) -> LanguageModel: ...


def generate(task: Task) -> Json:
    """`count` laws that the model writes."""
    count = batch(task)
    question = (
        "The period T of a planet depends on its distance a from the Sun, perhaps on eccentricity e and mass m. "
        f"Write {count} different laws for T."
    )
    written = _choices(task, question, tuple(_LAWS), count)
    return {"formulas": [{"tree": _LAWS[law], "origin": "written"} for law in written]}


def evolve(task: Task) -> Json:
    """`count` children of `parents`: the model chooses the change and the parent, and the change is carried out."""
    rng, count = Random(task.payload["seed"]), batch(task)
    parents: list[Json] = task.payload["parents"][:_SHOWN]
    listed = "; ".join(f"{place}. {text(parent['tree'])}" for place, parent in enumerate(parents, 1))
    changes = {f"{name} {place}": (name, place - 1) for name in VARIATIONS for place in range(1, len(parents) + 1)}
    question = f"The best laws for the period T of a planet so far: {listed}. Choose {count} changes to try."
    formulas: list[Json] = []
    for choice in _choices(task, question, tuple(changes), count):
        name, place = changes[choice]
        formulas.append({"tree": _changed(rng, name, parents[place:], task.payload["guidance"]), "origin": name})
    return {"formulas": formulas}


def review(task: Task) -> Json:
    """Guidance from the data, with a summary in the words of the model."""
    result = review_data(task)
    schema = {
        "type": "object",
        "properties": {"summary": {"type": "string", "minLength": 20, "maxLength": 200}},
        "required": ["summary"],
        "additionalProperties": False,
    }
    question = f"Sum up in one sentence what was found: {result['summary']}"
    answer = task.llm.ask(question, system=_SYSTEM, schema=schema, temperature=0.7, max_tokens=120)
    return result | {"summary": f"{result['summary']} In the model's words: {answer.json()['summary']}"}


def _choices(task: Task, question: str, among: Sequence[str], count: int) -> list[str]:
    """Let the model choose `count` of the given words; the schema allows no others."""
    schema = {"type": "array", "items": {"enum": list(among)}, "minItems": count, "maxItems": count}
    answer = task.llm.ask(question, system=_SYSTEM, schema=schema, temperature=_TEMPERATURE, max_tokens=40 * count)
    chosen = [str(word) for word in answer.json() if word in among]
    task.progress(100.0, f"the model wrote {len(chosen)} of {count}")
    return chosen


def _changed(rng: Random, name: str, parents: list[Json], guidance: Json) -> Tree:
    """The first of these parents after the change; unchanged where nothing useful comes of it."""
    for _ in range(20):
        tree, _coefficient = without_coefficient(VARIATIONS[name](rng, parents, guidance))
        if variables(tree) and size(tree) <= MAX_SIZE:
            return tree
    unchanged: Tree = parents[0]["tree"]
    return unchanged


HANDLERS: dict[str, Callable[[Any], Json]] = {
    "generation": generate,
    "reflection": reflect,
    "ranking": rank,
    "evolution": evolve,
    "proximity": cluster,
    "meta_review": review,
}
