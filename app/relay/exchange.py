"""The exchange: calls of many workers in one request to the control plane, and their answers dealt back.

A call that comes while nothing is under way goes at once. While a request is under way, what comes is gathered and goes
with the next one, so that the more there is to do, the less each call costs. Leases that may wait have requests of
their own, which stay open; when there are many of those, the smaller ones are joined into a new one.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from app.outage import Outage
from app.relay.calls import Answer, Item, Operation, fail, problem, read_answers, settle, settle_all, shutting_down
from app.relay.upstream import Away, Crowded

log = logging.getLogger(__name__)
# Of the key that a request shows; 409 for that of a worker that has ended.
_KEY_REFUSALS = frozenset({401, 403, 409, 429})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangePolicy:
    """Bounds of the exchange."""

    max_items: int = 512
    # With one body more less than the weight that the control plane takes.
    max_bytes: int = 800_000
    # Requests under way without leases that may wait. Beside another, one goes when it is worth it, or when the others
    # take long.
    requests: int = 4
    worth_items: int = 64
    gather_seconds: float = 0.05
    # After an answer its workers call again one after the other: most of them are waited for, but no longer than this,
    # and than a quarter of what the request took.
    return_seconds: float = 0.005
    # Requests of leases that wait; with one more, the smaller half of them is joined.
    waiting_requests: int = 8
    # One of those is under way so long, unless it is answered before: nobody says when its leases begin to wait.
    taken_seconds: float = 0.03
    # Calls that have come and are not answered; further ones are refused.
    max_open_items: int = 20_000
    max_open_bytes: int = 64 << 20
    # For an answer, and for one of leases from the end of their waits on.
    answer_seconds: float = 15.0
    # Leases whose workers have hung up are withdrawn together after this.
    withdraw_seconds: float = 0.1
    # A call goes by the plain route once so many requests with it were refused for the key of another worker.
    max_refusals: int = 3
    # Until a control plane that has no exchange is asked again.
    retry_seconds: float = 60.0


class Refused(Exception):
    """The control plane refused a request as a whole."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"answered {answer.status}")
        self.answer = answer


# Sends a body with the key of one of its workers, and yields the lines of the answer as they come.
# Raises Refused, Away, Crowded.
Send = Callable[[bytes, bytes], AbstractAsyncContextManager[AsyncGenerator[bytes]]]


@dataclass(slots=True, eq=False)
class _Request:
    items: Sequence[Item]
    # Of one of its workers, which lets the request in.
    key: bytes
    # Whose leases are in here as well, and which end when this one has been taken.
    replaced: Sequence["_Request"] = ()
    is_under_way: bool = True
    answered: set[int] = field(default_factory=set)
    task: "asyncio.Task[None] | None" = None

    @property
    def waits(self) -> bool:
        """Whether it holds leases that may wait, and nothing else."""
        return self.items[0].wait_seconds > 0

    def open_items(self) -> list[Item]:
        """Items that wait in this request and in no later one."""
        return [item for item in self.items if item.carrier is self and item.is_open]

    def end(self) -> None:
        """Hang up."""
        if self.task is not None:
            self.task.cancel()


