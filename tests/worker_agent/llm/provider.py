"""A provider of language models with a script of misbehaviour, and a control plane that hands out permits."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from uuid import uuid4

from tests.worker_agent.llm.loopback import Json, ReceivedRequest, ResponseWriter

Act = Callable[[ReceivedRequest, ResponseWriter], None]
MESSAGES = [{"role": "user", "content": "Why does T grow with a?"}]


def completion(text: str, model: str, finish_reason: str | None = "stop") -> Json:
    """An answer in the protocol's shape."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


def piece(text: str, model: str, finish_reason: str | None = None) -> str:
    """One event of a stream."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n"


def says(text: str, seconds: float = 0.0) -> Act:
    """A good answer after a while, as a stream where one is asked for."""

    def act(request: ReceivedRequest, writer: ResponseWriter) -> None:
        time.sleep(seconds)
        model = request.body["model"]
        if not request.body.get("stream"):
            writer.answer(200, completion(text, model))
            return
        writer.begin({"content-type": "text/event-stream"})
        for word in text.split():
            writer.write(piece(f"{word} ", model))
        writer.write(piece("", model, "stop"))
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        writer.write(f"data: {json.dumps({'model': model, 'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n")

    return act


def refuses(status: int, headers: dict[str, str] | None = None, body: object = None) -> Act:
    """An error, in the shape of the protocol unless another body is given."""
    shown = {"error": {"message": f"scripted {status}", "type": "x"}} if body is None else body
    return lambda request, writer: writer.answer(status, shown, headers)


def permit_over(request: ReceivedRequest, writer: ResponseWriter) -> None:
    """The control plane's word that a permit is over."""
    writer.deny(409, "permit_over")


def hangs(seconds: float) -> Act:
    """Silence."""
    return lambda request, writer: time.sleep(seconds)


def closes_mid_body(request: ReceivedRequest, writer: ResponseWriter) -> None:
    """Half an answer, then the end of the connection, although a longer one was promised."""
    writer.begin({"content-type": "application/json", "content-length": "5000"})
    writer.write('{"id": "chatcmpl-1", "choices": [{"index": 0, "mess')


def cuts_the_stream(request: ReceivedRequest, writer: ResponseWriter) -> None:
    """A stream that ends like a proper one, but whose answer does not."""
    writer.begin({"content-type": "text/event-stream"})
    writer.write(piece("It ", request.body["model"]) + "data: [DONE]\n\n")


def stalls(seconds: float) -> Act:
    """A stream that falls silent in the middle."""

    def act(request: ReceivedRequest, writer: ResponseWriter) -> None:
        writer.begin({"content-type": "text/event-stream"})
        writer.write(piece("It ", request.body["model"]))
        time.sleep(seconds)

    return act


@dataclass(slots=True)
class Provider:
    """Acts by its script, then always as `finally_`; tells how many calls were under way at most."""

    script: deque[Act]
    finally_: Act
    peak: int = 0
    _under_way: set[ResponseWriter] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, *script: Act, then: Act | None = None) -> "Provider":
        return cls(deque(script), then or says("It is a law."))

    def respond(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
        with self._lock:
            # Silence goes on for a while although its caller has hung up and has given its permit back.
            self._under_way = {each for each in self._under_way if not each.has_hung_up()}
            self._under_way.add(writer)
            self.peak = max(self.peak, len(self._under_way))
            act = self.script.popleft() if self.script else self.finally_
        writer.on_answer = lambda: self._end(writer)
        try:
            act(request, writer)
        finally:
            self._end(writer)

    def _end(self, writer: ResponseWriter) -> None:
        with self._lock:
            self._under_way.discard(writer)


def renews(request: ReceivedRequest, writer: ResponseWriter) -> None:
    """The control plane lets a permit live on."""
    writer.answer(200, {"expires_at": "2026-11-24T12:00:00Z"})


@dataclass(slots=True)
class Permits:
    """The control plane as far as permits go: grants, unless its script refuses first."""

    refusals: deque[Json] = field(default_factory=deque)
    live: set[str] = field(default_factory=set)
    settlements: list[Json] = field(default_factory=list)
    cache: dict[str, Json] = field(default_factory=dict)
    renewal_count: int = 0
    ttl_seconds: float = 60.0
    fallback_models: list[str] = field(default_factory=list)
    # What happens once a call was settled.
    on_settled: Callable[[], None] | None = None
    # What becomes of a renewal.
    on_renewal: Act | None = None

    def refuse(self, reasons: Iterable[Json]) -> None:
        self.refusals.extend(reasons)

    def respond(self, request: ReceivedRequest, writer: ResponseWriter) -> None:
        if request.headers.get("authorization") != "Bearer the-worker":
            writer.deny(401, "unauthorized")
        elif request.path.startswith("/llm/cache/"):
            answer = self.cache.get(request.path.partition("?")[0].rpartition("/")[2])
            if answer:
                writer.answer(200, answer)
            else:
                writer.deny(404, "answer_not_cached")
        elif request.path == "/llm/permits":
            self._acquire(writer)
        elif request.path.endswith("/renew"):
            self.renewal_count += 1
            (self.on_renewal or renews)(request, writer)
        else:
            self.live.discard(request.path.split("/")[3])
            self.settlements.append(request.body)
            if self.on_settled is not None:
                self.on_settled()
            writer.answer(200, {"limit": 5, "in_use": len(self.live), "cooldown_seconds": 0, "late": False})

    def _acquire(self, writer: ResponseWriter) -> None:
        if self.refusals:
            refusal = {"retry_after": 0.01, "reason": "concurrency", "fallback_models": [], "cached": None}
            writer.deny(429, "permit_refused", {"retry-after": "1"}, **{**refusal, **self.refusals.popleft()})
            return
        permit = str(uuid4())
        self.live.add(permit)
        granted = {"permit_id": permit, "token": "t", "ttl_seconds": self.ttl_seconds, "limit": 5, "in_use": 1}
        granted |= {"fallback_models": self.fallback_models}
        writer.answer(201, granted)

    @property
    def outcomes(self) -> list[str]:
        """How calls went, in the order of their settlement."""
        return [str(each["outcome"]) for each in self.settlements]
