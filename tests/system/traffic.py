"""Traffic over several replicas: callers that submit and read, and workers of the protocol, until they are stopped."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx

_PAUSE_SECONDS = 0.05
# One task for the processes of workers among so many batches, and the tasks for our own that may wait.
_WORKER_EVERY, _BACKLOG = 10, 60


class Traffic:
    """Callers and workers that use the replicas which are named at the time, and note what those answer."""

    def __init__(self, keys: dict[str, str], urls: list[str]) -> None:
        self.urls = urls
        self.submitted: list[str] = []
        self.completed: Counter[str] = Counter()
        # (status, code) of answers that were no success and no refusal by the protocol.
        self.errors: Counter[tuple[int, str]] = Counter()
        self._keys = keys
        self._is_over = self._is_complete = False
        self._for_us = 0
        self._client = httpx.AsyncClient(trust_env=False, timeout=20)

    @contextmanager
    def going_on(self, submitters: int, workers: int) -> Iterator[None]:
        """The traffic, during the block."""
        self._callers = [asyncio.create_task(self._submit()) for _ in range(submitters)]
        self._callers.append(asyncio.create_task(self._read()))
        self._workers = [asyncio.create_task(self._work(number)) for number in range(workers)]
        yield
        assert self._is_over, "the traffic is stopped by `stop`"

    async def stop(self) -> None:
        """Stop submitting; the workers go on until nothing is left, what was being submitted included."""
        self._is_over = True
        await asyncio.gather(*self._callers)
        self._is_complete = True
        await asyncio.gather(*self._workers)
        await self._client.aclose()

    async def until_completed(self, more: int) -> None:
        """Return when so many more tasks have been completed by our workers."""
        aim = self.completed.total() + more
        async with asyncio.timeout(200):
            while self.completed.total() < aim:
                for job in (*self._callers, *self._workers):
                    if job.done():
                        await job
                await asyncio.sleep(_PAUSE_SECONDS)

    async def ask(self, method: str, path: str, key: str, body: Any = None, **query: str) -> httpx.Response:
        """Ask one replica after the other until one answers; errors of the service are noted, and asked again."""
        for attempt in range(200):
            url = random.choice(self.urls)
            headers = {"authorization": f"Bearer {key}"}
            try:
                answer = await self._client.request(method, url + path, headers=headers, json=body, params=query)
            except httpx.TransportError:
                # A replica that has left; the others are asked.
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if answer.status_code < 500:
                return answer
            is_problem = answer.headers["content-type"] == "application/problem+json"
            self.errors[answer.status_code, answer.json()["code"] if is_problem else answer.text] += 1
            await asyncio.sleep(_PAUSE_SECONDS * (1 + attempt))
        raise AssertionError(f"{method} {path} was never answered")

    async def _submit(self) -> None:
        turn = 0
        while not self._is_over:
            tasks = [{"id": str(uuid4()), "agent_type": "ranking", "goal_id": "upgrade", "payload": {}} for _ in "abc"]
            await self._accepted("/tasks/batch", {"tasks": tasks})
            self.submitted += [str(task["id"]) for task in tasks]
            self._for_us += len(tasks)
            if turn % _WORKER_EVERY == 0:
                single: dict[str, Any] = {
                    "id": str(uuid4()),
                    "agent_type": "generation",
                    "payload": {"sleep_seconds": 0.01},
                }
                await self._accepted("/tasks", single)
                self.submitted.append(single["id"])
            turn += 1
            # Our workers keep pace with it on any machine.
            while self._for_us - self.completed.total() > _BACKLOG and not self._is_over:
                await asyncio.sleep(_PAUSE_SECONDS)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _accepted(self, path: str, body: Any) -> None:
        answer = await self.ask("POST", path, self._keys["supervisor"], body)
        assert answer.status_code in (200, 201), answer.text

    async def _read(self) -> None:
        while not self._is_over:
            for path in ("/tasks", "/events", "/queues", "/workers", "/status", "/goals"):
                answer = await self.ask("GET", path, self._keys["operator"])
                assert answer.status_code == 200, answer.text
                await asyncio.sleep(2 * _PAUSE_SECONDS)

    async def _work(self, number: int) -> None:
        body = {"name": f"wire-{number}", "host": "test", "pid": 1, "memory_gb": 1, "cpu_cores": 1}
        answer = await self.ask("POST", "/workers", self._keys["pool"], body | {"capabilities": ["ranking"]})
        worker = answer.json()
        next_beat = 0.0
        lease: dict[str, Any] | None = None
        # One that is told of no task may be told of one later, where the machine is busy.
        while not self._is_complete or len(self.completed) < self._for_us:
            if asyncio.get_running_loop().time() > next_beat:
                path = f"/workers/{worker['worker_id']}/heartbeat"
                assert (await self.ask("POST", path, worker["key"], {"state": "ready"})).status_code == 200
                next_beat = asyncio.get_running_loop().time() + 2
            lease = await self._complete(lease, worker["key"]) if lease else await self._lease(worker["key"])

    async def _lease(self, key: str) -> dict[str, Any] | None:
        request = {"request_id": str(uuid4()), "wait_seconds": 0.5, "acknowledge": True}
        answer = await self.ask("POST", "/lease", key, request)
        assert answer.status_code in (200, 204), answer.text
        return answer.json() if answer.status_code == 200 else None

    async def _complete(self, lease: dict[str, Any], key: str) -> dict[str, Any] | None:
        following = {"request_id": str(uuid4()), "acknowledge": True}
        body = {"token": lease["token"], "result": {}, "next": following}
        answer = await self.ask("POST", f"/leases/{lease['task_id']}/complete", key, body)
        assert answer.status_code == 200, answer.text
        self.completed[lease["task_id"]] += 1
        next_lease: dict[str, Any] | None = answer.json()["lease"]
        return next_lease
