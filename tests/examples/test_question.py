"""A study with a model whose taste is known: it must end with what the model likes best, and repeat itself."""

import json
import re
from typing import Any

import pytest

from examples.question import agents
from examples.question.__main__ import text
from examples.question.study import Findings, Study
from examples.question.tournament import Hypothesis, Tournament
from examples.supervising.client import Convener
from examples.supervising.elo import START
from tests.examples.fake_convener import FakeConvener, InstantTask
from worker_agent import Task
from worker_agent.failures import Transient
from worker_agent.language_model import LanguageModel

Json = dict[str, Any]
LIMITS: Json = {
    "min_iterations": 1,
    "max_iterations": 4,
    "improvement_unit": "win_probability",
    "improvement_threshold": 0.001,
    "patience": 3,
}


class Taste(LanguageModel):
    """Writes hypotheses of a strength, likes the stronger one, and prefers what stands first when they are equal."""

    def __init__(self) -> None:
        super().__init__("http://nowhere", "none")

    def chat(self, body: Json) -> Json:
        question = body["messages"][-1]["content"]
        shape = body["response_format"]["json_schema"]["schema"]["properties"]
        answer: Json
        if "hypotheses" in shape:
            answer = {"hypotheses": self._written(question)}
        elif "better" in shape:
            one, other = (self._strength(part) for part in question.split("Second: "))
            answer = {"reasoning": "taste", "better": "first" if one >= other else "second"}
        elif "groups" in shape:
            answer = {"groups": self._alike(question)}
        elif "critique" in shape:
            scores = dict.fromkeys(("soundness", "novelty", "testability"), 5)
            answer = {**scores, "critique": "could be stronger", "is_refuted": self._strength(question) == 0}
        else:
            answer = {"guidance": "be strong", "summary": "strength wins"}
        return {"choices": [{"message": {"content": json.dumps(answer)}, "finish_reason": "stop"}]}

    def _written(self, question: str) -> list[Json]:
        count = int(re.search(r"(?:Propose|Write) (\d+)", question)[1])  # type: ignore[index]
        base = max((int(found) for found in re.findall(r"strength (\d+)", question)), default=-1) + 1
        return [self._hypothesis(base + place) for place in range(count)]

    @staticmethod
    def _hypothesis(strength: int) -> Json:
        said = f"strength {strength}"
        return {"title": said, "statement": said, "mechanism": "m", "test": "t"}

    @staticmethod
    def _strength(text: str) -> int:
        return int(re.findall(r"strength (\d+)", text)[-1])

    @staticmethod
    def _alike(question: str) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for place, strength in re.findall(r"^(\d+)\. strength (\d+)", question, flags=re.MULTILINE):
            groups.setdefault(strength, []).append(int(place))
        return list(groups.values())


class TaskWithTaste(InstantTask):
    """A task of a worker that has this model."""

    llm = Taste()


def study(service: FakeConvener) -> Findings:
    client = Convener("http://convener", "key", transport=service.transport, sleep=lambda seconds: None)
    with client:
        told: list[str] = []
        return Study(client, goal_id="g", question="What wins?", constraints=LIMITS, report=told.append).pursue()


def convener(**options: Any) -> FakeConvener:
    return FakeConvener(handlers=agents.HANDLERS, make_task=TaskWithTaste, **options)


def test_the_strongest_wins_and_the_refuted_are_out() -> None:
    service = convener()
    findings = study(service)

    written = [task["result"].get("hypotheses", []) for task in service.tasks.values() if task["result"]]
    strongest = max(int(entry["title"].split()[1]) for entries in written for entry in entries)
    ratings = [entry.elo for entry in findings.best]
    strengths = [int(entry.content["title"].split()[1]) for entry in findings.best]
    assert ratings == sorted(ratings, reverse=True)
    assert strongest in strengths
    assert 0 not in strengths, "what the review has refuted takes no part"
    assert findings.merged > 0
    assert findings.summary == "strength wins"
    assert "strength" in text(findings)


def test_a_study_is_the_same_whatever_the_network_does() -> None:
    assert study(convener(chaos_seed=3, faults=0.1)) == study(convener(chaos_seed=4, faults=0.2))


def test_the_service_ends_it() -> None:
    service = convener()
    findings = study(service)
    assert findings.rounds <= 4
    assert findings.stopped_because == service.stopped


def test_a_judge_who_prefers_what_stands_first_decides_nothing() -> None:
    pair = [{**Taste._hypothesis(7), "id": str(place), "critique": ""} for place in range(2)]
    task = Task(agent_type="ranking", payload={"question": "?", "pairs": [pair]}, llm=Taste())
    assert agents.rank(task)["outcomes"] == [{"first": "0", "second": "1", "points": 0.5}]


class Says(LanguageModel):
    """Answers with this, whatever is asked."""

    def __init__(self, answer: object) -> None:
        super().__init__("http://nowhere", "none")
        self._answer = answer

    def chat(self, body: Json) -> Json:
        return {"choices": [{"message": {"content": json.dumps(self._answer)}, "finish_reason": "stop"}]}


_PAYLOAD: Json = {
    "question": "?",
    "count": 2,
    "guidance": "",
    "known": [],
    "parents": [],
    "hypothesis": Taste._hypothesis(1),
    "hypotheses": [{**Taste._hypothesis(n), "id": str(n)} for n in range(3)],
    "best": [],
}


@pytest.mark.parametrize("agent_type", ["generation", "evolution", "reflection"])
@pytest.mark.parametrize("answer", [{}, [], {"hypotheses": [{"title": "half"}]}, {"soundness": "very"}, "text"])
def test_an_answer_that_cannot_be_used_is_asked_for_again(agent_type: str, answer: object) -> None:
    with pytest.raises(Transient):
        agents.HANDLERS[agent_type](Task(agent_type=agent_type, payload=_PAYLOAD, llm=Says(answer)))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([[0, 1], [1, 2]], [["0", "1"]]),
        ([[0, 0, 9, -1, True, "1"]], []),
        (None, []),
        ([[2, 0]], [["2", "0"]]),
    ],
)
def test_groups_are_made_of_what_is_there_and_nobody_is_in_two(groups: object, expected: list[list[str]]) -> None:
    task = Task(agent_type="proximity", payload=_PAYLOAD, llm=Says({"groups": groups}))
    assert agents.cluster(task)["groups"] == expected


def test_who_says_the_same_shares_one_place() -> None:
    tournament = Tournament()
    entries = [
        Hypothesis(id=str(n), arm="exploration", content=Taste._hypothesis(1), critique="", score=0.5, matches=n)
        for n in range(3)
    ]
    tournament.admit(entries)
    tournament.merge([["0", "1", "2"], ["2", "0"]])
    assert [entry.id for entry in tournament.ranked()] == ["2"]
    assert tournament.ranked()[0].elo == START
