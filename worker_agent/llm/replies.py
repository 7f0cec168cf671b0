"""Replies to a handler: an answer, perhaps a degraded one, or the error that explains its absence."""

from dataclasses import dataclass
from enum import StrEnum

from worker_agent.llm.outcomes import CallFailure
from worker_agent.wire import JsonObject


class Degradation(StrEnum):
    """Way in which an answer falls short of the request."""

    CACHED = "cached"
    FALLBACK = "fallback"
    # The gateway has silently used another model than the one in the request.
    SUBSTITUTED = "substituted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer in the protocol's shape, extended by the member `convener`."""

    body: JsonObject
    model: str
    degradation: Degradation | None = None


class NoCapacity(Exception):
    """The model's limits leave no room within the time that the task has; no fault of the task."""

    def __init__(self, seconds: float, message: str, model: str | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds
        # The model that the task waits for, where it is a condition of its service that leaves no room.
        self.model = model


class NoAnswer(Exception):
    """No model of the chain gave an answer."""


class RequestRefused(Exception):
    """The gateway refuses this very request, whatever model it is for."""

    def __init__(self, failure: CallFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def degradation_of(asked_model: str, sent_to: str, answered_by: str) -> Degradation | None:
    """Degradation of an answer, from the model asked for, the one called, and the one that answered."""
    if not is_same_model(sent_to, answered_by):
        return Degradation.SUBSTITUTED
    return None if sent_to == asked_model else Degradation.FALLBACK


def is_same_model(model: str, other_model: str) -> bool:
    """Whether two names mean the same model: gateways add a prefix, providers the date of a version."""
    first, second = _normalized_name(model), _normalized_name(other_model)
    return not second or first.startswith(second) or second.startswith(first)


def with_origin(
    body: JsonObject, *, asked_model: str, degradation: Degradation | None, stored_at: object = None
) -> JsonObject:
    """Return the answer with its origin in the member `convener`."""
    origin: JsonObject = {"asked_model": asked_model, "degraded": degradation.value if degradation else None}
    return {**body, "convener": origin | ({"stored_at": stored_at} if stored_at else {})}


def _normalized_name(name: str) -> str:
    return "".join(character for character in name.lower().rpartition(":")[2].rpartition("/")[2] if character.isalnum())
