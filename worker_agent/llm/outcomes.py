"""Outcome of one call to the gateway, read from its answer."""

import json
import math
import re
from dataclasses import dataclass, field
from enum import StrEnum

import httpx

from worker_agent.json_weight import is_too_heavy
from worker_agent.llm.rate_limit_hints import RateLimitHints
from worker_agent.wire import JsonObject

_TEXT_CHARACTERS = 300
# No model reads or writes more; it refuses a request for more by itself.
MAX_TOKENS = 100_000_000
# Twice that of the longest answers with the odds of twenty tokens for each of theirs.
_MAX_WEIGHT = 4_000_000
_LOADING = re.compile(r"\b(model|cluster|server|instance)\b.*\b(is|being)\b.*(loading|loaded|starting)|cold.?start")
_NO_QUOTA = re.compile(r"insufficient_(quota|balance|credit|funds)|billing|no credits?|quota_exhausted|out of credit")
# A 403 about the question, not about who asks.
_ABOUT_CONTENT = re.compile(r"moderat|content_|flagged|safety|policy")
_RETRYABLE_STATUSES = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 522, 524, 529})


class Outcome(StrEnum):
    """Outcome of a call in the control plane's terms, as a permit is settled with it."""

    SUCCESS = "success"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CLIENT_ERROR = "client_error"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Token counts as the model reports them; None where it does not."""

    prompt: int | None = None
    completion: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailure:
    """A call without a usable answer; `body` is shown to the caller when nothing can be mended."""

    outcome: Outcome
    message: str
    status: int | None = None
    hints: RateLimitHints = field(default_factory=RateLimitHints)
    body: JsonObject | None = None
    # What no retry mends and yet is no fault of the request: a refused key, a used-up quota, maintenance, loading.
    condition: str | None = None

    @property
    def is_final(self) -> bool:
        """Whether the same request can never succeed, with any model."""
        return self.outcome is Outcome.CLIENT_ERROR and self.status != 404 and self.condition is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """A complete answer: one choice at least, and each says why it ended."""

    body: JsonObject
    model: str
    tokens: TokenUsage


def read_answer(status: int, content: bytes) -> ModelAnswer | CallFailure:
    """Read a whole answer, whose status is a success."""
    body = parse_json_object(content)
    if body is None:
        return CallFailure(
            outcome=Outcome.SERVER_ERROR, message="the answer is not JSON, or has too many values", status=status
        )
    if not is_complete(body):
        error = _error_message(body)
        message = f"the answer says: {error}" if error else "the answer is incomplete"
        return CallFailure(outcome=Outcome.SERVER_ERROR, message=message, status=status)
    return ModelAnswer(body=body, model=str(body.get("model") or ""), tokens=read_token_usage(body.get("usage")))


def read_refusal(status: int, content: bytes, hints: RateLimitHints) -> CallFailure:
    """Read a status other than success; a proxy in between may have answered with a page of its own."""
    body = parse_json_object(content)
    message = _error_message(body) or content[:_TEXT_CHARACTERS].decode(errors="replace")
    return CallFailure(
        outcome=_outcome(status),
        message=f"{status}: {message}",
        status=status,
        hints=hints,
        body=body,
        condition=_condition(status, f"{_error_word(body, 'code')} {_error_word(body, 'type')} {message}".lower()),
    )


def read_error(error: Exception) -> CallFailure:
    """Failure of a call that got no answer, or only a part of one."""
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return CallFailure(outcome=Outcome.TIMEOUT, message=f"no answer in time ({type(error).__name__})")
    return CallFailure(outcome=Outcome.SERVER_ERROR, message=f"{type(error).__name__}: {error}")


def read_token_usage(usage: object) -> TokenUsage:
    """Read the member `usage` of an answer."""
    if not isinstance(usage, dict):
        return TokenUsage()
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and 0 <= count <= MAX_TOKENS else None for count in counts)
    return TokenUsage(prompt=prompt, completion=completion)


def _outcome(status: int) -> Outcome:
    if status == 429:
        return Outcome.RATE_LIMITED
    if status in _RETRYABLE_STATUSES or status >= 500 or 300 <= status < 400:
        return Outcome.TIMEOUT if status in (408, 504, 524) else Outcome.SERVER_ERROR
    return Outcome.CLIENT_ERROR


def _condition(status: int, text: str) -> str | None:
    """The condition of the service that a refusal tells of, in the control plane's words."""
    if status >= 500 and "maintenance" in text:
        return "maintenance"
    if status >= 500 and _LOADING.search(text):
        return "loading"
    if status == 402 or (status in (403, 429) and _NO_QUOTA.search(text)):
        return "quota_exhausted"
    if status == 401 or (status == 403 and not _ABOUT_CONTENT.search(text)):
        return "key_expired"
    return None


def is_complete(answer: JsonObject) -> bool:
    """Whether the answer has a choice at least, and each says why it ended."""
    choices = answer.get("choices")
    return isinstance(choices, list) and bool(choices) and all(map(_is_finished, choices))


def _is_finished(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict) and bool(choice.get("finish_reason"))


def parse_json_object(content: bytes | str) -> JsonObject | None:
    """Parse a JSON object; None when it is none, or too dear. Numbers that JSON lacks (NaN, 1e999) become null."""
    if is_too_heavy(content if isinstance(content, bytes) else content.encode(), _MAX_WEIGHT):
        return None
    try:
        body = json.loads(content, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _error_word(body: JsonObject | None, name: str) -> str:
    error = (body or {}).get("error")
    word = error.get(name) if isinstance(error, dict) else (body or {}).get(name)
    return str(word or "")[:_TEXT_CHARACTERS]


def _error_message(body: JsonObject | None) -> str:
    error = (body or {}).get("error")
    text = error.get("message") if isinstance(error, dict) else error
    return str(text)[:_TEXT_CHARACTERS] if text else ""
