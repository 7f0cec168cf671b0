"""Waits of a model's turn at a question.

1. A permit that is refused is asked for again after the time that the control plane says. The request keeps its id, and
   by that its place in the queue there.
2. Of the calls of a task that wait for permits of a model, all but the first in line stand still. A call that finds
   nobody in line asks at once, and joins it when others are the reason of the refusal.
3. A cached answer is used instead where the question is repeatable, the wait long, or the model rests.
4. Another model is tried instead where this one cannot be had for a while, and, if there is one, after
   `_MAX_WAIT_SECONDS` of all waits together.
5. Nobody waits beyond the end of the task, which is set aside instead.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeGuard

from worker_agent.llm.outcomes import is_complete
from worker_agent.llm.permits import PermitRefusal
from worker_agent.llm.requests import Question, is_repeatable
from worker_agent.wire import JsonObject

# The longest wait for a model's limits while another model, or a cached answer, would do.
_MAX_WAIT_SECONDS = 10.0
# A service may ask for a day: its tasks come back when the control plane lets somebody try again.
MAX_AWAY_SECONDS = 300.0
# Reasons for which a call waits in line; a rate tells each of them its own time.
_LINE_REASONS = frozenset({"share", "concurrency"})
# Reasons for which the task is set aside, unless the model may be tried at once; and for how long without being told.
_CONDITIONS = frozenset({"key_expired", "quota_exhausted", "maintenance", "loading", "budget"})
_SHORT_WAIT_SECONDS = 0.5
CONDITION_SECONDS = 5.0


class TryNextModel(Exception):
    """This model cannot answer; `seconds` says when its limits may allow it, None when they are not the reason."""

    def __init__(
        self,
        message: str,
        seconds: float | None = None,
        cached_answer: JsonObject | None = None,
        awaited_model: str | None = None,
    ) -> None:
        super().__init__(message)
        self.seconds = seconds
        self.cached_answer = cached_answer
        self.awaited_model = awaited_model


class UseCachedAnswer(Exception):
    """An earlier answer serves as well."""

    def __init__(self, cached_answer: JsonObject) -> None:
        super().__init__("an earlier answer")
        self.cached_answer = cached_answer


@dataclass(slots=True, kw_only=True)
class ModelTurn:
    """One model's turn at a question: its failures and refusals in a row, and the seconds waited for it."""

    question: Question
    model: str
    has_other: bool
    random_fraction: Callable[[], float]
    failures: int = 0
    refusals: int = 0
    waited_seconds: float = 0.0
    fallbacks: tuple[str, ...] = ()

    def add_fallbacks(self, models: tuple[str, ...]) -> None:
        """Take over what operators name for this model alone."""
        self.fallbacks = models or self.fallbacks
        self.has_other = self.has_other or bool(self.fallbacks)

    async def wait(self, seconds: float, reason: str, cached_answer: JsonObject | None = None) -> None:
        """Wait for the model's limits. Raises TryNextModel when that takes too long."""
        self.waited_seconds += seconds
        if self.has_other and self.waited_seconds > _MAX_WAIT_SECONDS:
            raise TryNextModel(f"{reason} for another {seconds:.1f} s", seconds, cached_answer)
        if time.monotonic() + seconds > self.question.task_key.ends_at:
            message = f"{reason}; the task has no time left to wait {seconds:.1f} s"
            raise TryNextModel(message, min(seconds, MAX_AWAY_SECONDS), cached_answer)
        await asyncio.sleep(seconds)

    async def wait_out(self, refusal: PermitRefusal) -> None:
        """Wait for as long as the refusal says, unless a cached answer or another model serves better."""
        cached_answer = self.check_alternatives(refusal)
        # A tenth more at most, so that those who got the same delay do not all return at once.
        seconds = max(0.02, refusal.retry_after) * (1 + 0.1 * self.random_fraction())
        await self.wait(seconds, f"{self.model} has no room ({refusal.reason})", cached_answer)

    def check_alternatives(self, refusal: PermitRefusal) -> JsonObject | None:
        """The cached answer, if any; raises UseCachedAnswer or TryNextModel where one of these serves better."""
        waits_too_long = self.waited_seconds + refusal.retry_after > _MAX_WAIT_SECONDS
        prefers_cache = waits_too_long or is_repeatable(self.question.body)
        cached_answer = usable(refusal.cached_answer)
        if cached_answer is not None and (prefers_cache or refusal.reason == "breaker_open"):
            raise UseCachedAnswer(cached_answer)
        if refusal.reason in _CONDITIONS and refusal.retry_after > _SHORT_WAIT_SECONDS:
            seconds = refusal.park_seconds or refusal.retry_after
            message = f"{self.model} cannot be had ({refusal.reason})"
            raise TryNextModel(message, seconds, cached_answer, awaited_model=refusal.waits_for or self.model)
        if refusal.reason == "breaker_open":
            raise TryNextModel(f"{self.model} has failed too often and rests", refusal.retry_after)
        return cached_answer

    @asynccontextmanager
    async def first_in(self, line: asyncio.Lock) -> AsyncIterator[None]:
        """Wait to be the first in the line, and leave it at the end. Raises TryNextModel as `wait` does."""
        joined_at = time.monotonic()
        try:
            async with asyncio.timeout(_MAX_WAIT_SECONDS - self.waited_seconds if self.has_other else None):
                await line.acquire()
        except TimeoutError:
            raise TryNextModel(f"others wait for {self.model} before this call", CONDITION_SECONDS) from None
        self.waited_seconds += time.monotonic() - joined_at
        try:
            yield
        finally:
            line.release()


def is_for_line(answer: object) -> TypeGuard[PermitRefusal]:
    """Whether this is a refusal that is waited out in line."""
    return isinstance(answer, PermitRefusal) and answer.reason in _LINE_REASONS


def usable(cached_answer: JsonObject | None) -> JsonObject | None:
    """The cached answer, or None where another worker has stored something that is none."""
    answer = (cached_answer or {}).get("answer")
    return cached_answer if isinstance(answer, dict) and is_complete(answer) else None
