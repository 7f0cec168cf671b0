"""What handlers speak to: the OpenAI-compatible protocol on loopback, for the tasks of this worker alone."""

import asyncio
import json
import logging
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from worker_agent.llm.calls import Calls, Question
from worker_agent.llm.holding import Lost, Streaming
from worker_agent.llm.replies import Degraded, NotNow, Refused, Reply, Unavailable, marked
from worker_agent.llm.settings import GatewaySettings
from worker_agent.llm.tickets import Ticket, Tickets
from worker_agent.llm.upstream import Broken
from worker_agent.wire import JsonObject

log = logging.getLogger(__name__)
MODEL_HEADER = "x-convener-model"
DEGRADED_HEADER = "x-convener-degraded"
# The OpenAI client knows it, and would otherwise try again by itself what has been tried enough.
_DO_NOT_RETRY = {"x-should-retry": "false"}
_MOST_BYTES = 10 << 20
Noted = Callable[[Ticket, asyncio.Task[Any]], AbstractContextManager[None]]


class Server:
    """Serves the tasks that hold a ticket; `calls` is there once the loop runs."""

    def __init__(self, settings: GatewaySettings, tickets: Tickets) -> None:
        self.calls: Calls | None = None
        self._settings = settings
        self._tickets = tickets
        self._running: dict[str, set[asyncio.Task[Any]]] = defaultdict(set)
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )

    def end(self, ticket: Ticket) -> None:
        """The task is over: what it still waits for is given up."""
        for task in list(self._running.pop(ticket.secret, ())):
            task.cancel()

    async def _models(self, request: Request) -> Response:
        if self._ticket(request) is None:
            return _unknown_task()
        listed = [{"id": name, "object": "model", "owned_by": "convener"} for name in self._settings.models]
        return _json({"object": "list", "data": listed})

    async def _complete(self, request: Request) -> Response:
        ticket = self._ticket(request)
        if ticket is None:
            return _unknown_task()
        try:
            body = await _read(request)
        except ValueError as error:
            return _error(400, str(error), "invalid_request_error")
        except ClientDisconnect:
            return Response(status_code=400)
        # The task may have ended while it was being read.
        if self._ticket(request) is None:
            return _unknown_task()
        model = str(body.get("model") or self._settings.models[0])
        answering = asyncio.create_task(self._answer(Question(body=body, ticket=ticket, model=model)))
        with self._noted(ticket, answering):
            return await _while_wanted(request, answering)

    async def _answer(self, question: Question) -> Response:
        assert self.calls is not None, "nobody is served before the loop runs"
        return await self._outcome(self.calls, question)

    async def _outcome(self, calls: Calls, question: Question) -> Response:
        try:
            if question.body.get("stream"):
                return self._stream(question, await calls.stream(question))
            return _whole(await calls.answer(question))
        except NotNow as not_now:
            retry_after = {"retry-after": str(math.ceil(not_now.seconds))}
            return _error(429, str(not_now), "convener_not_now", headers=retry_after)
        except Unavailable as unavailable:
            return _error(503, str(unavailable), "convener_unavailable")
        except Refused as refused:
            status = refused.failed.status or 400
            shown = refused.failed.body
            return _json(shown, status) if shown else _error(status, str(refused), "invalid_request_error")

    def _stream(self, question: Question, found: Streaming | Reply) -> Response:
        if isinstance(found, Reply):
            heads = _heads(found.model, found.degraded)
            return StreamingResponse(_in_one_piece(found), headers=heads, media_type="text/event-stream")
        return _Streamed(found, question, self._noted)

    @contextmanager
    def _noted(self, ticket: Ticket, task: asyncio.Task[Any]) -> Iterator[None]:
        """So that this work can be given up when the task is over; at once if it is."""
        self._running[ticket.secret].add(task)
        if self._tickets.find(ticket.secret) is None:
            task.cancel()
        try:
            yield
        finally:
            ours = self._running[ticket.secret]
            ours.discard(task)
            if not ours:
                del self._running[ticket.secret]

    def _ticket(self, request: Request) -> Ticket | None:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        return self._tickets.find(secret.strip()) if scheme.lower() == "bearer" else None


