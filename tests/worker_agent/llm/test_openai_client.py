"""The OpenAI client, unchanged: all it is told is what stands in the environment of a task."""

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.worker_agent.llm.conftest import Bench, Start, wait_until_settled
from tests.worker_agent.llm.provider import Provider, refuses, says

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why?"}]


def _client(bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float = 60.0) -> openai.OpenAI:
    for name, value in bench.access(seconds).environment.items():
        monkeypatch.setenv(name, value)
    return openai.OpenAI()


def test_it_is_answered(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = start(Provider.of(says("It is a law.")))
    with _client(bench, monkeypatch) as client:
        answer = client.chat.completions.create(model="gpt-4.1", messages=ASKED, max_tokens=9)
        assert answer.choices[0].message.content == "It is a law."
        assert [model.id for model in client.models.list()] == ["gpt-4.1", "gpt-4.1-mini"]
    wait_until_settled(bench, 1)


def test_it_streams(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = start(Provider.of(says("It is a law.")))
    with _client(bench, monkeypatch) as client:
        stream = client.chat.completions.create(model="gpt-4.1", messages=ASKED, stream=True)
        words = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(words) == "It is a law. "
    wait_until_settled(bench, 1)


def test_it_does_not_try_again_what_was_tried_enough(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = start(Provider.of(then=refuses(429, {"retry-after": "40"})), models=("gpt-4.1",))
    with _client(bench, monkeypatch, seconds=5) as client, pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="gpt-4.1", messages=ASKED)
    assert len(bench.upstream.requests) == 1
