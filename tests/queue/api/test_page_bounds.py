"""Pages of what is large: no page has more bytes than its bound, however well the texts compress."""

from typing import Any

import pytest

from app.db.pages import PAGE_BYTES
from app.queue.store import listing
from tests.support.service import Service, Worker

# Of one repeated character, which PostgreSQL stores in a hundredth of its size.
_LONG = "a" * 200_000


async def _pages(service: Service, path: str, **options: Any) -> list[tuple[int, list[Any]]]:
    """Size and items of every page."""
    pages, after = [], None
    while True:
        query: dict[str, Any] = {"limit": 500} | options | ({"after": after} if after else {})
        answer = await service.ask("GET", path, params=query)
        page = answer.json()
        pages.append((len(answer.content), page["items"]))
        if not page.get("more", page["next"]):
            return pages
        after = page["next"]


async def test_results_that_compress_well_make_short_pages(service: Service, worker: Worker) -> None:
    for _ in range(30):
        await service.submitted()
        assert (await worker.on_lease(await worker.lease(), "complete", result={"text": _LONG})).is_success
    pages = await _pages(service, "/outputs")
    assert [size for size, _ in pages if size > PAGE_BYTES * 1.1] == []
    assert sum(len(items) for _, items in pages) == 30
    assert len(pages) == 6


async def test_values_that_compress_well_make_short_pages(service: Service) -> None:
    for number in range(30):
        answer = await service.ask(
            "PUT", f"/context/space/{number:02}", {"text": _LONG}, headers={"If-None-Match": "*"}
        )
        assert answer.is_success, answer.text
    for version in range(1, 25):
        headers = {"If-Match": f'"{version}"'}
        assert (
            await service.ask("PUT", "/context/space/00", {"text": _LONG, "n": version}, headers=headers)
        ).is_success
    for path, options, number in (("/context/space", {"values": True}, 30), ("/context/space/00/history", {}, 25)):
        pages = await _pages(service, path, **options)
        assert [size for size, _ in pages if size > PAGE_BYTES * 1.1] == []
        assert sum(len(items) for _, items in pages) == number
        assert len(pages) == number // 5


async def test_lists_of_tasks_show_the_beginning_of_an_error(service: Service, worker: Worker) -> None:
    detail = {"traceback": "x" * 60_000}
    for _ in range(10):
        await service.submitted(retry={"max_attempts": 1})
        error = {"code": "boom", "message": "it broke", "retryable": False, "detail": detail}
        assert (await worker.on_lease(await worker.lease(), "fail", error=error)).is_success
    for path in ("/tasks", "/dead-letters"):
        ((size, items),) = await _pages(service, path)
        assert size < 30_000
        assert {len(item["error"]["detail_excerpt"]) for item in items} == {500}
        assert "detail" not in items[0]["error"]
        assert (await service.get(f"{path}/{items[0]['id']}"))["error"]["detail"] == detail


async def test_the_detail_of_an_error_is_cut_at_64_kib(service: Service, worker: Worker) -> None:
    task_id = await service.submitted(retry={"max_attempts": 1})
    lease = await worker.lease()
    error = {"code": "boom", "message": "it broke", "retryable": False, "detail": {"traceback": "\N{SNOWMAN}" * 30_000}}
    answer = await worker.on_lease(lease, "fail", error=error)
    if answer.status_code == 413:
        return
    detail = (await service.get(f"/tasks/{task_id}"))["error"]["detail"]
    assert detail["truncated"] is True
    assert len(detail["excerpt"]) == 4000


async def test_texts_of_tasks_are_bounded_by_the_page(
    service: Service, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE_BYTES", 2500)
    for number in range(9):
        await service.submitted(labels={f"label{number}": "v" * 190, "other": "w" * 190})
    pages = await _pages(service, "/tasks")
    assert [len(items) for _, items in pages] == [2, 2, 2, 2, 1]


async def test_all_labels_together_are_bounded(service: Service) -> None:
    body = {"agent_type": "ranking", "labels": {f"{number:02}": "v" * 190 for number in range(50)}}
    answer = await service.ask("POST", "/tasks", body)
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "labels")


async def test_the_dependencies_of_a_batch_are_bounded(service: Service) -> None:
    ids = [f"00000000-0000-4000-8000-{number:012}" for number in range(1000)]
    tasks = [{"agent_type": "ranking", "depends_on": ids} for _ in range(11)]
    answer = await service.ask("POST", "/tasks/batch", {"tasks": tasks})
    assert answer.status_code == 422
    assert "10,000 dependencies" in answer.json()["detail"]