class _Streamed(StreamingResponse):
    """An answer that is passed on piece by piece; however that ends, even before it begins, its permit is let go."""

    def __init__(self, streaming: Streaming, question: Question, noted: Noted) -> None:
        heads = _heads(streaming.model, streaming.degraded)
        super().__init__(_pieces(streaming, question), headers=heads, media_type="text/event-stream")
        self._streaming = streaming
        self._ticket = question.ticket
        self._noted = noted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            with self._noted(self._ticket, task):
                await super().__call__(scope, receive, send)
        finally:
            await self._streaming.close()


async def _pieces(streaming: Streaming, question: Question) -> AsyncIterator[bytes]:
    """Once a handler has a part of it, it is too late for another try. Without [DONE] nobody takes it for whole."""
    try:
        async for chunk in streaming.chunks():
            yield _event(marked(chunk, asked=question.model, degraded=streaming.degraded))
        yield b"data: [DONE]\n\n"
    except Broken as broken:
        yield _event(_shown(str(broken), "convener_stream_broken"))
    except Lost:
        yield _event(_shown("the permit was lost, so the call was ended", "convener_not_now"))


async def _while_wanted(request: Request, answering: asyncio.Task[Response]) -> Response:
    """The answer, unless its client has left before it is there, or its task is over."""
    leaving = asyncio.create_task(_leaves(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        answering.cancel()
    await asyncio.wait({answering, leaving})
    return _unknown_task() if answering.cancelled() else answering.result()


async def _leaves(request: Request) -> None:
    """Returns when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request) -> JsonObject:
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > _MOST_BYTES:
            raise ValueError(f"the request has more than {_MOST_BYTES >> 20} MiB")
    try:
        body = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ValueError("the request is not JSON") from None
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
        raise ValueError("the request needs `messages`: a list with one at least")
    return body


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _json(body: JsonObject, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """ASCII, as models leave halves of characters, which UTF-8 has no way to write."""
    return Response(json.dumps(body), status, headers, "application/json")


def _whole(reply: Reply) -> Response:
    return _json(reply.body, headers=_heads(reply.model, reply.degraded))


async def _in_one_piece(reply: Reply) -> AsyncIterator[bytes]:
    choices = [
        {"index": choice.get("index", 0), "delta": _delta(choice), "finish_reason": choice.get("finish_reason")}
        for choice in reply.body.get("choices", ())
    ]
    yield _event({**reply.body, "object": "chat.completion.chunk", "choices": choices})
    yield b"data: [DONE]\n\n"


def _delta(choice: JsonObject) -> JsonObject:
    """In a piece, unlike in a whole answer, every call of a tool says which one it is."""
    message: JsonObject = choice.get("message") or {}
    calls = [{"index": number, **call} for number, call in enumerate(message.get("tool_calls") or ())]
    return message | ({"tool_calls": calls} if calls else {})


def _heads(model: str, degraded: Degraded | None) -> dict[str, str]:
    heads = {MODEL_HEADER: "".join(letter if " " <= letter <= "~" else "?" for letter in model).strip()}
    return heads | ({DEGRADED_HEADER: degraded.value} if degraded else {})


def _event(chunk: JsonObject) -> bytes:
    return f"data: {json.dumps(chunk)}\n\n".encode()


def _unknown_task() -> Response:
    return _error(401, "no running task has this key; take it from OPENAI_API_KEY", "invalid_request_error")


def _error(status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> Response:
    return _json(_shown(message, kind), status, _DO_NOT_RETRY | (headers or {}))


def _shown(message: str, kind: str) -> JsonObject:
    return {"error": {"message": message, "type": kind, "param": None, "code": kind}}
