"""A real HTTPS server on loopback, with a certificate by an authority of the test's own."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trustme

HOST = "hooks.example.org"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class Received:
    """One request."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Receiver:
    """What the server has seen; `answer` is what it does next."""

    answer: Answer
    port: int = 0
    connections: int = 0
    names: list[str | None] = field(default_factory=list)
    requests: list[Received] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request, and answer it."""
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines if each)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append(Received(line=line, headers=headers, body=body))
            await self.answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()


def saying(status: str, *headers: str, body: bytes = b"") -> Answer:
    """Answers with this status, at once."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close", "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()

    return answer


class Authority:
    """Vouches for names."""

    def __init__(self) -> None:
        self._authority = trustme.CA()

    def trust(self) -> ssl.SSLContext:
        """What a client trusts that trusts this authority alone."""
        context = ssl.create_default_context(cafile=None)
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._authority.configure_trust(trusting)
        assert trusting.verify_mode == context.verify_mode == ssl.CERT_REQUIRED
        assert trusting.check_hostname
        return trusting

    def server(self, name: str, seen: list[str | None]) -> ssl.SSLContext:
        """What a server shows that has this name; `seen` are the names that clients ask for."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(name).configure_cert(context)
        context.sni_callback = lambda _, asked, __: seen.append(asked)
        return context


@asynccontextmanager
async def receiving(authority: Authority, answer: Answer | None = None, *, name: str = HOST) -> AsyncIterator[Receiver]:
    """A running server."""
    receiver = Receiver(answer=answer or saying("204 No Content"))
    context = authority.server(name, receiver.names)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=context)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
