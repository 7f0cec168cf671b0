"""Prepares a caller's request for a model: its shape, its digest, and an estimate of its tokens."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from worker_agent.llm.outcomes import MAX_TOKENS
from worker_agent.llm.task_keys import TaskKey
from worker_agent.tracing.context import read_traceparent
from worker_agent.wire import JsonObject

# OpenAI's reasoning models refuse `max_tokens`. Gateways put a prefix before the name, or leave its hyphens out.
_WANTS_COMPLETION_TOKENS = re.compile(r"(?:^|[:/])(?:gpt-?)?(?:o\d|5)")
_CHARACTERS_PER_TOKEN = 4
_DEFAULT_ANSWER_TOKENS = 512
# These members do not change the answer, so the digest leaves them out.
_IRRELEVANT_MEMBERS = frozenset({"stream", "stream_options", "user", "metadata", "store", "service_tier"})


def wants_completion_tokens(model: str) -> bool:
    """Whether the model is known to refuse `max_tokens` and to want `max_completion_tokens`."""
    return _WANTS_COMPLETION_TOKENS.search(model.lower()) is not None


def for_model(body: Mapping[str, object], model: str, *, completion_tokens: bool) -> JsonObject:
    """Return the request for this model, with its token limit under the name that the model accepts."""
    request: JsonObject = {**body, "model": model}
    token_limits = [request.pop(name, None) for name in ("max_completion_tokens", "max_tokens")]
    limit = next((value for value in token_limits if value is not None), None)
    if limit is not None:
        request["max_completion_tokens" if completion_tokens else "max_tokens"] = limit
    if request.get("stream"):
        # Without it a stream never reports its token usage.
        options = request.get("stream_options")
        request["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return request


def digest(body: Mapping[str, object], model: str) -> str:
    """SHA-256 in hexadecimal of model and request, without what does not change the answer; keys sorted, no blanks."""
    plain = for_model(body, model, completion_tokens=False)
    question = {name: value for name, value in plain.items() if name not in _IRRELEVANT_MEMBERS}
    return hashlib.sha256(json.dumps(question, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_repeatable(body: Mapping[str, object]) -> bool:
    """Whether the caller wants the same answer to the same question, as at temperature 0."""
    return body.get("temperature") == 0


def estimated_tokens(body: Mapping[str, object]) -> int:
    """Estimate, corrected at settlement: a token per four characters of question, plus the longest answer allowed."""
    limits = [body.get(name) for name in ("max_completion_tokens", "max_tokens")]
    answer_tokens = next((int(limit) for limit in limits if type(limit) is int and limit > 0), _DEFAULT_ANSWER_TOKENS)
    choice_count = body.get("n")
    choices = choice_count if type(choice_count) is int and choice_count > 0 else 1
    return min(MAX_TOKENS, question_tokens(body) + answer_tokens * choices)


def question_tokens(body: Mapping[str, object]) -> int:
    """Estimate of the tokens of a question alone."""
    return min(MAX_TOKENS, len(json.dumps(body.get("messages", ""))) // _CHARACTERS_PER_TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A chat completion requested by a task; `model` heads the chain."""

    body: JsonObject
    task_key: TaskKey
    model: str
    # That of the caller's own span, where it has sent one.
    traceparent: str | None = None

    @property
    def trace_context(self) -> str | None:
        """The trace context that the call goes on with: the caller's own, if it belongs to its task's, or that."""
        of_task = self.task_key.lease.trace_context
        task, own = read_traceparent(of_task), read_traceparent(self.traceparent)
        is_part = task and own and (own.trace_id, own.is_sampled) == (task.trace_id, task.is_sampled)
        return self.traceparent if is_part else of_task

    @property
    def cache_key(self) -> str:
        """Digest under which the answer of the requested model is cached."""
        return digest(self.body, self.model)
