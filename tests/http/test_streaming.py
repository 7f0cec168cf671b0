"""Answers that nobody waits for any more."""

from typing import Any

from starlette.requests import Request

from app.http.streaming import until_disconnect


async def _hung_up() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def test_an_answer_that_comes_with_the_hang_up_is_nobodys() -> None:
    discarded: list[int] = []

    async def work() -> int:
        return 7

    request = Request({"type": "http", "headers": []}, _hung_up)
    assert await until_disconnect(request, work(), discarded.append) is None
    assert discarded == [7]