class Exchange:
    """One per process; `submit` calls in a running event loop."""

    def __init__(self, send: Send, policy: ExchangePolicy, outage: Outage) -> None:
        """`outage` is told of silence; of all else `send` tells it."""
        self._send, self._outage = send, outage
        self.policy = policy
        # Calls, and leases that may wait; of each how many requests are under way.
        self._queues: tuple[deque[Item], deque[Item]] = (deque(), deque())
        self._under_way = [0, 0]
        # Of the calls' requests, in loop time: the last start, until when those who were answered are waited for, and
        # the next look; and how many items the last ones had.
        self._started_at = self._gathers_until = 0.0
        self._next_look: asyncio.TimerHandle | None = None
        self._sizes: deque[int] = deque((1,), maxlen=4)
        self._requests: set[_Request] = set()
        self._open_items = 0
        self._open_bytes = 0
        self._is_scheduled = False
        self._is_stopping = False
        self._unusable_until = 0.0
        # Keys that have been let in, by which one that is not is kept from the head of every request.
        self.admitted_keys: dict[bytes, None] = {}
        # The last lease call of each worker: one that it has given up is so told from one that it has repeated.
        self._leases: dict[bytes, Item] = {}
        self._withdrawn: set[_Request] = set()

    @property
    def is_usable(self) -> bool:
        """Whether the control plane has the exchange, as far as anybody has heard."""
        return asyncio.get_running_loop().time() >= self._unusable_until

    @property
    def is_full(self) -> bool:
        """Whether no further call is taken."""
        return self._open_items >= self.policy.max_open_items or self._open_bytes >= self.policy.max_open_bytes

    def submit(self, item: Item) -> None:
        """Take a call, whose answer will be set."""
        self._open_items += 1
        self._open_bytes += len(item.body)
        if item.is_lease:
            self._leases[item.authorization] = item
        self._queues[item.wait_seconds > 0].append(item)
        self._schedule()

    def forget(self, item: Item) -> None:
        """Count a call that was answered, or given up, no longer."""
        self._open_items -= 1
        self._open_bytes -= item.size
        if not item.is_abandoned and self._leases.get(item.authorization) is item:
            del self._leases[item.authorization]

    def abandon(self, item: Item) -> None:
        """Note that the worker has hung up: its lease is withdrawn, or released where it has been given one already."""
        item.is_abandoned = True
        request = item.carrier
        if isinstance(request, _Request) and request in self._requests:
            if not self._withdrawn:
                asyncio.get_running_loop().call_later(self.policy.withdraw_seconds, self._withdraw)
            self._withdrawn.add(request)
        elif self._leases.get(item.authorization) is item:
            del self._leases[item.authorization]

    async def stop(self, seconds: float) -> None:
        """Answer leases that wait with 503, so that workers repeat them; give other calls some seconds to end."""
        self._is_stopping = True
        for item in self._unanswered():
            if item.wait_seconds:
                settle(item, shutting_down())
        answers = [item.answer for item in self._unanswered()]
        if answers:
            await asyncio.wait(answers, timeout=seconds)
        for request in list(self._requests):
            request.end()

    def _queued(self) -> list[Item]:
        return [item for queue in self._queues for item in queue if item.is_open]

    def _unanswered(self) -> list[Item]:
        return self._queued() + [item for request in self._requests for item in request.open_items()]

    def _schedule(self) -> None:
        # In the next turn of the loop, so that all calls that have come in this one go together.
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_scheduled = False
        for waits, queue in enumerate(self._queues):
            while queue and self._may_start(bool(waits)):
                items: list[Item] = []
                size = 0
                while queue and len(items) < self.policy.max_items and size < self.policy.max_bytes:
                    item = queue.popleft()
                    if item.is_open:
                        items.append(item)
                        size += item.size
                if items:
                    self._start(items)
        if self._queues[False] and self._next_look is None:
            loop = asyncio.get_running_loop()
            is_idle = not self._under_way[False]
            at = self._gathers_until if is_idle else self._started_at + self.policy.gather_seconds
            self._next_look = loop.call_at(max(at, loop.time() + 0.001), self._look)

    def _may_start(self, waits: bool) -> bool:
        under_way, count = self._under_way[waits], len(self._queues[False])
        if waits:
            return not under_way
        now = asyncio.get_running_loop().time()
        if not under_way:
            return now >= self._gathers_until or 4 * count >= 3 * max(self._sizes)
        is_late = now - self._started_at >= self.policy.gather_seconds
        return under_way < self.policy.requests and (is_late or count >= self.policy.worth_items)

    def _look(self) -> None:
        self._next_look = None
        self._schedule()

    def _start(self, items: Sequence[Item], replaced: Sequence[_Request] = ()) -> None:
        admitted = (item.authorization for item in items if item.authorization in self.admitted_keys)
        request = _Request(items, next(admitted, items[0].authorization), replaced)
        for item in items:
            item.carrier = request
        self._requests.add(request)
        self._under_way[request.waits] += 1
        loop = asyncio.get_running_loop()
        request.task = loop.create_task(self._run(request))
        if request.waits:
            loop.call_later(self.policy.taken_seconds, self._get_by, request)
            self._join_waiting()
        else:
            self._started_at = loop.time()

    async def _run(self, request: _Request) -> None:
        seconds = self.policy.answer_seconds + max(item.wait_seconds for item in request.items)
        try:
            async with asyncio.timeout(seconds):
                await self._exchange(request)
        except Refused as refused:
            self._take_refusal(request, refused.answer)
        except Away as error:
            fail(request.open_items(), str(error))
        except TimeoutError:
            silence = Away("the control plane does not answer")
            self._outage.note_failure(silence)
            fail(request.open_items(), str(silence))
        except Crowded:
            settle_all(request.open_items(), problem(503, "relay_busy", "the relay has no connection left", "1"))
        except Exception:
            log.exception("an exchange stumbled")
        finally:
            self._end(request)

    async def _exchange(self, request: _Request) -> None:
        if not request.open_items():
            return  # joined with others before it was sent
        body = b'{"items":[%s]}' % b",".join([item.encode() for item in request.items])
        async with self._send(request.key, body) as lines, aclosing(lines):
            async for line in lines:
                self._note_admitted(request.key)
                self._deal(request, line)
                self._get_by(request)
                # Read to its end, so that the connection is used again, unless nobody waits for the rest.
                if len(request.answered) < len(request.items) and not request.open_items():
                    return

    def _note_admitted(self, key: bytes) -> None:
        if key not in self.admitted_keys:
            while len(self.admitted_keys) >= self.policy.max_open_items:
                del self.admitted_keys[next(iter(self.admitted_keys))]
            self.admitted_keys[key] = None

    def _get_by(self, request: _Request) -> None:
        """Count a request no longer among those under way; those that it replaces end."""
        if request.is_under_way:
            request.is_under_way = False
            self._under_way[request.waits] -= 1
            self._schedule()
            if not request.waits:
                now = asyncio.get_running_loop().time()
                self._gathers_until = now + min(self.policy.return_seconds, (now - self._started_at) / 4)
                self._sizes.append(len(request.items))
        for earlier in request.replaced:
            earlier.end()
        request.replaced = ()

    def _end(self, request: _Request) -> None:
        self._get_by(request)
        self._requests.discard(request)
        fail(request.open_items(), "the control plane hung up before it had answered this call")
        for item in request.items:
            if item.is_lease and item.carrier is request and self._leases.get(item.authorization) is item:
                del self._leases[item.authorization]

    def _deal(self, request: _Request, line: bytes) -> None:
        """Set the answers of a line. Raises Away for one that makes no sense."""
        try:
            for index, answer in read_answers(line):
                request.answered.add(index)
                self._take(request, request.items[index], answer)
        except (ValueError, IndexError) as error:
            raise Away(f"the control plane's answer to an exchange makes no sense: {error!r}") from None

    def _take(self, request: _Request, item: Item, answer: Answer) -> None:
        is_given = item.is_lease and answer.status == 200
        if answer.status < 300:
            self._note_admitted(item.authorization)
        if item.is_open:
            # A request that was replaced ends its waits without a task; the one that replaces it goes on.
            if is_given or item.carrier is request:
                settle(item, answer)
                if item.is_lease and self._leases.get(item.authorization) is item:
                    del self._leases[item.authorization]
        elif is_given and item.is_abandoned and self._leases.get(item.authorization) in (item, None):
            self._give_back(item, answer)

    def _give_back(self, item: Item, answer: Answer) -> None:
        """Release a lease of which its worker never heard, as it has hung up and not called again."""
        self._leases.pop(item.authorization, None)
        lease: Any = json.loads(answer.body)
        # Unless it was renewed since: the worker may have repeated its request elsewhere, and hold this very lease now.
        call = {"token": lease["token"], "expires_at": lease["expires_at"], "reason": "its worker had hung up"}
        self._release(Operation("release", str(lease["task_id"])), item.authorization, call)

    def _release(self, operation: Operation, authorization: bytes, call: dict[str, Any]) -> None:
        answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        release = Item(operation, authorization, json.dumps(call).encode(), 0.0, answer)

        def look(_: object) -> None:
            self.forget(release)
            refusal = answer.result()
            # A control plane too old to know this member gives back what it is told to.
            if refusal and refusal.status == 422 and b"expires_at" in refusal.body and "expires_at" in call:
                rest = {name: value for name, value in call.items() if name != "expires_at"}
                self._release(operation, authorization, rest)

        answer.add_done_callback(look)
        self.submit(release)

    def _take_refusal(self, request: _Request, answer: Answer) -> None:
        """Answer what was refused as a whole as the plain route would, or send it there."""
        items = request.open_items()
        if answer.status in (404, 405):
            self._do_without()
            settle_all([*items, *self._queued()], None)
        elif answer.status in _KEY_REFUSALS:
            # The one whose key was shown hears so from its own route; the others go again, with another's key.
            self.admitted_keys.pop(request.key, None)
            for item in items:
                item.carrier = None
                item.refusals += 1
                if item.authorization == request.key or item.refusals >= self.policy.max_refusals:
                    settle(item, None)
            self._queues[request.waits].extendleft(item for item in reversed(items) if item.is_open)
            # One of leases that wait counts no longer as under way by now, so that its end starts no other.
            self._schedule()
        else:
            # What is wrong with one of them, only its own route can tell.
            settle_all(items, answer if answer.status >= 500 else None)

    def _do_without(self) -> None:
        seconds = self.policy.retry_seconds
        if not self._unusable_until:
            log.warning(
                "the control plane has no exchange, as older ones have none: every call goes by itself, which costs it "
                "more; asking again every %.0f s",
                seconds,
            )
        self._unusable_until = asyncio.get_running_loop().time() + seconds

    def _join_waiting(self) -> None:
        """Join the smaller half of the requests whose leases wait, when there are too many."""
        waiting = [
            (len(items), request) for request in self._requests if request.waits and (items := request.open_items())
        ]
        if len(waiting) > self.policy.waiting_requests:
            waiting.sort(key=itemgetter(0))
            self._carry_on([request for _, request in waiting[: len(waiting) // 2 + 1]])

    def _withdraw(self) -> None:
        """Send leases that go on waiting anew, without those whose workers have hung up."""
        requests, self._withdrawn = self._withdrawn & self._requests, set()
        for request in requests:
            if request.waits:
                self._carry_on([request])

    def _carry_on(self, requests: Sequence[_Request]) -> None:
        """Carry the waiting leases of requests on in another one; once that is taken, the others end."""
        now = asyncio.get_running_loop().time()
        items = [item for request in requests for item in request.open_items()]
        if self._is_stopping or not items:
            for request in requests:
                request.end()
            return
        for item in items:
            item.shorten(now)
        for start in range(0, len(items), self.policy.max_items):
            is_last = start + self.policy.max_items >= len(items)
            self._start(items[start : start + self.policy.max_items], requests if is_last else ())
