"""Delivery of webhook messages by HTTPS, to an address that was checked and nowhere else.

The host is resolved once for each attempt, every address is checked, and connections go to those alone: whoever
changes the name in between changes nothing. The certificate is that of the name. No redirect and no proxy is followed.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from app.health.rules.webhooks import refusal_reason, signature
from app.kernel.endpoints import Endpoint

# Imported by the first delivery, as few installations have any, and all would start later for it.
if TYPE_CHECKING:
    import httpx

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
# Seconds: to connect, to read, and for everything, lest somebody answers a byte at a time.
_TIMEOUT_SECONDS = 5.0
_WHOLE_SECONDS = 15.0
_RESOLVE_SECONDS = 5.0
_MOST_ADDRESSES = 3
# Only the status of an answer counts; its body is read no further than this.
_MAX_BODY_BYTES = 64 * 1024
_UNREADABLE = "the answer could not be read"


async def resolve_host(host: str, port: int) -> Sequence[str]:
    """Addresses of a host by the resolver of the system, without repetitions."""
    loop = asyncio.get_running_loop()
    entries = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A signed body; one that is sent again keeps its id. `at` is when it is sent, by the database's clock."""

    id: str
    at: datetime
    body: bytes


class WebhookSender:
    """Delivers to one endpoint; tests pass other ways to resolve and to refuse a host."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        resolve: Resolve = resolve_host,
        refuse: Callable[[Sequence[str]], str | None] = refusal_reason,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._resolve = resolve
        self._refuse = refuse
        self._trust = trust or ssl.create_default_context()

    async def deliver(self, message: Message) -> None:
        """Return once the other side has answered with 2xx. Raises NotDelivered, in time."""
        import httpx

        try:
            async with asyncio.timeout(_WHOLE_SECONDS):
                status = await self._send_to_any(message, await self._addresses())
        except TimeoutError:
            raise NotDelivered(f"{self._endpoint.host} has not answered within {_WHOLE_SECONDS:g} s") from None
        except httpx.HTTPError as error:
            # The text of the error may hold the URL, its kind does not.
            raise NotDelivered(f"{self._endpoint.host}: {_description(error)}") from None
        except ssl.SSLError:  # of a record beneath an answer, which httpx passes on as it is
            raise NotDelivered(f"{self._endpoint.host}: {_UNREADABLE}") from None
        except httpx.InvalidURL:
            raise NotDelivered(f"{self._endpoint.host}: the URL in the settings cannot be used") from None
        if 300 <= status < 400:
            raise NotDelivered(f"{self._endpoint.host} answered {status}, and redirects are not followed")
        if not 200 <= status < 300:
            raise NotDelivered(f"{self._endpoint.host} answered {status}")

    async def _addresses(self) -> Sequence[str]:
        host = self._endpoint.host
        try:
            addresses = await asyncio.wait_for(self._resolve(host, self._endpoint.port), _RESOLVE_SECONDS)
        except TimeoutError:
            raise NotDelivered(f"{host} could not be resolved within {_RESOLVE_SECONDS:g} s") from None
        except (OSError, UnicodeError):  # the second for a name whose labels are empty or too long
            raise NotDelivered(f"{host} could not be resolved") from None
        reason = self._refuse(addresses)
        if reason is not None:
            raise NotDelivered(f"{host}: {reason}")
        return addresses

    async def _send_to_any(self, message: Message, addresses: Sequence[str]) -> int:
        """Send to the first address that takes a connection: one of each family first, as one may lead nowhere."""
        import httpx

        of_families = {":" in address: address for address in reversed(addresses)}
        *others, last = sorted(addresses, key=lambda address: address not in of_families.values())[:_MOST_ADDRESSES]
        for address in others:
            with suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await self._send(message, address)
        return await self._send(message, last)

    async def _send(self, message: Message, address: str) -> int:
        import httpx

        endpoint = self._endpoint
        literal = f"[{address}]" if ":" in address else address
        authority = endpoint.host if endpoint.port == 443 else f"{endpoint.host}:{endpoint.port}"
        headers = {
            "Host": authority,
            "Content-Type": "application/json",
            "User-Agent": "Convener",
            "Convener-Delivery": message.id,
            "Convener-Signature": signature(endpoint.secret, message.at, message.body),
        }
        url = f"https://{literal}:{endpoint.port}{endpoint.target}"
        # The URL holds the checked address, Host and SNI the name, so the certificate is checked against the name.
        # A client for each, because connections would outlive the address that was checked.
        async with (
            httpx.AsyncClient(
                verify=self._trust, timeout=_TIMEOUT_SECONDS, follow_redirects=False, trust_env=False
            ) as client,
            client.stream(
                "POST", url, content=message.body, headers=headers, extensions={"sni_hostname": endpoint.host}
            ) as response,
        ):
            await _drain(response)
            return response.status_code


async def _drain(response: "httpx.Response") -> None:
    """Read a short answer to its end; a long one is cut off with its connection."""
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > _MAX_BODY_BYTES:
            return


def _description(error: "httpx.HTTPError") -> str:
    import httpx

    if isinstance(error, httpx.ConnectError) and "certificate" in str(error).lower():
        return "its certificate is not valid for this name, or nobody vouches for it"
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx.ConnectError):
        return "no connection"
    return _UNREADABLE


class NotDelivered(Exception):
    """The other side has not confirmed the message; the text says why, and holds nothing secret."""


class MessageSender(Protocol):
    """Delivers messages to one place."""

    async def deliver(self, message: Message) -> None:
        """Return once the other side has confirmed the message. Raises NotDelivered."""
        ...
