"""Results as they come: each once to whoever keeps the token, whatever finishes meanwhile."""

import asyncio
from typing import Any

import pytest

from app.db.database import Database
from app.kernel.access import Role
from app.kernel.agents import AgentType
from app.kernel.events import TaskEvent
from app.queue.store import events, outputs
from tests.support.problems import is_problem
from tests.support.service import Service, Worker
from tests.support.sql import execute, value


async def _complete(worker: Worker, result: Any = None) -> str:
    """The task that the worker has just completed."""
    lease = await worker.lease(wait_seconds=30)
    done = await worker.on_lease(
        lease,
        "complete",
        result=result or {"of": lease["task_id"]},
        usage={"wall_seconds": 1, "cpu_seconds": 1, "max_memory_mb": 1},
        quality=0.8,
    )
    assert done.status_code == 200, done.text
    return str(lease["task_id"])


async def _all(service: Service, after: str | None = None, **query: Any) -> tuple[list[Any], str]:
    """Everything that there is by now, page by page, and the token to go on with."""
    found: list[Any] = []
    while True:
        page = await service.get("/outputs", **query, **({"after": after} if after else {}))
        found += page["items"]
        after = page["next"]
        assert after is not None
        if not page["more"]:
            return found, after


async def test_a_result_is_read_with_what_it_cost(service: Service, worker: Worker) -> None:
    task_id = await service.submitted(goal_id="g", agent_type="ranking", priority="high", labels={"a": "b"})
    assert (await service.get("/outputs"))["items"] == []
    await _complete(worker, {"elo": 1200})
    page = await service.ask("GET", "/outputs", key=Role.READER)
    (output,) = page.json()["items"]
    assert (output["task_id"], output["agent_type"], output["goal_id"]) == (task_id, "ranking", "g")
    assert (output["result"], output["priority"], output["labels"]) == ({"elo": 1200}, "high", {"a": "b"})
    assert output["usage"] == {"wall_seconds": 1, "cpu_seconds": 1, "max_memory_mb": 1}
    assert (output["worker_id"], output["quality"]) == (worker.id, 0.8)
    assert output["finished_at"] == (await service.get(f"/tasks/{task_id}"))["finished_at"]


async def test_each_once_in_the_order_of_completion(service: Service, worker: Worker) -> None:
    for _ in range(7):
        await service.submitted()
    done = [await _complete(worker) for _ in range(7)]
    for limit in (1, 2, 3, 7):
        found, token = await _all(service, limit=limit)
        assert [output["task_id"] for output in found] == done
        assert await _all(service, token) == ([], token)
    whole, _ = await _all(service)
    # Each result's own token is as good as `next`.
    assert (await _all(service, whole[2]["token"]))[0] == whole[3:]


async def test_only_what_was_asked_for(service: Service, worker: Worker) -> None:
    for agent, goal in (("ranking", "a"), ("evolution", "a"), ("ranking", "b"), ("evolution", None)):
        await service.submitted(agent_type=agent, goal_id=goal)
        await _complete(worker)
    assert len((await _all(service, agent_type="Ranking"))[0]) == 2
    assert len((await _all(service, goal_id="a"))[0]) == 2
    assert len((await _all(service, goal_id="a", agent_type="ranking"))[0]) == 1
    assert (await _all(service, goal_id="c"))[0] == []


async def test_failed_and_cancelled_tasks_have_no_result(service: Service, worker: Worker) -> None:
    await service.submitted()
    lease = await worker.lease()
    await worker.on_lease(lease, "fail", error={"code": "c", "message": "m", "retryable": False})
    cancelled = await service.submitted()
    await service.post(f"/tasks/{cancelled}/cancel", {})
    assert (await _all(service))[0] == []


async def test_a_page_that_meets_only_other_events_says_that_there_is_more(
    service: Service, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of a page is bounded also where what is wanted is rare."""
    monkeypatch.setattr(outputs, "_MIN_WINDOW", 1)
    for _ in range(30):
        await service.submitted()
    await service.submitted(agent_type="ranking", priority="critical")
    done = [await _complete(worker) for _ in range(31)]
    first = await service.get("/outputs", limit=1, agent_type="ranking")
    assert (first["items"], first["more"]) == ([], True)
    found, _ = await _all(service, limit=1, agent_type="ranking")
    assert len(found) == 1
    assert found[0]["task_id"] in done
    everything, _ = await _all(service, limit=1)
    assert [output["task_id"] for output in everything] == done


async def test_from_now_on(service: Service, worker: Worker) -> None:
    await service.submitted()
    await _complete(worker)
    page = await service.get("/outputs", after="now")
    assert page["items"] == []
    await service.submitted()
    later = await _complete(worker)
    assert [output["task_id"] for output in (await _all(service, page["next"]))[0]] == [later]


async def test_large_results_make_short_pages(
    service: Service, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "PAGE_BYTES", 1)
    done = []
    for _ in range(3):
        await service.submitted()
        done.append(await _complete(worker))
    assert len((await service.get("/outputs"))["items"]) == 1
    assert [output["task_id"] for output in (await _all(service))[0]] == done


async def test_nothing_is_missed_or_repeated_while_many_finish(service: Service) -> None:
    for number in range(60):
        await service.submitted(agent_type=list(AgentType)[number % 6])
    workers = [await service.worker() for _ in range(6)]

    async def work(worker: Worker) -> list[str]:
        return [await _complete(worker) for _ in range(10)]

    working = asyncio.gather(*(work(worker) for worker in workers))
    seen: list[str] = []
    token: str | None = None
    async with asyncio.timeout(60):
        while len(seen) < 60:
            found, token = await _all(service, token, limit=4)
            seen += [output["task_id"] for output in found]
    assert len(set(seen)) == len(seen)
    assert set(seen) == {task_id for tasks in await working for task_id in tasks}


async def test_a_result_whose_writer_commits_late_is_not_passed_by(
    service: Service, database: Database, worker: Worker
) -> None:
    """An open transaction that began earlier keeps later results back, until it is clear what it has to tell."""
    await service.submitted()
    async with database.engine.connect() as slow:
        early = await value(database, "SELECT id FROM tasks")
        await events.append(slow, TaskEvent.EXECUTING, task_id=early, agent_type="generation", goal_id=None)
        done = await _complete(worker)
        found, token = await _all(service)
        assert found == []
        await slow.commit()
    assert [output["task_id"] for output in (await _all(service, token))[0]] == [done]


async def test_a_result_that_was_pruned_is_left_out(service: Service, database: Database, worker: Worker) -> None:
    for _ in range(3):
        await service.submitted()
    done = [await _complete(worker) for _ in range(3)]
    await execute(database, "DELETE FROM task_history WHERE id = $1", done[1])
    for limit in (1, 2, 3):
        assert [output["task_id"] for output in (await _all(service, limit=limit))[0]] == [done[0], done[2]]


async def test_only_the_partition_of_its_day_is_looked_at(service: Service, database: Database, worker: Worker) -> None:
    """The event and the result bear the same time, to the microsecond."""
    await service.submitted()
    await _complete(worker)
    query = (
        "SELECT count(*) FROM every_event e JOIN task_history h ON h.id = e.task_id AND h.finished_at = e.at"
        " WHERE e.kind = 'task.completed'"
    )
    assert await value(database, query) == 1


@pytest.mark.parametrize("token", ["yesterday", "1-2", "o1", "o1-2-3", "o-1-2", "o" + "9" * 19 + "-1", ""])
async def test_a_token_that_is_none(service: Service, token: str) -> None:
    is_problem(await service.ask("GET", "/outputs", params={"after": token}), 422, "invalid_request", "after")
