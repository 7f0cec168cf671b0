"""A provider of language models with a script of misbehaviour, and a control plane that hands out permits."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from uuid import uuid4

from tests.worker_agent.llm.loopback import Asked, Json, Wire

Act = Callable[[Asked, Wire], None]
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


def says(text: str) -> Act:
    """A good answer, as a stream where one is asked for."""

    def act(asked: Asked, wire: Wire) -> None:
        model = asked.body["model"]
        if not asked.body.get("stream"):
            wire.answer(200, completion(text, model))
            return
        wire.begin({"content-type": "text/event-stream"})
        for word in text.split():
            wire.write(piece(f"{word} ", model))
        wire.write(piece("", model, "stop"))
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        wire.write(f"data: {json.dumps({'model': model, 'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n")

    return act


def refuses(status: int, headers: dict[str, str] | None = None, body: object = None) -> Act:
    """An error, in the shape of the protocol unless another body is given."""
    shown = {"error": {"message": f"scripted {status}", "type": "x"}} if body is None else body
    return lambda asked, wire: wire.answer(status, shown, headers)


def hangs(seconds: float) -> Act:
    """Silence."""
    return lambda asked, wire: time.sleep(seconds)


def closes_mid_body(asked: Asked, wire: Wire) -> None:
    """Half an answer, then the end of the connection, although a longer one was promised."""
    wire.begin({"content-type": "application/json", "content-length": "5000"})
    wire.write('{"id": "chatcmpl-1", "choices": [{"index": 0, "mess')


def cuts_the_stream(asked: Asked, wire: Wire) -> None:
    """A stream that ends like a proper one, but whose answer does not."""
    wire.begin({"content-type": "text/event-stream"})
    wire.write(piece("It ", asked.body["model"]) + "data: [DONE]\n\n")


def stalls(seconds: float) -> Act:
    """A stream that falls silent in the middle."""

    def act(asked: Asked, wire: Wire) -> None:
        wire.begin({"content-type": "text/event-stream"})
        wire.write(piece("It ", asked.body["model"]))
        time.sleep(seconds)

    return act


@dataclass(slots=True)
class Provider:
    """Acts by its script, then always as `finally_`; tells how many calls were under way at most."""

    script: deque[Act]
    finally_: Act
    most: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, *script: Act, then: Act | None = None) -> "Provider":
        return cls(deque(script), then or says("It is a law."))

    def respond(self, asked: Asked, wire: Wire) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            act = self.script.popleft() if self.script else self.finally_
        try:
            act(asked, wire)
        finally:
            with self._lock:
                self._now -= 1


def renews(asked: Asked, wire: Wire) -> None:
    """The control plane lets a permit live on."""
    wire.answer(200, {"expires_at": "2026-11-24T12:00:00Z"})


@dataclass(slots=True)
class Permits:
    """The control plane as far as permits go: grants, unless its script refuses first."""

    refusals: deque[Json] = field(default_factory=deque)
    live: set[str] = field(default_factory=set)
    settled: list[Json] = field(default_factory=list)
    cache: dict[str, Json] = field(default_factory=dict)
    renewed: int = 0
    ttl_seconds: float = 60.0
    # What becomes of a renewal.
    on_renewal: Act | None = None

    def refuse(self, reasons: Iterable[Json]) -> None:
        self.refusals.extend(reasons)

    def respond(self, asked: Asked, wire: Wire) -> None:
        if asked.headers.get("authorization") != "Bearer the-worker":
            wire.answer(401, {"code": "unauthorized"})
        elif asked.path.startswith("/llm/cache/"):
            found = self.cache.get(asked.path.rpartition("/")[2])
            wire.answer(200 if found else 404, found or {"code": "answer_not_cached"})
        elif asked.path == "/llm/permits":
            self._acquire(wire)
        elif asked.path.endswith("/renew"):
            self.renewed += 1
            (self.on_renewal or renews)(asked, wire)
        else:
            self.live.discard(asked.path.split("/")[3])
            self.settled.append(asked.body)
            wire.answer(200, {"limit": 5, "in_use": len(self.live), "cooldown_seconds": 0, "late": False})

    def _acquire(self, wire: Wire) -> None:
        if self.refusals:
            refusal = {"retry_after": 0.01, "reason": "concurrency", "fallback_models": [], "cached": None}
            wire.answer(429, {"code": "permit_refused", **refusal, **self.refusals.popleft()}, {"retry-after": "1"})
            return
        permit = str(uuid4())
        self.live.add(permit)
        granted = {"permit_id": permit, "token": "t", "ttl_seconds": self.ttl_seconds, "limit": 5, "in_use": 1}
        wire.answer(201, granted)

    @property
    def outcomes(self) -> list[str]:
        """How calls went, in the order of their settlement."""
        return [str(each["outcome"]) for each in self.settled]
