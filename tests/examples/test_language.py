"""The Kepler agents with a language model: what they ask, and what they make of the answers."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from examples.kepler import language
from examples.kepler.agents.reflection import reflect
from examples.kepler.expressions import size, variables
from tests.examples.fake_convener import InstantTask
from worker_agent.failures import Transient
from worker_agent.language_model import Answer


@dataclass
class Model:
    """Chooses the n-th of the words that the schema allows, or says what it is told to."""

    says: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, question: str, **options: Any) -> Answer:
        self.asked.append({"question": question, **options})
        schema = options["schema"]
        content = self.says
        if content is None and schema["type"] == "array":
            words, count = schema["items"]["enum"], schema["minItems"]
            content = str([words[place % len(words)] for place in range(count)]).replace("'", '"')
        elif content is None:
            content = '{"summary": "The period grows with the distance."}'
        return Answer({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})


class TaskWithModel(InstantTask):
    """A task of a worker that has a language model."""

    def __init__(self, payload: dict[str, Any], model: Model) -> None:
        super().__init__(payload)
        self.llm = model


PARENTS = [{"id": "1", "tree": ["pow", "a", 1.4]}, {"id": "2", "tree": ["*", "a", "m"]}]
COMMON = {"seed": "1/0", "count": 5, "guidance": {"operators": {}, "variables": {}, "exponent": None}}


def test_generation_takes_the_laws_that_the_model_wrote() -> None:
    model = Model()
    result = language.generate(TaskWithModel(dict(COMMON), model))
    assert len(result["formulas"]) == 5
    reviewed = reflect(InstantTask({"formulas": result["formulas"], "evaluations": 8}))
    assert reviewed["reviews"], "what the model may write can be fitted"
    assert "Write 5 different laws" in model.asked[0]["question"]


def test_the_model_is_not_told_the_law() -> None:
    model = Model()
    language.generate(TaskWithModel(dict(COMMON), model))
    assert not any("3/2" in word or "1.5" in word for word in model.asked[0]["schema"]["items"]["enum"])


def test_evolution_carries_out_the_changes_that_the_model_chose() -> None:
    model = Model()
    result = language.evolve(TaskWithModel({**COMMON, "parents": PARENTS}, model))
    assert len(result["formulas"]) == 5
    assert all(variables(each["tree"]) and size(each["tree"]) <= 15 for each in result["formulas"])
    assert "1. a^1.400; 2. a * m" in model.asked[0]["question"]


def test_what_the_model_may_not_say_is_left_out() -> None:
    model = Model(says='["a^1", "T = 42"]')
    result = language.generate(TaskWithModel(dict(COMMON), model))
    assert len(result["formulas"]) == 1


def test_an_answer_that_is_no_json_is_tried_again_later() -> None:
    with pytest.raises(Transient):
        language.generate(TaskWithModel(dict(COMMON), Model(says="I would say")))


def test_meta_review_sums_up_in_the_models_words() -> None:
    best = [{"tree": ["pow", "a", 1.5], "scale": 1.0, "held_out_error": 0.01, "remarks": []}]
    result = language.review(TaskWithModel({"best": best}, Model()))
    assert result["summary"].endswith("In the model's words: The period grows with the distance.")
    assert result["guidance"]["exponent"]["centre"] == pytest.approx(1.5)
