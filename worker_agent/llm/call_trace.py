"""Spans of calls to language models, by OpenTelemetry's conventions for generative AI, without a word of content."""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from worker_agent.llm.outcomes import Outcome
from worker_agent.llm.permits import Settlement
from worker_agent.tracing.context import read_traceparent
from worker_agent.tracing.spans import Kind, Span, Tracing, Value
from worker_agent.wire import JsonObject

# What a gateway answers may be of any length.
_WORD_CHARACTERS, _MAX_CHOICES = 200, 16
# For an integer of the protocol.
_TOO_LARGE = 2**63
_NUMBERS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}


@dataclass(slots=True)
class CallTrace:
    """The span of one call, if it is recorded, and the `traceparent` that goes with the call."""

    tracing: Tracing | None = None
    span: Span | None = None
    traceparent: str | None = None

    def add_answer(self, body: JsonObject) -> None:
        """Note which model has answered and why it ended."""
        if self.span is None:
            return
        words = {"gen_ai.response.id": body.get("id"), "gen_ai.response.model": body.get("model")}
        self.span.attributes |= {name: _word(word) for name, word in words.items() if isinstance(word, str) and word}
        reasons = _finish_reasons(body.get("choices"))
        if reasons:
            self.span.attributes["gen_ai.response.finish_reasons"] = reasons

    def end(self, settlement: Settlement) -> None:
        """End the span as the call has ended."""
        span, self.span = self.span, None
        if span is None or self.tracing is None:
            return
        tokens = {"input": settlement.tokens.prompt, "output": settlement.tokens.completion}
        span.attributes |= {f"gen_ai.usage.{kind}_tokens": count for kind, count in tokens.items() if count is not None}
        if settlement.status is not None:
            span.attributes["http.response.status_code"] = settlement.status
        self.tracing.end(span, error=_error(settlement))


UNTRACED = CallTrace()


class CallTraces:
    """Begins the spans of calls to the gateway at this address."""

    def __init__(self, tracing: Tracing | None = None, url: str = "") -> None:
        self._tracing = tracing
        parts = urlsplit(url)
        self._server = {"server.address": parts.hostname or ""}
        self._port = parts.port or (443 if parts.scheme == "https" else 80)

    def begin(self, request: JsonObject, trace_context: str | None) -> CallTrace:
        """A call in this context; it is recorded if the context says so."""
        parent = read_traceparent(trace_context)
        if self._tracing is None or parent is None or not parent.is_sampled:
            return CallTrace(traceparent=trace_context)
        model = _word(str(request.get("model")))
        span = self._tracing.start(f"chat {model}", Kind.CLIENT, parent)
        if span is None:
            return CallTrace(traceparent=trace_context)
        span.attributes = {
            "gen_ai.operation.name": "chat",
            # That of the protocol; which provider is behind the gateway nobody knows here.
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": model,
            "server.port": self._port,
            **self._server,
        }
        span.attributes |= _numbers(request)
        return CallTrace(self._tracing, span, span.context.text)


def _numbers(request: JsonObject) -> dict[str, Value]:
    numbers: dict[str, Value] = {}
    for member, name in _NUMBERS.items():
        value = request.get(member)
        if type(value) is float or (type(value) is int and abs(value) < _TOO_LARGE):
            numbers[name] = value
    return numbers


def _error(settlement: Settlement) -> str | None:
    if settlement.outcome is Outcome.SUCCESS:
        return None
    return settlement.error_code or str(settlement.status or settlement.outcome.value)


def _finish_reasons(choices: object) -> list[str]:
    if not isinstance(choices, Iterable):
        return []
    reasons = (choice.get("finish_reason") for choice in choices if isinstance(choice, dict))
    return [_word(reason) for reason in reasons if isinstance(reason, str)][:_MAX_CHOICES]


def _word(text: str) -> str:
    return text[:_WORD_CHARACTERS].encode("utf-8", "replace").decode()
