"""Calls to the language model's gateway: plain ones, and streams once their first content is there."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx

from worker_agent.connections.several import HTTP_ERRORS
from worker_agent.llm import outcomes
from worker_agent.llm.cancellation import cancel_at_most_once, run_shielded
from worker_agent.llm.keys import Key, KeySource
from worker_agent.llm.outcomes import CallFailure, ModelAnswer, Outcome, TokenUsage
from worker_agent.llm.rate_limit_hints import read_hints
from worker_agent.llm.settings import GatewaySettings
from worker_agent.wire import JsonObject

_PATH = "/chat/completions"
_KEY_REFUSED = frozenset({401, 403})
_MAX_REFUSAL_BYTES = 65_536
_MAX_ANSWER_BYTES = 32 << 20
_MAX_LINE_BYTES = 4 << 20
_MAX_ENDS = 16
# A shorter key may be a word of the answer.
_MIN_SECRET_BYTES = 8


class _AnswerUnreadable(Exception):
    """An answer is too long, or compressed although it was not to be."""


class StreamBroken(Exception):
    """A stream ended before the answer did."""

    def __init__(self, failure: CallFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(slots=True, kw_only=True)
class AnswerStream:
    """An answer in chunks: those already read, and those to come; to be closed."""

    first_chunks: list[JsonObject]
    rest: AsyncIterator[JsonObject]
    response: httpx.Response = field(repr=False)
    tokens: TokenUsage = field(default_factory=TokenUsage)
    # Those with content so far: mostly a token each.
    pieces: int = 0
    # Of the answer as a whole, without its content: id, model, and why each choice has ended.
    outline: JsonObject = field(default_factory=dict)
    _unfinished_choices: set[str] = field(default_factory=set)

    async def chunks(self) -> AsyncIterator[JsonObject]:
        """Yield all chunks; raises StreamBroken when they end before every choice has a finish reason."""
        for chunk in self.first_chunks:
            self._record(chunk)
            yield chunk
        async for chunk in self.rest:
            self._record(chunk)
            yield chunk
        if self._unfinished_choices:
            raise _broken_stream("the stream ended before the answer did")

    async def close(self) -> None:
        """Hang up, so that the rest is neither written nor paid for."""
        await self.response.aclose()

    def _record(self, chunk: JsonObject) -> None:
        if not self.outline:
            self.outline = {"id": chunk.get("id"), "model": chunk.get("model"), "choices": []}
        if chunk.get("usage"):
            self.tokens = outcomes.read_token_usage(chunk["usage"])
        self.pieces += bool(chunk.get("choices"))
        for choice in chunk.get("choices") or ():
            index = str(choice.get("index") or 0)
            if choice.get("finish_reason"):
                self._unfinished_choices.discard(index)
                if len(self.outline["choices"]) < _MAX_ENDS:
                    self.outline["choices"].append({"finish_reason": choice["finish_reason"]})
            else:
                self._unfinished_choices.add(index)


class UpstreamClient:
    """Client for the gateway that the settings name."""

    def __init__(self, settings: GatewaySettings, http: httpx.AsyncClient) -> None:
        self._settings = settings
        self._http = http
        self.keys = KeySource(settings)

    async def ask(self, request: JsonObject, trace_context: str | None) -> ModelAnswer | CallFailure:
        """Return the whole answer."""
        response: httpx.Response | None = None
        try:
            async with asyncio.timeout(self._settings.total_seconds):
                response = await self._send(request, trace_context)
                if not response.is_success:
                    return await self._refusal(response)
                content = await cancel_at_most_once(_read(response))
        except (*HTTP_ERRORS, TimeoutError, _AnswerUnreadable) as error:
            return outcomes.read_error(error)
        finally:
            if response is not None:
                await run_shielded(response.aclose())
        return outcomes.read_answer(response.status_code, content)

    async def open_stream(self, request: JsonObject, trace_context: str | None) -> AnswerStream | CallFailure:
        """Open a stream and read up to its first content, as until then the call can be repeated unnoticed."""
        response: httpx.Response | None = None
        ends_at = asyncio.get_running_loop().time() + self._settings.total_seconds
        try:
            async with asyncio.timeout(self._settings.first_token_seconds):
                response = await self._send(request, trace_context)
                if not response.is_success:
                    return await self._refusal(response)
                rest = self._chunks(response, ends_at)
                first_chunks = [chunk async for chunk in _until_first_choice(rest)]
        except (*HTTP_ERRORS, TimeoutError, StreamBroken, asyncio.CancelledError) as error:
            if response is not None:
                await run_shielded(response.aclose())
            if isinstance(error, asyncio.CancelledError):
                raise
            return error.failure if isinstance(error, StreamBroken) else outcomes.read_error(error)
        if not first_chunks or not first_chunks[-1].get("choices"):
            await run_shielded(response.aclose())
            return CallFailure(outcome=Outcome.SERVER_ERROR, message="the stream ended before it began")
        return AnswerStream(first_chunks=first_chunks, rest=rest, response=response)

    async def _send(self, request: JsonObject, trace_context: str | None) -> httpx.Response:
        key = await self.keys.current()
        response = await self._send_with(key, request, trace_context)
        if response.status_code not in _KEY_REFUSED:
            return response
        renewed = await self.keys.renew(key)
        if renewed.text == key.text:
            return response
        await run_shielded(response.aclose())
        return await self._send_with(renewed, request, trace_context)

    async def _send_with(self, key: Key, request: JsonObject, trace_context: str | None) -> httpx.Response:
        pending_response = self._http.send(self._request(key, request, trace_context), stream=True)
        return await cancel_at_most_once(pending_response, undo=httpx.Response.aclose)

    def _request(self, key: Key, request: JsonObject, trace_context: str | None) -> httpx.Request:
        # Compressed, a few bytes of an answer could fill the memory.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        headers |= {"authorization": f"Bearer {key.text}"} if key.text else {}
        headers |= {"traceparent": trace_context} if trace_context else {}
        timeout = httpx.Timeout(self._settings.total_seconds, connect=self._settings.connect_seconds)
        # ASCII, as handlers cut texts within a character, and UTF-8 cannot encode the half.
        content = json.dumps(request)
        return self._http.build_request("POST", _PATH, content=content, headers=headers, timeout=timeout)

    async def _refusal(self, response: httpx.Response) -> CallFailure:
        content = await cancel_at_most_once(_read_beginning(response))
        await run_shielded(response.aclose())
        return outcomes.read_refusal(response.status_code, content, read_hints(response.headers, datetime.now(UTC)))

    async def _chunks(self, response: httpx.Response, ends_at: float) -> AsyncIterator[JsonObject]:
        """Yield the chunks of server-sent events; raises StreamBroken for an error, a stall, or one without an end."""
        lines, now = _lines(response), asyncio.get_running_loop().time
        # Until the first chunk, the time limit of `open_stream` applies as well.
        line_timeout = self._settings.total_seconds
        while True:
            try:
                async with asyncio.timeout_at(min(ends_at, now() + line_timeout)):
                    line = await cancel_at_most_once(anext(lines))
            except StopAsyncIteration:
                return
            except (*HTTP_ERRORS, TimeoutError, _AnswerUnreadable) as error:
                raise StreamBroken(outcomes.read_error(error)) from error
            if not line.startswith("data:"):
                continue
            text = line[5:].strip()
            if text == "[DONE]":
                return
            yield _parse_chunk(text)
            line_timeout = self._settings.between_tokens_seconds


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the body as it comes. Raises _AnswerUnreadable for one that is compressed, or does not end in time."""
    if _is_compressed(response):
        raise _AnswerUnreadable("the answer is compressed")
    size = 0
    async for piece in response.aiter_raw():
        size += len(piece)
        if size > _MAX_ANSWER_BYTES:
            raise _AnswerUnreadable(f"the answer has more than {_MAX_ANSWER_BYTES >> 20} MiB")
        yield piece


