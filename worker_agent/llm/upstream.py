"""One call to the gateway of the language model: a plain one, or a stream whose first words are there."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx

from worker_agent.llm.endings import cancelled_once, to_the_end
from worker_agent.llm.hints import read_hints
from worker_agent.llm.outcomes import (
    Answered,
    Failed,
    Outcome,
    Tokens,
    read_answer,
    read_error,
    read_object,
    read_refusal,
    read_tokens,
)
from worker_agent.llm.settings import GatewaySettings
from worker_agent.wire import JsonObject

_PATH = "/chat/completions"
_LONGEST_REFUSAL = 65_536


class Broken(Exception):
    """A stream that ended before the answer did."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


@dataclass(slots=True, kw_only=True)
class Stream:
    """An answer that comes in pieces: those that are there, and those to come. To be closed."""

    first: list[JsonObject]
    rest: AsyncIterator[JsonObject]
    response: httpx.Response = field(repr=False)
    model: str = ""
    tokens: Tokens = field(default_factory=Tokens)
    _unfinished: set[str] = field(default_factory=set)

    async def chunks(self) -> AsyncIterator[JsonObject]:
        """All pieces in order. Raises Broken when they end before every choice has said why it ends."""
        for chunk in self.first:
            self._note(chunk)
            yield chunk
        async for chunk in self.rest:
            self._note(chunk)
            yield chunk
        if self._unfinished:
            raise Broken(Failed(outcome=Outcome.SERVER_ERROR, message="the stream ended before the answer did"))

    async def close(self) -> None:
        """Hang up; whatever is still being written is not paid for any longer."""
        await self.response.aclose()

    def _note(self, chunk: JsonObject) -> None:
        self.model = str(chunk.get("model") or self.model)
        if chunk.get("usage"):
            self.tokens = read_tokens(chunk["usage"])
        for choice in chunk.get("choices") or ():
            index = str(choice.get("index") or 0)
            if choice.get("finish_reason"):
                self._unfinished.discard(index)
            else:
                self._unfinished.add(index)


class Upstream:
    """The gateway, by the address and with the key of the settings."""

    def __init__(self, settings: GatewaySettings, http: httpx.AsyncClient) -> None:
        self._settings = settings
        self._http = http

    async def ask(self, request: JsonObject, trace_context: str | None) -> Answered | Failed:
        """The whole answer."""
        try:
            async with asyncio.timeout(self._settings.total_seconds):
                response = await cancelled_once(self._http.send(self._request(request, trace_context)))
        except (httpx.HTTPError, TimeoutError) as error:
            return read_error(error)
        return read_answer(response, read_hints(response.headers, datetime.now(UTC)))

    async def open(self, request: JsonObject, trace_context: str | None) -> Stream | Failed:
        """A stream that has begun: up to there a call can still be made anew without anybody noticing."""
        response: httpx.Response | None = None
        try:
            async with asyncio.timeout(self._settings.first_token_seconds):
                sending = self._http.send(self._request(request, trace_context), stream=True)
                response = await cancelled_once(sending, undo=httpx.Response.aclose)
                if not response.is_success:
                    return await self._refusal(response)
                rest = self._pieces(response)
                first = [chunk async for chunk in _until_it_speaks(rest)]
        except (httpx.HTTPError, TimeoutError, Broken, asyncio.CancelledError) as error:
            if response is not None:
                await to_the_end(response.aclose())
            if isinstance(error, asyncio.CancelledError):
                raise
            return error.failed if isinstance(error, Broken) else read_error(error)
        if not first or not first[-1].get("choices"):
            await to_the_end(response.aclose())
            return Failed(outcome=Outcome.SERVER_ERROR, message="the stream ended before it began")
        return Stream(first=first, rest=rest, response=response)

    def _request(self, request: JsonObject, trace_context: str | None) -> httpx.Request:
        headers = {"content-type": "application/json"}
        headers |= {"authorization": f"Bearer {self._settings.key}"} if self._settings.key else {}
        headers |= {"traceparent": trace_context} if trace_context else {}
        timeout = httpx.Timeout(self._settings.total_seconds, connect=self._settings.connect_seconds)
        # ASCII, as handlers cut texts in the middle of a character, and UTF-8 has no way to write the half.
        content = json.dumps(request)
        return self._http.build_request("POST", _PATH, content=content, headers=headers, timeout=timeout)

    async def _refusal(self, response: httpx.Response) -> Failed:
        content = await cancelled_once(_beginning(response))
        await to_the_end(response.aclose())
        return read_refusal(response.status_code, content, read_hints(response.headers, datetime.now(UTC)))

    async def _pieces(self, response: httpx.Response) -> AsyncIterator[JsonObject]:
        """The chunks of a stream of server-sent events. Raises Broken for an error that comes as one, or a stall."""
        lines = response.aiter_lines()
        # Whoever waits for the first words has a clock of its own.
        patience: float | None = None
        while True:
            try:
                async with asyncio.timeout(patience):
                    line = await cancelled_once(anext(lines))
            except StopAsyncIteration:
                return
            except (httpx.HTTPError, TimeoutError) as error:
                raise Broken(read_error(error)) from error
            if not line.startswith("data:"):
                continue
            text = line[5:].strip()
            if text == "[DONE]":
                return
            yield _chunk(text)
            patience = self._settings.between_tokens_seconds


async def _beginning(response: httpx.Response) -> bytes:
    content = b""
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > _LONGEST_REFUSAL:
            break
    return content


async def _until_it_speaks(pieces: AsyncIterator[JsonObject]) -> AsyncIterator[JsonObject]:
    """Up to the first piece with something of the answer in it; the pieces after it stay where they are."""
    while True:
        try:
            chunk = await anext(pieces)
        except StopAsyncIteration:
            return
        yield chunk
        if chunk.get("choices"):
            return


def _chunk(text: str) -> JsonObject:
    chunk = read_object(text)
    if chunk is None:
        raise Broken(Failed(outcome=Outcome.SERVER_ERROR, message="a piece of the stream is not JSON"))
    choices = chunk.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise Broken(Failed(outcome=Outcome.SERVER_ERROR, message="a piece of the stream has choices that are none"))
    error = chunk.get("error")
    if error:
        message = error.get("message") if isinstance(error, Mapping) else error
        raise Broken(Failed(outcome=Outcome.SERVER_ERROR, message=f"the stream says: {str(message)[:300]}"))
    return chunk
