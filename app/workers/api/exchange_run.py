"""The course of one exchange: its items are worked on together where that is possible, and answered line by line."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from math import ceil
from typing import Any, TypeVar
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from app.db.turns import Turns
from app.http import problems
from app.http.bodies import in_parser
from app.http.refusals import Refusals, client_host
from app.http.services import Services
from app.http.shares import Shares
from app.http.streaming import LineStream, until_disconnect
from app.kernel.access import Principal
from app.kernel.errors import ConvenerError, Locked, TooManyFailures
from app.kernel.ids import WorkerId
from app.queue.api import advice, lease_calls
from app.queue.api.lease_schemas import LeaseIn, NextIn
from app.queue.broker.broker import Broker
from app.queue.broker.calls import PrecedingResult
from app.queue.broker.waits import Outcome, Waits
from app.queue.rules.tasks import LeasePolicy
from app.queue.service.leases import LeaseService
from app.queue.store.claims import Lease
from app.queue.store.completions import Completion, Renewal, ServiceTime
from app.workers.api.exchange_items import OPERATIONS, Admission, Item, admissions, authorization_of, read

MEDIA_TYPE = "application/x-ndjson"
_ROUTE = "POST /leases/exchange"
# Whose statements take many calls at once.
_TOGETHER = frozenset({"complete", "start", "progress"})
# Items that are read, or refused, before others are served; those of a large body are read beside the others.
_AT_ONCE = 16
_LARGE_BYTES = 2 << 20
# Tasks may be large, and a line is written as a whole.
_LINE_CHARACTERS = 1 << 20
# After so long the first answers are written, whatever the others wait for.
_PATIENCE_SECONDS = 0.5
Call = TypeVar("Call")
Result = TypeVar("Result")
# A call of a worker, and its calls for tasks that come after it.
_Turn = tuple[Item, list[Item]]


class Exchange:
    """The items of one request, and their answers as they come."""

    def __init__(self, services: Services, request: Request, values: Sequence[Any]) -> None:
        self._services = services
        self._request = request
        self._values = values
        self._waits: Waits[Item] = Waits(services[Broker], self._deliver, self._wake)
        self._turns = services.database.shared(Turns)
        self._may_wait = False
        self._answers: list[str] = []
        self._outcomes: deque[tuple[Item, Outcome]] = deque()
        self._results: dict[int, PrecedingResult] = {}
        self._unanswered = len(values)
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._batches = 0
        self._is_patient = True
        self._failure: BaseException | None = None

    async def respond(self, size: int) -> Response:
        """The response to a body of `size` bytes: lines of answers, which end when the client hangs up."""
        await self._begin(size)
        lines = self._lines()
        first = await anext(lines, b"")
        if not self._is_over:
            return LineStream(first, lines, MEDIA_TYPE)
        await lines.aclose()
        return Response(first, media_type=MEDIA_TYPE)

    @property
    def _is_over(self) -> bool:
        return not (self._unanswered or self._answers)

    async def _begin(self, size: int) -> None:
        calls: dict[WorkerId, list[Item]] = defaultdict(list)
        leases: dict[WorkerId, list[Item]] = defaultdict(list)
        # One of a caller at a time: whoever sends many is not quicker for it, and others are served between its steps.
        async with self._services[Shares].of_batch(self._request.state.principal.key_id):
            items = await self._valid_items(size)
        for item in items:
            (leases if item.operation == "lease" else calls)[item.worker_id].append(item)
        self._may_wait = any(item.call.wait_seconds for items in leases.values() for item in items)
        completions: list[_Turn] = []
        renewals: list[_Turn] = []
        for worker_id, items in calls.items():
            turn = first, later = items[0], leases.pop(worker_id, [])
            if len(items) > 1 or first.operation not in _TOGETHER or (later and _has_next(first)):
                self._spawn(self._work_in_order(items, later))
            elif _has_next(first):
                self._go_on(first)
            else:
                (completions if first.operation == "complete" else renewals).append(turn)
        service = self._services[LeaseService]
        self._batches = bool(completions) + bool(renewals)
        if completions:
            self._spawn(
                self._work_together(completions, lease_calls.completion, service.begin_completions, self._completed)
            )
        if renewals:
            self._spawn(self._work_together(renewals, lease_calls.renewal, service.begin_renewals, self._held))
        for items in leases.values():
            self._lease(items)

    async def _valid_items(self, size: int) -> list[Item]:
        """The items that their plain routes would take; the others are refused."""
        admitted = await admissions(self._services, self._values)
        items: list[Item] = []
        for index, item in enumerate(await self._read_all(admitted, size)):
            if not isinstance(item, Exception):
                items.append(item)
                continue
            self._put_response(index, problems.from_raised(item))
            if self._unanswered % _AT_ONCE == 0:
                await self._turns.wait()
        return items

    async def _read_all(self, admitted: Mapping[str, Admission], size: int) -> list[Item | Exception]:
        values = self._values
        if size > _LARGE_BYTES:
            return await in_parser(partial(read, values, 0, admitted))
        items: list[Item | Exception] = []
        for start in range(0, len(values), _AT_ONCE):
            await self._turns.wait()
            items += read(values[start : start + _AT_ONCE], start, admitted)
        return items

    async def _work_together(
        self,
        turns: Sequence[_Turn],
        make: Callable[[UUID, Any, Principal, Services], Call],
        begin: Callable[[Sequence[Call]], Sequence[asyncio.Future[Result | None]]],
        finish: Callable[[Item, Call, Result], None],
    ) -> None:
        """Work on the only call of each worker; what is not done at once goes on by itself."""
        calls: list[tuple[Item, list[Item], Call]] = []
        for item, leases in turns:
            try:
                calls.append((item, leases, make(item.path["task_id"], item.call, item.principal, self._services)))
            except ConvenerError as error:
                self._refuse(item, leases, error)
        for (item, leases, call), future in zip(calls, begin([call for _, _, call in calls]), strict=True):
            try:
                result = await future
            except Locked:
                result = None
            except Exception as error:
                self._refuse(item, leases, error)
                continue
            if result is None:
                self._spawn(self._work_in_order([item], leases))
            else:
                finish(item, call, result)
                self._lease(leases)
        self._batches -= 1
        self._wake()

    async def _work_in_order(self, items: Sequence[Item], leases: Sequence[Item]) -> None:
        """Work on calls of one worker one after the other, each as on its plain route."""
        for item in items:
            route = OPERATIONS[item.operation]
            response = await route.respond(self._services, item.principal, item.call, item.path)
            self._put_response(item.index, response)
            self._wake()
        self._lease(leases)

    def _go_on(self, item: Item) -> None:
        """Hand in a result together with the call for the next task; what is not accepted so goes on by itself."""
        try:
            completion = lease_calls.completion(item.path["task_id"], item.call, item.principal, self._services)
        except ConvenerError as error:
            self._put_response(item.index, problems.from_raised(error))
            return
        result = PrecedingResult(completion)
        if result.is_small:
            self._results[item.index] = result
            self._wait(item, item.call.next, 0.0, result)
        else:
            self._spawn(self._accept_alone(item, result))

    async def _accept_alone(self, item: Item, result: PrecedingResult) -> None:
        """Hand in a result that no claim has accepted, and then ask for the next task."""
        try:
            await self._services[LeaseService].complete(result.completion)
        except Exception as error:
            self._put_response(item.index, problems.from_raised(error))
            self._wake()
        else:
            if result.is_superseded or self._services[Broker].is_waiting(item.worker_id):
                self._deliver(item, None)
            else:
                self._wait(item, item.call.next, 0.0)

    async def _keep(self, result: PrecedingResult) -> None:
        """Hand in a result of a client that has hung up since; nobody hears of a refusal."""
        with suppress(ConvenerError):
            await self._services[LeaseService].complete(result.completion)

    def _completed(self, item: Item, call: Completion, _: ServiceTime) -> None:
        self._put(item.index, 200, lease_calls.completed_text(call.task_id, None, None))

    def _held(self, item: Item, call: Renewal, expires_at: datetime) -> None:
        self._put(item.index, 200, lease_calls.held_text(call, expires_at))

    def _refuse(self, item: Item, leases: Sequence[Item], error: Exception) -> None:
        self._put_response(item.index, problems.from_raised(error))
        self._lease(leases)

    def _lease(self, items: Sequence[Item]) -> None:
        for item in items:
            self._wait(item, item.call, min(item.call.wait_seconds, self._services[LeasePolicy].max_wait_seconds))

    def _wait(self, item: Item, call: LeaseIn | NextIn, seconds: float, result: PrecedingResult | None = None) -> None:
        try:
            self._waits.add(item, lease_calls.lease_call(call, item.principal, result), seconds)
        except ConvenerError as error:
            self._deliver(item, error)

    def _deliver(self, item: Item, outcome: Outcome) -> None:
        result = self._results.pop(item.index, None)
        if result is not None and not result.is_accepted:
            self._spawn(self._accept_alone(item, result))
            return
        self._outcomes.append((item, outcome))
        self._wake()

    def _wake(self) -> None:
        self._news.set()

    def _lose_patience(self) -> None:
        self._is_patient = False
        self._wake()

    async def _lines(self) -> AsyncGenerator[bytes, None]:
        """Lines of answers, until all are given or the client hangs up."""
        timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._lose_patience)
        try:
            # Where no call may wait, watching the connection would only cost time.
            while not self._is_over:
                line = self._line()
                text = await until_disconnect(self._request, line) if self._may_wait else await line
                if text is None:
                    return
                yield text
        finally:
            timer.cancel()
            self._waits.close()
            for result in self._results.values():
                if not result.is_accepted:
                    self._spawn(self._keep(result))
            for item, outcome in self._outcomes:
                if isinstance(outcome, Lease):
                    self._services[Broker].give_back(item.worker_id, outcome)

    async def _line(self) -> bytes:
        while True:
            if self._failure is not None:
                raise self._failure
            if not self._is_patient or not (self._batches or self._waits.is_trying):
                self._answer_outcomes()
                if self._answers:
                    answers, self._answers = self._answers, []
                    return f'{{"answers":[{",".join(answers)}]}}\n'.encode()
            self._news.clear()
            await self._news.wait()

    def _answer_outcomes(self) -> None:
        """Put the outcomes of leases among the answers, as many as make a line."""
        text, characters = advice.text(self._services), 0
        while self._outcomes and characters < _LINE_CHARACTERS:
            self._put_outcome(*self._outcomes.popleft(), text)
            characters += len(self._answers[-1])

    def _put_outcome(self, item: Item, outcome: Outcome, advice_text: str | None) -> None:
        lease = None if isinstance(outcome, Exception) else outcome
        if item.operation == "complete":
            # The result is stored, so nothing that keeps the next task back may make the call look failed.
            self._put(item.index, 200, lease_calls.completed_text(item.path["task_id"], lease, advice_text))
        elif isinstance(outcome, Exception):
            self._put_response(item.index, problems.from_raised(outcome))
        elif lease is None:
            self._put(item.index, 204, None)
        else:
            self._put(item.index, 200, lease_calls.lease_text(lease, advice_text))

    def _put(self, index: int, status: int, text: str | None) -> None:
        body = "" if text is None else f',"body":{text}'
        self._answers.append(f'{{"index":{index},"status":{status}{body}}}')
        self._unanswered -= 1

    def _put_response(self, index: int, response: Response) -> None:
        """Put the response of a plain route among the answers; refusals count against the address, as there."""
        if response.status_code in (401, 403):
            authorization, host = authorization_of(self._values[index]), client_host(self._request.scope)
            wait = self._services[Refusals].refuse(response.status_code, _ROUTE, host, authorization)
            if wait:
                response = problems.from_error(TooManyFailures(retry_after_seconds=ceil(wait)))
        body = bytes(response.body).decode()
        retry_after = response.headers.get("retry-after")
        if retry_after is not None:
            body += f',"retry_after":{int(retry_after)}'
        self._put(index, response.status_code, body or None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._wake()


def _has_next(item: Item) -> bool:
    return item.operation == "complete" and item.call.next is not None