def _is_compressed(response: httpx.Response) -> bool:
    return response.headers.get("content-encoding") not in (None, "identity")


async def _read(response: httpx.Response) -> bytes:
    return _without_key(b"".join([piece async for piece in _pieces(response)]), response)


def _without_key(content: bytes, response: httpx.Response) -> bytes:
    """The content without the key that was sent, as some gateways repeat it, above all one that they refuse."""
    key = response.request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if len(key) < _MIN_SECRET_BYTES:
        return content
    # As some write a slash in JSON.
    return content.replace(key, b"***").replace(key.replace(b"/", rb"\/"), b"***")


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Yield the lines of the body without their ends. Raises _AnswerUnreadable for one that is too long."""
    buffer, searched = bytearray(), 0
    async for piece in _pieces(response):
        buffer += piece
        while (end := buffer.find(b"\n", searched)) >= 0:
            yield _without_key(bytes(buffer[:end]), response).decode(errors="replace").rstrip("\r")
            del buffer[: end + 1]
            searched = 0
        searched = len(buffer)
        if searched > _MAX_LINE_BYTES:
            raise _AnswerUnreadable(f"a line of the answer has more than {_MAX_LINE_BYTES >> 20} MiB")
    if buffer:
        yield _without_key(bytes(buffer), response).decode(errors="replace")


async def _read_beginning(response: httpx.Response) -> bytes:
    if _is_compressed(response):
        return b"(compressed)"
    content = b""
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > _MAX_REFUSAL_BYTES:
            break
    return _without_key(content, response)


async def _until_first_choice(pieces: AsyncIterator[JsonObject]) -> AsyncIterator[JsonObject]:
    """Yield chunks up to the first with content; later ones stay unread."""
    while True:
        try:
            chunk = await anext(pieces)
        except StopAsyncIteration:
            return
        yield chunk
        if chunk.get("choices"):
            return


def _parse_chunk(text: str) -> JsonObject:
    chunk = outcomes.parse_json_object(text)
    if chunk is None:
        raise _broken_stream("a piece of the stream is not JSON")
    choices = chunk.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise _broken_stream("a piece of the stream has choices that are none")
    error = chunk.get("error")
    if error:
        message = error.get("message") if isinstance(error, Mapping) else error
        raise _broken_stream(f"the stream says: {str(message)[:300]}")
    return chunk


def _broken_stream(message: str) -> StreamBroken:
    return StreamBroken(CallFailure(outcome=Outcome.SERVER_ERROR, message=message))
