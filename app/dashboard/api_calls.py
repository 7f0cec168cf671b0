"""Calls of the service's own API within this process, so that pages do just what it lets their viewer do."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.types import ASGIApp, Message

from app.kernel.text import plural

Query = Mapping[str, Any]
_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class Refused(Exception):
    """The API has answered with a problem, which the page shows."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(problem.get("detail", ""))
        self.status = status
        self.problem = problem

    def is_of(self, field: str) -> bool:
        """Whether the problem is with this field, or with a part of it."""
        paths = [str(item["path"]) for item in self.problem.get("errors") or ()]
        return any(f"{path}.".startswith(f"{field}.") for path in paths)

    @property
    def sentence(self) -> str:
        """The problem in words, with each field that is wrong."""
        detail = str(self.problem.get("detail") or self.problem.get("title") or f"the answer was {self.status}")
        fields = [f"{item['path']}: {item['message']}" for item in self.problem.get("errors") or ()]
        others = [field for field in fields if field not in detail]
        return "; ".join([detail, *others[:5], *([plural(len(others) - 5, "more field")] if len(others) > 5 else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of the API: its status, the value of its JSON, and its ETag."""

    status: int
    value: Any
    etag: str | None


class Api:
    """The API as the holder of a session, or of a key, may use it."""

    def __init__(self, request: Request, credential: str, *, is_repeated: bool = False) -> None:
        """`is_repeated`: what it reads was recorded before, where reading is recorded."""
        self._request = request
        self._app: ASGIApp = request.app
        self._scope = request.scope
        self._credential = credential
        self._is_repeated = is_repeated

    def repeating(self) -> "Api":
        """The same for what an open page reads again and again by itself."""
        return Api(self._request, self._credential, is_repeated=True)

    async def ask(
        self, method: str, path: str, *, query: Query | None = None, body: Any = None, if_match: str | None = None
    ) -> Answer:
        """Send a request through everything that requests from outside pass, too. Raises Refused."""
        text = json.dumps({} if body is None else body).encode() if method in _METHODS_WITH_BODY else b""
        exchange = _Exchange(text)
        scope: dict[str, Any] = {
            **{name: self._scope.get(name) for name in ("type", "asgi", "scheme", "server", "client")},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": quote(path).encode(),
            "query_string": urlencode(_present(query or {}), doseq=True).encode(),
            "root_path": "",
            "headers": self._headers(text, if_match),
            "state": {"is_repeated": self._is_repeated},
        }
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            # The last resort of the application answers first and raises then, for the log of a server.
            if not exchange.status:
                raise
        answer = exchange.answer()
        if answer.status >= 400:
            raise Refused(answer.status, answer.value if isinstance(answer.value, dict) else {})
        return answer

    async def get(self, path: str, query: Query | None = None, /, **options: Any) -> Any:
        """The value of an address. Raises Refused."""
        return (await self.ask("GET", path, query={**(query or {}), **options})).value

    def _headers(self, body: bytes, if_match: str | None) -> list[tuple[bytes, bytes]]:
        hosts = [value for name, value in self._scope["headers"] if name == b"host"]
        headers = [
            (b"host", hosts[0] if hosts else b"localhost"),
            (b"authorization", f"Bearer {self._credential}".encode()),
        ]
        if body:
            headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if if_match is not None:
            headers.append((b"if-match", if_match.encode()))
        return headers


async def read_time(api: Api) -> datetime:
    """The time by the clock of the database, to the second or so. Raises Refused."""
    return datetime.fromisoformat((await api.get("/queues"))["at"])


class _Exchange:
    """One request and its answer, in memory."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.status = 0
        self._etag: str | None = None
        self._parts: list[bytes] = []

    async def receive(self) -> Message:
        if self._body is None:
            # Whoever waits for something, waits for the disconnect too, which never comes.
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._etag = next((value.decode() for name, value in message["headers"] if name == b"etag"), None)
        else:
            self._parts.append(message.get("body", b""))

    def answer(self) -> Answer:
        text = b"".join(self._parts)
        return Answer(status=self.status, value=json.loads(text) if text else None, etag=self._etag)


def _present(query: Query) -> dict[str, Any]:
    """The parameters that have a value."""
    return {name: _text(value) for name, value in query.items() if value not in (None, "", [])}


def _text(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
