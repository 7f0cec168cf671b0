"""The webhook against a real HTTPS server: what it sends, where it refuses to go, and what it does not wait for."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from app.health.rules.webhooks import signature
from app.health.service import delivery
from app.health.service.delivery import Message, NotDelivered, WebhookSender
from app.kernel.endpoints import Endpoint
from tests.support.tls import ALERT_IN_CLEAR
from tests.support.webhook_receiver import HOST, Answer, Authority, Receiver, receiving, saying

SECRET = "a secret for tests only"
TOKEN = "hidden-token"
MESSAGE = Message(id="0190a5b2-0000", at=datetime(2026, 1, 1, tzinfo=UTC), body=b'{"kind": "alert.opened"}')


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def receiver(authority: Authority) -> AsyncIterator[Receiver]:
    async with receiving(authority) as receiver:
        yield receiver


class Names:
    """A name server that answers in turn, and counts."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = answers
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


def sender(receiver: Receiver, authority: Authority, **more: Any) -> WebhookSender:
    """One that may go to loopback, which only a test can have made."""
    endpoint = Endpoint(host=HOST, port=receiver.port, target=f"/hook?token={TOKEN}", secret=SECRET)
    usual: dict[str, Any] = {"resolve": Names(["127.0.0.1"]), "refuse": lambda _: None, "trust": authority.trust()}
    return WebhookSender(endpoint, **(usual | more))


async def refused(sender: WebhookSender) -> str:
    """Why it was not delivered; nothing secret is in it."""
    with pytest.raises(NotDelivered) as caught:
        await sender.deliver(MESSAGE)
    assert TOKEN not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


async def test_what_is_sent(receiver: Receiver, authority: Authority) -> None:
    await sender(receiver, authority).deliver(MESSAGE)
    (request,) = receiver.requests
    assert request.line == f"POST /hook?token={TOKEN} HTTP/1.1"
    assert request.headers["host"] == f"{HOST}:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["convener-delivery"] == MESSAGE.id
    assert request.headers["convener-signature"] == signature(SECRET, MESSAGE.at, MESSAGE.body)
    assert request.body == MESSAGE.body
    assert receiver.names == [HOST], "the certificate is asked for by name, although the connection goes to an address"


