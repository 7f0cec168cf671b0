"""Answers that browsers neither guess about, run, frame nor keep; and requests that name one host."""

import base64
import hashlib
import re

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]
_NOSNIFF = (b"x-content-type-options", b"nosniff")
_NO_STORE = (b"cache-control", b"no-store")
_NOTHING = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
SECURE_HEADERS: Headers = [_NOSNIFF, _NOTHING, _NO_STORE]
_PAGE = (
    "default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class SecureAnswers:
    """Adds the headers to answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # The start of a page, kept until its body tells which scripts it has.
        page: Message = {}

        async def send_securely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: Headers = list(message.get("headers", ()))
                message["headers"] = headers
                if _value(headers, b"content-type").startswith(b"text/html"):
                    page.update(message)
                    return
                _secure(headers, _NOTHING)
            elif page:
                scripts = " ".join(_hash(script) for script in _INLINE_SCRIPT.findall(message.get("body", b"")))
                _secure(page["headers"], (_NOTHING[0], _PAGE.format(scripts=scripts).encode()))
                await send(dict(page))
                page.clear()
            await send(message)

        await self._app(scope, receive, send_securely)


def secured(response: Response) -> Response:
    """The response with the headers, for those that do not pass `SecureAnswers`."""
    response.raw_headers += SECURE_HEADERS
    return response


def names_one_host(scope: Scope) -> bool:
    """Whether a request of HTTP/1.1 names its host once (RFC 9112, 3.2); a proxy might take the other one of two."""
    hosts = [name for name, _ in scope["headers"]].count(b"host")
    return hosts == 1 or scope["http_version"] != "1.1"


def _secure(headers: Headers, policy: tuple[bytes, bytes]) -> None:
    headers.append(_NOSNIFF)
    # Pages of the dashboard have a stricter one of their own.
    if not _value(headers, policy[0]):
        headers.append(policy)
    if not _value(headers, _NO_STORE[0]):
        headers.append(_NO_STORE)


def _value(headers: Headers, name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")


def _hash(script: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
