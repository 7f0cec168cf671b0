"""Calls that arrive together are answered together, each by its own answer, and none spoils another."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from app.db import batching
from app.db.batching import Coalescer
from app.kernel.errors import DatabaseUnavailable, Locked, ShuttingDown


class _Flush:
    """Doubles numbers; refuses any batch that has a negative one, as one bad value fails a whole statement."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.outage = False

    async def __call__(self, calls: Sequence[int]) -> list[int]:
        self.batches.append(list(calls))
        await self.gate.wait()
        if self.outage:
            raise DatabaseUnavailable
        if min(calls) < 0:
            raise ValueError("negative")
        return [2 * call for call in calls]


def _coalescer(flush: _Flush, limit: int = 128) -> Coalescer[int, int]:
    return Coalescer(flush, abs, limit=limit)


async def test_a_lone_call_is_flushed_at_once() -> None:
    flush = _Flush()
    assert await _coalescer(flush)(3) == 6
    assert flush.batches == [[3]]


async def test_what_arrives_while_a_flush_runs_goes_into_the_next() -> None:
    flush = _Flush()
    coalescer = _coalescer(flush)
    flush.gate.clear()
    calls = [asyncio.ensure_future(coalescer(1))]
    while not flush.batches:
        await asyncio.sleep(0)
    calls += [asyncio.ensure_future(coalescer(number)) for number in (2, 3, 4)]
    await asyncio.sleep(0)
    flush.gate.set()
    assert await asyncio.gather(*calls) == [2, 4, 6, 8]
    assert flush.batches == [[1], [2, 3, 4]]


async def test_the_same_key_never_shares_a_batch_and_keeps_its_order() -> None:
    flush = _Flush()
    coalescer = _coalescer(flush)
    assert await asyncio.gather(*map(coalescer, [5, 5, 6, 5])) == [10, 10, 12, 10]
    assert flush.batches == [[5, 6], [5], [5]]


async def test_a_batch_has_a_limit() -> None:
    flush = _Flush()
    await asyncio.gather(*map(_coalescer(flush, limit=3), range(1, 8)))
    assert flush.batches == [[1, 2, 3], [4, 5, 6], [7]]


async def test_large_calls_share_a_batch_as_far_as_they_have_room_together() -> None:
    flush = _Flush()
    coalescer = Coalescer(flush, abs, size=lambda call: call << 20)
    await asyncio.gather(*map(coalescer, [10, 20, 3, 2, 40, 33, 1]))
    assert flush.batches == [[10, 20, 2], [3, 1], [40], [33]]


async def test_one_bad_call_does_not_poison_the_others() -> None:
    flush = _Flush()
    outcomes = await asyncio.gather(*map(_coalescer(flush), [1, -2, 3]), return_exceptions=True)
    assert [outcomes[0], outcomes[2]] == [2, 6]
    assert isinstance(outcomes[1], ValueError)
    assert flush.batches == [[1, -2, 3], [1], [-2], [3]]


async def test_an_outage_fails_all_without_a_second_try() -> None:
    flush = _Flush()
    flush.outage = True
    outcomes = await asyncio.gather(*map(_coalescer(flush), [1, 2]), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 2
    assert flush.batches == [[1, 2]]


async def test_it_works_on_after_a_failure() -> None:
    flush = _Flush()
    coalescer = _coalescer(flush)
    with pytest.raises(ValueError, match="negative"):
        await coalescer(-1)
    assert await coalescer(1) == 2


async def test_a_caller_that_gives_up_takes_nobody_with_it() -> None:
    flush = _Flush()
    coalescer = _coalescer(flush)
    flush.gate.clear()
    gone, patient = asyncio.ensure_future(coalescer(1)), asyncio.ensure_future(coalescer(2))
    while not flush.batches:
        await asyncio.sleep(0)
    gone.cancel()
    flush.gate.set()
    assert await patient == 4
    assert gone.cancelled()


async def test_closing_finishes_what_has_arrived_and_takes_no_more() -> None:
    flush = _Flush()
    coalescer = _coalescer(flush)
    flush.gate.clear()
    calls = [asyncio.ensure_future(coalescer(number)) for number in (1, 1, 2)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(coalescer.close())
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await coalescer(3)
    assert not closing.done()
    flush.gate.set()
    await closing
    assert await asyncio.gather(*calls) == [2, 2, 4]


async def test_closing_an_idle_one_returns_at_once() -> None:
    await _coalescer(_Flush()).close()


async def test_calls_that_want_the_same_lock_do_not_wait_for_it_one_after_another() -> None:
    batches: list[int] = []

    async def flush(calls: Sequence[int]) -> list[int]:
        batches.append(len(calls))
        await asyncio.sleep(0)
        raise Locked

    coalescer = Coalescer(flush, abs, limit=128)
    answers = await asyncio.gather(*(coalescer(number) for number in range(1, 21)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {Locked}
    # All together, or the first alone and the others together, and then two of them by themselves.
    assert batches in ([20, 1, 1], [1, 19, 1, 1])


async def test_it_tells_for_how_long_nothing_was_answered() -> None:
    flush = _Flush()
    coalescer = _coalescer(flush)
    await coalescer(1)
    assert coalescer.stalled_seconds == 0
    flush.gate.clear()
    call = asyncio.ensure_future(coalescer(2))
    while len(flush.batches) < 2:
        await asyncio.sleep(0)
    assert coalescer.stalled_seconds > 0
    # A failure is no answer either, and the next call goes on with the same stall.
    flush.outage = True
    flush.gate.set()
    with pytest.raises(DatabaseUnavailable):
        await call
    stalled_seconds = coalescer.stalled_seconds
    assert stalled_seconds > 0
    with pytest.raises(DatabaseUnavailable):
        await coalescer(3)
    assert coalescer.stalled_seconds > stalled_seconds
    flush.outage = False
    with pytest.raises(ValueError, match="negative"):
        await coalescer(-1)
    assert coalescer.stalled_seconds == 0


async def test_time_without_calls_is_no_part_of_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 1000.0
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: moment))
    flush = _Flush()
    coalescer = _coalescer(flush)
    flush.outage = True
    with pytest.raises(DatabaseUnavailable):
        await coalescer(1)
    moment += 1
    # Whoever got no answer is about to call again.
    assert coalescer.stalled_seconds == 1
    moment += 3600
    assert coalescer.stalled_seconds == 0
    flush.gate.clear()
    call = coalescer.enqueue_one(2)
    assert coalescer.stalled_seconds == 0
    while len(flush.batches) < 2:
        await asyncio.sleep(0)
    moment += 5
    assert coalescer.stalled_seconds == 5
    flush.gate.set()
    with pytest.raises(DatabaseUnavailable):
        await call


async def test_an_outage_among_calls_that_are_tried_one_by_one_fails_the_others() -> None:
    """Each would wait for a connection for as long, with all newer calls behind."""
    batches: list[list[int]] = []

    async def flush(calls: Sequence[int]) -> list[int]:
        batches.append(list(calls))
        if len(calls) > 1:
            raise ValueError
        if calls == [2]:
            raise DatabaseUnavailable
        return list(calls)

    coalescer = Coalescer(flush)
    answers = await asyncio.gather(*coalescer.enqueue(range(1, 6)), return_exceptions=True)
    assert answers[0] == 1
    assert [type(answer) for answer in answers[1:]] == [DatabaseUnavailable] * 4
    assert batches == [[1, 2, 3, 4, 5], [1], [2]]
    assert await coalescer(7) == 7
