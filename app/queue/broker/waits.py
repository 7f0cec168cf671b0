"""Calls for tasks that one request makes for many workers, and that wait together in the broker."""

import asyncio
from collections.abc import Callable
from math import ceil
from typing import Generic, TypeVar

from app.queue.broker.broker import Broker
from app.queue.broker.calls import LeaseCall, Waiter
from app.queue.store.claims import Lease

Key = TypeVar("Key")
Outcome = Lease | Exception | None
# Waits that end within so many seconds of each other end together, by one timer.
_TICK_SECONDS = 0.05


class SharedAnswer(Generic[Key]):
    """The place of the answer to one of the calls."""

    __slots__ = ("_is_cancelled", "_is_done", "_waits", "key", "waiter")

    def __init__(self, waits: "Waits[Key]", key: Key) -> None:
        self.key = key
        self.waiter: Waiter | None = None
        self._waits = waits
        self._is_done = self._is_cancelled = False

    def done(self) -> bool:
        """Whether there is an answer, or nobody wants one any more."""
        return self._is_done

    def cancelled(self) -> bool:
        """Whether nobody wants an answer any more."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Note that nobody wants an answer any more."""
        self._is_done = self._is_cancelled = True

    def set_result(self, result: Lease | None) -> None:
        """Answer."""
        self._is_done = True
        self._waits.settle(self, result)

    def set_exception(self, exception: Exception) -> None:
        """Answer with an error."""
        self._is_done = True
        self._waits.settle(self, exception)


class Waits(Generic[Key]):
    """Hands outcomes to `deliver` with the keys of their calls, and calls `wake` when it was tried to serve some."""

    def __init__(self, broker: Broker, deliver: Callable[[Key, Outcome], None], wake: Callable[[], None]) -> None:
        self._broker = broker
        self._deliver = deliver
        self._wake = wake
        self._open: dict[SharedAnswer[Key], None] = {}
        self._untried: list[Waiter] = []
        self._ends: dict[int, tuple[asyncio.TimerHandle, list[Waiter]]] = {}
        self._is_closed = False

    @property
    def is_trying(self) -> bool:
        """Whether it was not yet tried to serve some of the calls."""
        while self._untried:
            if not (self._untried[-1].is_tried or self._untried[-1].answer.done()):
                return True
            self._untried.pop()
        return False

    def add(self, key: Key, call: LeaseCall, wait_seconds: float) -> None:
        """Let a call wait, unless nobody wants answers any more. Raises ShuttingDown."""
        if self._is_closed:
            # Not even for a moment: it would end a newer call of the same worker.
            return
        answer = SharedAnswer(self, key)
        waiter = self._broker.join(call, answer, may_wait=wait_seconds > 0, on_try=self._wake)
        answer.waiter = waiter
        self._open[answer] = None
        self._untried.append(waiter)
        if wait_seconds:
            self._end_after(wait_seconds, waiter)

    def settle(self, answer: SharedAnswer[Key], outcome: Outcome) -> None:
        """Hand over the outcome of a call."""
        self._open.pop(answer, None)
        self._leave(answer)
        self._deliver(answer.key, outcome)

    def close(self) -> None:
        """Withdraw the calls that wait; a lease that a claim in flight brings is released."""
        self._is_closed = True
        for timer, _ in self._ends.values():
            timer.cancel()
        for answer in self._open:
            answer.cancel()
            self._leave(answer)
        self._open.clear()
        self._deliver, self._wake = _ignore, _ignore

    def _leave(self, answer: SharedAnswer[Key]) -> None:
        # Both hold each other, and this is held by whoever it delivers to: circles, which only the garbage collector
        # would undo, at a quarter of the time that the calls take.
        waiter, answer.waiter = answer.waiter, None
        if waiter is not None:
            self._broker.leave(waiter)

    def _end_after(self, seconds: float, waiter: Waiter) -> None:
        loop = asyncio.get_running_loop()
        tick = ceil((loop.time() + seconds) / _TICK_SECONDS)
        if tick not in self._ends:
            self._ends[tick] = loop.call_at(tick * _TICK_SECONDS, self._end, tick), []
        self._ends[tick][1].append(waiter)

    def _end(self, tick: int) -> None:
        for waiter in self._ends.pop(tick)[1]:
            if not waiter.answer.done():
                self._broker.end_wait(waiter)


def _ignore(*_: object) -> None:
    return None
