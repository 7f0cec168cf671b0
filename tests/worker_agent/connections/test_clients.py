"""A key is sent to nobody else: each address, authority and pin, over real connections."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import trustme

from tests.support.tls import Certificate, issue, listening
from worker_agent.connections.clients import advice, check_address, is_local, open_async_client, open_client
from worker_agent.connections.trust import SYSTEM_TRUST, Trust, read_trust

KEY = {"authorization": "Bearer cvn_a_secret"}
PLAIN = Trust(allow_plain_http=True)


@pytest.mark.parametrize(
    ("address", "is_sent"),
    [
        ("http://127.0.0.1:8765", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:8765/", True),
        ("http://localhost:8765", True),
        ("http://0.0.0.0:8765", True),
        ("https://far.test", True),
        ("unix:/run/api.sock", True),
        ("http://far.test", False),
        ("http://10.0.0.1:8765", False),
        ("http://localhost.far.test", False),
        ("http://127.0.0.1.far.test", False),
        ("http://2130706433", False),
        ("http://127.0.0.1:8765@far.test", False),
        ("https://user:word@far.test", False),
        ("unix:run/api.sock", False),
        ("unix:/" + "x" * 107, False),
        ("unix:", False),
        ("ftp://x", False),
        ("127.0.0.1:8765", False),
        ("", False),
    ],
)
def test_addresses_to_which_a_key_may_go(address: str, is_sent: bool) -> None:
    if is_sent:
        assert check_address(address, SYSTEM_TRUST) == address.rstrip("/")
    else:
        with pytest.raises(ValueError, match=r"."):
            open_client(address, SYSTEM_TRUST)


def test_plain_http_to_another_machine_has_to_be_asked_for() -> None:
    assert check_address("http://far.test", PLAIN) == "http://far.test"
    assert not is_local("http://far.test")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"CONVENER_TLS_PIN": "abc"}, "64 hexadecimal"),
        ({"CONVENER_CA_FILE": "/nowhere.pem"}, "No such file"),
        ({"CONVENER_CA_FILE": __file__}, "holds no certificate"),
        ({"CONVENER_ALLOW_PLAIN_HTTP": "perhaps"}, "true or false"),
    ],
)
def test_wrong_variables_are_named(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_trust(variables)
    assert next(iter(variables)) in str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Certificate:
    return issue(tmp_path / "right")


def _send(address: str, trust: Trust) -> int:
    with open_client(address, trust, timeout=5) as client:
        return client.get("/lease", headers=KEY).status_code


def _refused(address: str, trust: Trust, why: str = "name its authority") -> str:
    with pytest.raises(httpx.ConnectError) as caught:
        _send(address, trust)
    assert f"not trusted: {why}" in str(advice(caught.value, address))
    return str(caught.value)


def test_the_authority_that_is_named_is_accepted_and_no_other(files: Certificate, tmp_path: Path) -> None:
    other = issue(tmp_path / "other")
    with listening(files.context()) as server:
        address = f"https://localhost:{server.port}"
        assert _send(address, Trust(ca_file=files.ca_file)) == 204
        assert len(server.received) == 1
        _refused(address, Trust(ca_file=other.ca_file))
        _refused(address, SYSTEM_TRUST)
        assert len(server.received) == 1


def test_another_name_and_another_time_are_refused(tmp_path: Path) -> None:
    authority = trustme.CA()
    named = issue(tmp_path / "named", "other.test", authority=authority)
    expired = issue(tmp_path / "expired", authority=authority, not_after=datetime(2020, 1, 1, tzinfo=UTC))
    name_advice, date_advice = "its certificate is not for this name", "its certificate is not valid now"
    for files, words, why in ((named, "Hostname mismatch", name_advice), (expired, "expired", date_advice)):
        with listening(files.context()) as server:
            assert words in _refused(f"https://localhost:{server.port}", Trust(ca_file=files.ca_file), why)
            assert not server.received


def test_a_pin_stands_for_an_authority(files: Certificate, tmp_path: Path) -> None:
    other = issue(tmp_path / "other")
    with listening(files.context()) as server:
        address = f"https://127.0.0.1:{server.port}"
        assert _send(address, Trust(pins=frozenset({other.pin, files.pin}))) == 204
        assert files.pin in _refused(address, Trust(pins=frozenset({other.pin})))
        assert len(server.received) == 1


def test_authority_and_pin_must_both_be_right(files: Certificate, tmp_path: Path) -> None:
    other = issue(tmp_path / "other")
    with listening(files.context()) as server:
        address = f"https://localhost:{server.port}"
        assert _send(address, Trust(ca_file=files.ca_file, pins=frozenset({files.pin}))) == 204
        _refused(address, Trust(ca_file=files.ca_file, pins=frozenset({other.pin})))
        _refused(address, Trust(ca_file=other.ca_file, pins=frozenset({files.pin})))
        assert len(server.received) == 1


async def test_pins_hold_for_asyncio_too(files: Certificate, tmp_path: Path) -> None:
    other = issue(tmp_path / "other")
    with listening(files.context()) as server:
        address = f"https://127.0.0.1:{server.port}"
        async with open_async_client(address, Trust(pins=frozenset({files.pin})), timeout=5) as client:
            assert (await client.get("/", headers=KEY)).status_code == 204
        async with open_async_client(address, Trust(pins=frozenset({other.pin})), timeout=5) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("/", headers=KEY)
        assert len(server.received) == 1


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_old_tls_is_refused(files: Certificate) -> None:
    old = files.context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with listening(old) as server, pytest.raises(httpx.ConnectError):
        _send(f"https://localhost:{server.port}", Trust(ca_file=files.ca_file))
    assert not server.received


def test_plain_http_and_tls_at_the_wrong_port_are_told_apart(files: Certificate) -> None:
    with listening(files.context()) as server:
        address = f"http://127.0.0.1:{server.port}"
        with pytest.raises(httpx.HTTPError) as caught:
            _send(address, SYSTEM_TRUST)
        assert "write https://" in str(advice(caught.value, address))
    with listening(None, b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        address = f"https://127.0.0.1:{server.port}"
        with pytest.raises(httpx.HTTPError) as caught:
            _send(address, Trust(pins=frozenset({files.pin})))
        assert "does not speak TLS" in str(advice(caught.value, address))
        assert not any(b"cvn_a_secret" in data for data in server.received)


def test_a_redirect_is_not_followed() -> None:
    with listening(None) as elsewhere:
        location = f"HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:{elsewhere.port}/\r\ncontent-length: 0\r\n\r\n"
        with listening(None, location.encode()) as server:
            assert _send(f"http://127.0.0.1:{server.port}", SYSTEM_TRUST) == 307
        assert not elsewhere.received


def test_proxies_of_the_environment_are_ignored_and_one_that_is_named_is_used(
    files: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(None, b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n") as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        with listening(None) as server:
            assert _send(f"http://127.0.0.1:{server.port}", SYSTEM_TRUST) == 204
        assert not proxy.received
        trust = Trust(pins=frozenset({files.pin}), proxy=f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(httpx.ProxyError):
            _send("https://far.test", trust)
        assert proxy.received[0].startswith(b"CONNECT far.test:443 ")
        assert b"cvn_a_secret" not in proxy.received[0]
