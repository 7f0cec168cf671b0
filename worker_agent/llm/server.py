"""The OpenAI-compatible protocol on loopback, for the tasks of this worker alone."""

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

from worker_agent.json_weight import is_too_heavy
from worker_agent.llm.completions import CompletionService
from worker_agent.llm.held_permit import PermitLost, StreamedReply
from worker_agent.llm.replies import Degradation, NoAnswer, NoCapacity, Reply, RequestRefused, with_origin
from worker_agent.llm.requests import Question
from worker_agent.llm.settings import GatewaySettings
from worker_agent.llm.task_keys import TaskKey, TaskKeys
from worker_agent.llm.upstream import StreamBroken
from worker_agent.wire import JsonObject

log = logging.getLogger(__name__)
MODEL_HEADER = "x-convener-model"
DEGRADED_HEADER = "x-convener-degraded"
# Stops the OpenAI client from retrying by itself what has been retried enough.
_DO_NOT_RETRY = {"x-should-retry": "false"}
# By these some gateways let a request choose other models than its own.
_FURTHER_MODELS = frozenset({"models", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks"})
_MAX_BODY_BYTES = 10 << 20
TrackTask = Callable[[TaskKey, asyncio.Task[Any]], AbstractContextManager[None]]


class Server:
    """Serves the tasks that have a key; `completions` is set once the loop runs."""

    def __init__(self, settings: GatewaySettings, task_keys: TaskKeys) -> None:
        self.completions: CompletionService | None = None
        self._settings = settings
        self._task_keys = task_keys
        self._running: dict[str, set[asyncio.Task[Any]]] = defaultdict(set)
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )

    def cancel_calls(self, task_key: TaskKey) -> None:
        """Cancel the calls of a task that is over."""
        for task in list(self._running.pop(task_key.secret, ())):
            task.cancel()

    async def _models(self, request: Request) -> Response:
        if self._task_key(request) is None:
            return _unknown_task()
        models = [{"id": name, "object": "model", "owned_by": "convener"} for name in self._settings.models]
        return _json({"object": "list", "data": models})

    async def _complete(self, request: Request) -> Response:
        task_key = self._task_key(request)
        if task_key is None:
            return _unknown_task()
        async with task_key.calls:
            return await self._complete_for(task_key, request)

    async def _complete_for(self, task_key: TaskKey, request: Request) -> Response:
        try:
            body = await _read_body(request)
        except ValueError as error:
            return _error(400, str(error), "invalid_request_error")
        except ClientDisconnect:
            return Response(status_code=400)
        # The task may have ended while the body was being read.
        if self._task_key(request) is None:
            return _unknown_task()
        model = body.get("model") or self._settings.models[0]
        if model not in self._settings.models:
            return _error(404, f"the model must be one of: {', '.join(self._settings.models)}", "model_not_found")
        question = Question(body=body, task_key=task_key, model=model, traceparent=request.headers.get("traceparent"))
        answer_task = asyncio.create_task(self._answer(question))
        with self._track(task_key, answer_task):
            return await _answer_while_connected(request, answer_task)

    async def _answer(self, question: Question) -> Response:
        assert self.completions is not None, "nobody is served before the loop runs"
        try:
            if question.body.get("stream"):
                reply_stream = await self.completions.stream(question)
                question.task_key.waits.clear()
                return self._stream(question, reply_stream)
            reply = await self.completions.answer(question)
            question.task_key.waits.clear()
            return _json(reply.body, headers=_reply_headers(reply.model, reply.degradation))
        except NoCapacity as no_capacity:
            question.task_key.waits.update(no_capacity)
            retry_after = {"retry-after": str(math.ceil(no_capacity.seconds))}
            return _error(429, str(no_capacity), "convener_not_now", headers=retry_after)
        except NoAnswer as unavailable:
            return _error(503, str(unavailable), "convener_unavailable")
        except RequestRefused as refusal:
            status = refusal.failure.status or 400
            error_body = refusal.failure.body
            return _json(error_body, status) if error_body else _error(status, str(refusal), "invalid_request_error")

    def _stream(self, question: Question, reply: StreamedReply | Reply) -> Response:
        if isinstance(reply, Reply):
            headers = _reply_headers(reply.model, reply.degradation)
            return StreamingResponse(_reply_as_stream(reply), headers=headers, media_type="text/event-stream")
        return _StreamedResponse(reply, question, self._track)

    @contextmanager
    def _track(self, task_key: TaskKey, task: asyncio.Task[Any]) -> Iterator[None]:
        """Have this work cancelled at the end of its task; cancel it at once if the task is over."""
        self._running[task_key.secret].add(task)
        if self._task_keys.find(task_key.secret) is None:
            task.cancel()
        try:
            yield
        finally:
            tasks = self._running[task_key.secret]
            tasks.discard(task)
            if not tasks:
                del self._running[task_key.secret]

    def _task_key(self, request: Request) -> TaskKey | None:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        return self._task_keys.find(secret.strip()) if scheme.lower() == "bearer" else None


class _StreamedResponse(StreamingResponse):
    """A response in chunks; however it ends, even before it begins, its permit is settled."""

    def __init__(self, streamed_reply: StreamedReply, question: Question, track: TrackTask) -> None:
        headers = _reply_headers(streamed_reply.model, streamed_reply.degradation)
        super().__init__(_stream_events(streamed_reply, question), headers=headers, media_type="text/event-stream")
        self._streamed_reply = streamed_reply
        self._task_key = question.task_key
        self._track = track

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            with self._track(self._task_key, task):
                await super().__call__(scope, receive, send)
        finally:
            await self._streamed_reply.close()


async def _stream_events(streamed_reply: StreamedReply, question: Question) -> AsyncIterator[bytes]:
    """Yield the reply's events; after the first no retry is possible, and without [DONE] it counts as incomplete."""
    try:
        async for chunk in streamed_reply.chunks():
            yield _server_sent_event(
                with_origin(chunk, asked_model=question.model, degradation=streamed_reply.degradation)
            )
        yield b"data: [DONE]\n\n"
    except StreamBroken as error:
        yield _server_sent_event(_error_body(str(error), "convener_stream_broken"))
    except PermitLost:
        yield _server_sent_event(_error_body("the permit was lost, so the call was ended", "convener_not_now"))


async def _answer_while_connected(request: Request, answer_task: asyncio.Task[Response]) -> Response:
    """Return the answer, unless the client disconnects or its task ends first."""
    disconnect_task = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({answer_task, disconnect_task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        disconnect_task.cancel()
        answer_task.cancel()
    # The cancelled answer is awaited as well: it still has to settle its permit.
    await asyncio.wait({answer_task, disconnect_task})
    return _unknown_task() if answer_task.cancelled() else answer_task.result()


async def _wait_for_disconnect(request: Request) -> None:
    """Return when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request) -> JsonObject:
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > _MAX_BODY_BYTES:
            raise ValueError(f"the request has more than {_MAX_BODY_BYTES >> 20} MiB")
    if is_too_heavy(content):
        raise ValueError("the request has too many values, or a number of over 400 digits")
    try:
        body = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ValueError("the request is not JSON") from None
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
        raise ValueError("the request needs `messages`: a list with one at least")
    if names := _FURTHER_MODELS & body.keys():
        raise ValueError(f"the request must not have `{min(names)}`: the operator says which models come next")
    return body


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _json(body: JsonObject, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII, as models emit lone surrogates, which UTF-8 cannot encode."""
    return Response(json.dumps(body), status, headers, "application/json")


async def _reply_as_stream(reply: Reply) -> AsyncIterator[bytes]:
    choices = [
        {"index": choice.get("index", 0), "delta": _delta(choice), "finish_reason": choice.get("finish_reason")}
        for choice in reply.body.get("choices", ())
    ]
    yield _server_sent_event({**reply.body, "object": "chat.completion.chunk", "choices": choices})
    yield b"data: [DONE]\n\n"


def _delta(choice: JsonObject) -> JsonObject:
    """Message of a chunk, in which, unlike in a whole answer, every tool call carries its index."""
    message: JsonObject = choice.get("message") or {}
    tool_calls = [{"index": number, **call} for number, call in enumerate(message.get("tool_calls") or ())]
    return message | ({"tool_calls": tool_calls} if tool_calls else {})


def _reply_headers(model: str, degradation: Degradation | None) -> dict[str, str]:
    headers = {MODEL_HEADER: "".join(letter if " " <= letter <= "~" else "?" for letter in model).strip()}
    return headers | ({DEGRADED_HEADER: degradation.value} if degradation else {})


def _server_sent_event(chunk: JsonObject) -> bytes:
    return f"data: {json.dumps(chunk)}\n\n".encode()


def _unknown_task() -> Response:
    return _error(401, "no running task has this key; take it from OPENAI_API_KEY", "invalid_request_error")


def _error(status: int, message: str, kind: str, headers: dict[str, str] | None = None) -> Response:
    return _json(_error_body(message, kind), status, _DO_NOT_RETRY | (headers or {}))


def _error_body(message: str, kind: str) -> JsonObject:
    return {"error": {"message": message, "type": kind, "param": None, "code": kind}}
