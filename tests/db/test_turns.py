"""Work that is ready at once is done in turns of the loop, and others are served in between."""

import asyncio
import itertools

from app.db.turns import Turns


async def test_one_goes_on_in_each_turn_of_the_loop() -> None:
    turns, passed = Turns(), list[str]()

    async def work(name: str) -> None:
        await turns.wait()
        passed.append(name)

    async def look() -> None:
        for _ in range(12):
            passed.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(*(work(str(number)) for number in range(4)), look())
    works = [place for place, name in enumerate(passed) if name != "other"]
    assert [passed[place] for place in works] == ["0", "1", "2", "3"]
    assert all(later - place > 1 for place, later in itertools.pairwise(works))
    await asyncio.wait_for(turns.wait(), 30)


async def test_who_gives_up_keeps_nobody_waiting() -> None:
    turns = Turns()
    await turns.wait()
    waiting = [asyncio.create_task(turns.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait_for(asyncio.gather(*waiting[1:]), 30)
    await asyncio.wait_for(turns.wait(), 30)