async def test_an_address_that_is_not_public_is_never_connected_to(receiver: Receiver, authority: Authority) -> None:
    """With the rule that production has: the server is there, and sees nothing."""
    for addresses in (["127.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], ["93.184.216.34", "127.0.0.1"], []):
        careful = WebhookSender(
            Endpoint(host=HOST, port=receiver.port, target="/", secret=SECRET),
            resolve=Names(addresses),
            trust=authority.trust(),
        )
        assert HOST in await refused(careful)
    assert receiver.connections == 0


async def test_a_name_that_changes_its_address_changes_nothing(receiver: Receiver, authority: Authority) -> None:
    """It is resolved once: the address that was checked is the one that is connected to."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    checked: list[Sequence[str]] = []

    def refuse(addresses: Sequence[str]) -> str | None:
        checked.append(addresses)
        return None

    await sender(receiver, authority, resolve=names, refuse=refuse).deliver(MESSAGE)
    assert (names.asked, checked, receiver.connections) == (1, [["127.0.0.1"]], 1)


async def test_each_attempt_is_checked_anew(receiver: Receiver, authority: Authority) -> None:
    names = Names(["127.0.0.1"], ["10.0.0.1"])
    two = sender(receiver, authority, resolve=names, refuse=lambda a: None if a == ["127.0.0.1"] else "not that one")
    await two.deliver(MESSAGE)
    assert "not that one" in await refused(two)
    assert receiver.connections == 1


async def test_a_certificate_of_another_name(authority: Authority) -> None:
    async with receiving(authority, name="evil.example.org") as receiver:
        assert "certificate" in await refused(sender(receiver, authority))
    assert receiver.requests == []


async def test_a_certificate_that_nobody_vouches_for(receiver: Receiver) -> None:
    assert "certificate" in await refused(sender(receiver, Authority()))
    assert receiver.requests == []


async def test_the_authorities_of_the_system_are_the_default(receiver: Receiver) -> None:
    assert "certificate" in await refused(sender(receiver, Authority(), trust=None))


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_redirects_are_not_followed(authority: Authority, receiver: Receiver, status: str) -> None:
    elsewhere = f"Location: https://{HOST}:{receiver.port}/stolen"
    async with receiving(authority, saying(status, elsewhere)) as first:
        assert "redirects are not followed" in await refused(sender(first, authority))
    assert (len(first.requests), receiver.connections) == (1, 0)


@pytest.mark.parametrize("status", ["400 Bad", "404 Not Found", "410 Gone", "429 Slow Down", "500 Oh", "503 Busy"])
async def test_only_a_success_counts(authority: Authority, status: str) -> None:
    async with receiving(authority, saying(status, body=b"x" * 1000)) as receiver:
        assert status[:3] in await refused(sender(receiver, authority))


async def _never(_: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def _slowly(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _garbage(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\xff nonsense\r\n\r\n")
    await writer.drain()


async def _hangs_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _breaks_the_encryption(writer: asyncio.StreamWriter) -> None:
    os.write(writer.get_extra_info("socket").fileno(), ALERT_IN_CLEAR)


@pytest.mark.parametrize("answer", [_never, _slowly, _garbage, _hangs_up, _breaks_the_encryption])
async def test_an_answer_that_does_not_come(authority: Authority, answer: Answer, monkeypatch: Any) -> None:
    monkeypatch.setattr(delivery, "_WHOLE_SECONDS", 0.5)
    monkeypatch.setattr(delivery, "_TIMEOUT_SECONDS", 0.3)
    async with receiving(authority, answer) as receiver:
        assert HOST in await refused(sender(receiver, authority))
    assert len(receiver.requests) == 1


async def test_a_long_answer_is_cut_off(authority: Authority) -> None:
    written = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while written < 50 << 20:
                writer.write(b"x" * 65536)
                written += 65536
                await writer.drain()

    async with receiving(authority, endless) as receiver:
        await sender(receiver, authority).deliver(MESSAGE)
    assert written < 50 << 20


async def test_no_proxy_of_the_surroundings_is_used(
    receiver: Receiver, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    await sender(receiver, authority).deliver(MESSAGE)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("addresses", [["127.0.0.2"], ["::2", "::3", "::4"]])
async def test_an_address_where_nobody_is_does_not_keep_it_from_the_others(
    receiver: Receiver, authority: Authority, addresses: list[str]
) -> None:
    """As of a name with addresses of both families, where one of these leads nowhere from here."""
    await sender(receiver, authority, resolve=Names([*addresses, "127.0.0.1"])).deliver(MESSAGE)
    assert len(receiver.requests) == 1


async def test_nobody_there(authority: Authority) -> None:
    async with receiving(authority) as receiver:
        pass
    assert await refused(sender(receiver, authority)) == f"{HOST}: no connection"


async def test_a_name_that_there_is_not(receiver: Receiver, authority: Authority) -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    assert "could not be resolved" in await refused(sender(receiver, authority, resolve=unknown))


async def test_a_name_server_that_does_not_answer(receiver: Receiver, authority: Authority, monkeypatch: Any) -> None:
    monkeypatch.setattr(delivery, "_RESOLVE_SECONDS", 0.1)

    async def waits(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    assert "could not be resolved within" in await refused(sender(receiver, authority, resolve=waits))


@pytest.mark.parametrize("name", ["a..b", "x" * 70])
async def test_a_name_that_is_none_is_not_resolved(receiver: Receiver, authority: Authority, name: str) -> None:
    async def unusable(host: str, port: int) -> Sequence[str]:
        return await delivery.resolve_host(name, port)

    assert "could not be resolved" in await refused(sender(receiver, authority, resolve=unusable))


async def test_the_system_resolves_without_a_test() -> None:
    """What the system says of `localhost` is loopback, and so refused."""
    assert set(await delivery.resolve_host("localhost", 443)) <= {"127.0.0.1", "::1"}
    endpoint = Endpoint(host="localhost", port=1, target="/", secret=SECRET)
    assert "not a public address" in await refused(WebhookSender(endpoint))
