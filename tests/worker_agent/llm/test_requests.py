"""What is sent to a model, and what tells two questions apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.llm.requests import digest, estimated_tokens, for_model, is_repeatable, wants_completion_tokens

ASKED = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 100}


@pytest.mark.parametrize(
    "model", ["o1", "o3-mini", "gpt-5", "gpt-5.2-mini", "argo:o4-mini", "argo:gpto3mini", "openai/gpt-5"]
)
def test_reasoning_models_want_completion_tokens(model: str) -> None:
    assert wants_completion_tokens(model)


@pytest.mark.parametrize(
    "model", ["gpt-4.1", "argo:gpt-4o", "gpt4o", "smollm2", "llama-3-8b", "claude-opus-4", "gpt-3.5-turbo"]
)
def test_others_do_not(model: str) -> None:
    assert not wants_completion_tokens(model)


def test_the_limit_goes_under_the_name_that_the_model_knows() -> None:
    assert for_model(ASKED, "gpt-5", completion_tokens=True) == {
        "model": "gpt-5",
        "messages": ASKED["messages"],
        "max_completion_tokens": 100,
    }
    assert for_model({"max_completion_tokens": 7}, "m", completion_tokens=False) == {
        "model": "m",
        "max_tokens": 7,
    }
    assert for_model({}, "m", completion_tokens=True) == {"model": "m"}


def test_a_stream_is_asked_for_its_cost() -> None:
    request = for_model({"stream": True, "stream_options": {"x": 1}}, "m", completion_tokens=False)
    assert request["stream_options"] == {"x": 1, "include_usage": True}


def test_the_digest_is_of_the_question_alone() -> None:
    one = digest(ASKED, "m")
    assert len(one) == 64
    same = {"max_completion_tokens": 100, "messages": ASKED["messages"], "stream": True, "user": "somebody"}
    assert digest(same, "m") == one
    assert digest(ASKED, "other") != one
    assert digest({**ASKED, "temperature": 1}, "m") != one


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_the_order_of_members_does_not_matter(body: dict[str, object]) -> None:
    assert digest(body, "m") == digest(dict(reversed(body.items())), "m")


def test_tokens_are_guessed_from_question_and_limit() -> None:
    assert estimated_tokens(ASKED) == 100 + len('[{"role": "user", "content": "Why?"}]') // 4
    assert estimated_tokens({**ASKED, "n": 3}) > 300


def test_only_a_cold_question_wants_the_same_answer() -> None:
    assert is_repeatable({"temperature": 0})
    assert not is_repeatable({"temperature": 0.7})
    assert not is_repeatable({})
