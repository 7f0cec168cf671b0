"""Where a webhook may go, how it is signed, and when it is given up."""

import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.health.rules.webhooks import WebhookPolicy, is_public, refusal_reason, retry_at, signature
from app.kernel.endpoints import Endpoint, endpoint

HOSTS = ("hooks.example.org", "Pager.Example.org ")
SECRET = "a secret for tests only"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = WebhookPolicy()


def test_an_endpoint_is_read_from_its_url() -> None:
    parsed_endpoint = endpoint("https://HOOKS.example.org/a/b?token=x", HOSTS, SECRET)
    assert parsed_endpoint == Endpoint(host="hooks.example.org", port=443, target="/a/b?token=x", secret=SECRET)
    assert endpoint("https://pager.example.org:8443", HOSTS, SECRET).port == 8443
    assert endpoint("https://pager.example.org", HOSTS, SECRET).target == "/"


def test_what_is_secret_is_in_no_repr() -> None:
    text = repr(endpoint("https://hooks.example.org/?token=hidden", HOSTS, SECRET))
    assert "hidden" not in text
    assert SECRET not in text


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://hooks.example.org/", "must begin with https"),
        ("ftp://hooks.example.org/", "must begin with https"),
        ("hooks.example.org", "must begin with https"),
        ("https://user:word@hooks.example.org/", "user or password"),
        ("https://user@hooks.example.org/", "user or password"),
        ("https://hooks.example.org/#x", "fragment"),
        ("https:///path", "name a host"),
        ("https://127.0.0.1/", "name a host"),
        ("https://[::1]/", "name a host"),
        ("https://93.184.216.34/", "name a host"),
        ("https://evil.example.org/", "not among those"),
        ("https://hooks.example.org.evil.org/", "not among those"),
        ("https://hooks.example.org@evil.org/", "user or password"),
        ("https://evil.org\\@hooks.example.org/", "."),
        ("https://localhost/", "not among those"),
        ("https://hooks.example.org:0/", "port 0"),
        ("https://hooks.example.org:99999/", "."),
    ],
)
def test_an_endpoint_that_is_refused(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        endpoint(url, HOSTS, SECRET)


def test_a_short_secret_is_none() -> None:
    with pytest.raises(ValueError, match="16 characters") as caught:
        endpoint("https://hooks.example.org/?token=hidden", HOSTS, "short")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
        "169.254.169.254", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:5db8:d822::", "2001:0:1::1",
        "192.0.0.1", "192.0.0.170", "192.88.99.1", "198.19.255.255", "198.51.100.7", "203.0.113.7", "0.1.2.3",
        "100.127.255.255", "239.1.2.3", "250.1.2.3",
        "fec0::1", "feff::1", "febf::1", "3fff::1", "3fff:fff::1", "3ffe::1", "100::1", "5f00::1", "4000::1", "ff0e::1",
        "2001:2::1", "2001:10::1", "2001:20::1", "2001:1ff::1", "2001::1", "2002:c000:204::1",
        "64:ff9b::c0a8:101", "64:ff9b::6440:1", "64:ff9b:1::5db8:d822", "64:ff9b:1::a00:1",
        "::ffff:192.88.99.1", "::ffff:100.64.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1",
        "localhost", "", "127.1", "0x7f000001", "2130706433", "0177.0.0.1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)
    assert refusal_reason(["93.184.216.34", address]) is not None, "one of them spoils all"


@pytest.mark.parametrize(
    "address",
    [
        "93.184.216.34", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1", "198.20.0.1",
        "2606:4700:4700::1111", "2001:200::1", "2a00:1450::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822",
    ],
)  # fmt: skip
def test_an_address_that_is_public(address: str) -> None:
    assert is_public(address)
    assert refusal_reason([address]) is None


def test_a_host_without_an_address_is_refused() -> None:
    assert refusal_reason([]) == "the host has no address"


def test_the_signature_is_what_receivers_compute() -> None:
    body = b'{"kind": "alert.opened"}'
    expected = hmac.new(SECRET.encode(), b"1767225600." + body, hashlib.sha256).hexdigest()
    assert signature(SECRET, NOW, body) == f"t=1767225600,v1={expected}"
    assert signature(SECRET, NOW, body + b" ") != signature(SECRET, NOW, body)
    assert signature(SECRET, NOW + timedelta(seconds=1), body) != signature(SECRET, NOW, body)


@given(st.integers(1, 100), st.floats(0, 1))
def test_waits_grow_within_bounds_and_end(attempts: int, chance: float) -> None:
    due_at = retry_at(attempts, chance, NOW, POLICY)
    if attempts >= POLICY.attempts:
        assert due_at is None
    else:
        assert due_at is not None
        longest = min(POLICY.cap, POLICY.base * 2 ** (attempts - 1))
        assert NOW <= due_at <= NOW + timedelta(seconds=longest)


def test_the_whole_jitter_is_used() -> None:
    assert retry_at(3, 0.0, NOW, POLICY) == NOW
    assert retry_at(3, 1.0, NOW, POLICY) == NOW + timedelta(seconds=20)
