"""The API with a certificate, as a process: its oldest TLS, its renewal, and how a command sees it."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest

from app.db.database import Database
from app.http.tls import ServerCertificate, UnusableCertificate, expiry_problem
from app.kernel.access import Role
from app.settings import Settings
from app.settings_sources import SettingsError
from tests.support.command_line import CommandLine
from tests.support.ports import free_port
from tests.support.processes import process
from tests.support.tls import Certificate, issue
from tests.system.conftest import make_keys
from worker_agent.connections.clients import open_async_client
from worker_agent.connections.trust import SYSTEM_TRUST


@pytest.fixture
def files(tmp_path: Path) -> Certificate:
    return issue(tmp_path / "tls")


@asynccontextmanager
async def _serving(database_url: str, files: Certificate, tmp_path: Path, **settings: str) -> AsyncIterator[int]:
    """The pid of an API with a certificate, and a socket beside it."""
    environment = {
        "CONVENER_DATABASE_URL": database_url,
        "CONVENER_TLS_CERTIFICATE": str(files.certificate),
        "CONVENER_TLS_KEY": str(files.key),
        "CONVENER_SOCKET": str(tmp_path / "api.sock"),
    } | settings
    with process("app.main", environment, tmp_path / "api.log") as child:
        for _ in range(600):
            assert child.poll() is None, (tmp_path / "api.log").read_text()
            if await _is_ready(f"unix:{tmp_path}/api.sock"):
                break
            await asyncio.sleep(0.05)
        yield child.pid


async def _is_ready(address: str) -> bool:
    async with open_async_client(address, SYSTEM_TRUST) as client:
        try:
            return (await client.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False


def _handshake(port: int, version: ssl.TLSVersion) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain) as wrapped:
        return wrapped.version()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
async def test_the_api_with_a_certificate(own_database: Database, files: Certificate, tmp_path: Path) -> None:
    port = free_port()
    keys = await make_keys(own_database.url)
    async with _serving(own_database.url, files, tmp_path, CONVENER_PORT=str(port)) as pid:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            assert await asyncio.to_thread(_handshake, port, version) == version.name.replace("_", ".")
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(_handshake, port, ssl.TLSVersion.TLSv1_1)

        # Whoever says nothing, or nothing that is TLS, is let go in seconds.
        async with asyncio.timeout(50):  # three times the 5 s that a handshake has; by default one would take 60 s
            for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(said)
                with suppress(ConnectionError):
                    assert b"HTTP" not in await reader.read()
                writer.close()

        own = CommandLine(environment={"CONVENER_KEY": keys[Role.READER], "CONVENER_STATE_DIRECTORY": str(tmp_path)})
        address = f"https://localhost:{port}"
        done = await own("--ca-file", str(files.ca_file), "status", "--url", address)
        assert done.code == 0, done.err
        done = await own("--pin", files.pin, "status", "--url", f"https://127.0.0.1:{port}")
        assert done.code == 0, done.err
        done = await own("status", "--url", address)
        assert (done.code, "not trusted" in done.err) == (3, True)
        done = await own("--pin", "sha256:" + 64 * "0", "status", "--url", address)
        assert (done.code, "not trusted" in done.err) == (3, True)
        done = await own("status", "--url", f"http://127.0.0.1:{port}")
        assert (done.code, "write https://" in done.err) == (3, True)
        # The socket has the file system's protection instead of TLS.
        done = await own("status", "--url", f"unix:{tmp_path}/api.sock")
        assert done.code == 0, done.err
        os.kill(pid, signal.SIGTERM)
        assert await asyncio.to_thread(psutil.Process(pid).wait, 20) == 0
        assert not (tmp_path / "api.sock").exists()


def test_a_renewed_certificate_is_taken_over_and_half_of_one_is_not(
    files: Certificate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serving = ServerCertificate(files.certificate, files.key)
    assert not serving.reload_if_changed()
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=700)
    renewed = issue(tmp_path / "renewed", not_after=later)
    shutil.copy(renewed.certificate, files.certificate)
    former = serving.expires_at
    with caplog.at_level(logging.WARNING):
        assert not serving.reload_if_changed()
    assert "the former one is served" in caplog.text
    assert serving.expires_at == former
    shutil.copy(renewed.key, files.key)
    assert serving.reload_if_changed()
    assert serving.expires_at == later


@pytest.mark.parametrize(("days", "words"), [(15, None), (13, "expires at"), (-1, "has expired at")])
def test_a_certificate_that_expires_soon_is_told_once_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, days: int, words: str | None
) -> None:
    files = issue(tmp_path, not_after=datetime.now(UTC) + timedelta(days=days, hours=1))
    serving = ServerCertificate(files.certificate, files.key)
    with caplog.at_level(logging.WARNING):
        for seconds in (0.0, 10.0, 80_000.0, 90_000.0):
            serving.warn(seconds)
    assert len(caplog.records) == (2 if words else 0)
    assert (words or "") in (expiry_problem(serving.expires_at) or "")


def test_files_that_are_no_certificate_with_its_key(files: Certificate, tmp_path: Path) -> None:
    other = issue(tmp_path / "other")
    for certificate, key in ((files.certificate, other.key), (files.key, files.certificate), (tmp_path, files.key)):
        with pytest.raises(UnusableCertificate, match="no certificate with its key"):
            ServerCertificate(certificate, key)


def test_certificate_and_key_come_together(files: Certificate) -> None:
    for name in ("CONVENER_TLS_CERTIFICATE", "CONVENER_TLS_KEY"):
        with pytest.raises(SettingsError, match="together or not at all"):
            Settings.from_environment({name: str(files.key)})


@pytest.mark.parametrize(
    ("variables", "exposed"),
    [
        ({}, False),
        ({"CONVENER_HOST": "::1"}, False),
        ({"CONVENER_HOST": "localhost"}, False),
        ({"CONVENER_HOST": "0.0.0.0"}, True),
        ({"CONVENER_HOST": "::"}, True),
        ({"CONVENER_HOST": "10.0.0.1"}, True),
        ({"CONVENER_HOST": "lab.test"}, True),
        ({"CONVENER_HOST": "0.0.0.0", "CONVENER_ALLOW_PLAIN_HTTP": "true"}, False),
        ({"CONVENER_HOST": "0.0.0.0", "CONVENER_TLS_CERTIFICATE": "a", "CONVENER_TLS_KEY": "b"}, False),
    ],
)
def test_listening_beyond_this_machine_without_tls_is_known(variables: dict[str, str], exposed: bool) -> None:
    assert Settings.from_environment(variables).is_exposed is exposed
