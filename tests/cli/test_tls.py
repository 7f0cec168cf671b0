"""`convener tls create` makes what the API can show and clients can verify, and renews it under the same pin."""

import shutil
import stat
from pathlib import Path

import pytest

from app.http.tls import ServerCertificate
from tests.support.command_line import CommandLine
from tests.support.tls import listening
from worker_agent.connections.clients import open_client
from worker_agent.connections.trust import Trust

if shutil.which("openssl") is None:
    pytest.skip("openssl is not installed", allow_module_level=True)


def _get(address: str, trust: Trust) -> int:
    with open_client(address, trust, timeout=5) as client:
        return client.get("/").status_code


def test_what_is_made_is_served_verified_and_renewed(offline: CommandLine, tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    words = ("tls", "create", "localhost", "127.0.0.1", "--directory", str(directory), "-o", "json")
    first, second = (offline.run(*words).json for _ in range(2))
    assert first == second, "the pin too"
    for name in ("server.key", "ca.key"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    certificate = ServerCertificate(directory / "server.pem", directory / "server.key")
    with listening(certificate.context) as server:
        for host in ("localhost", "127.0.0.1"):
            address = f"https://{host}:{server.port}"
            assert _get(address, Trust(ca_file=directory / "ca.pem")) == 204
            assert _get(address, Trust(pins=frozenset({first["pin"]}))) == 204


@pytest.mark.parametrize("name", ["a b", "x,IP:10.0.0.1", "a\nCN=b", "-a", "x" * 64, "a..b"])
def test_names_that_are_none(offline: CommandLine, tmp_path: Path, name: str) -> None:
    done = offline.run("tls", "create", "--directory", str(tmp_path / "tls"), "--", name)
    assert done.code == 2
    assert not (tmp_path / "tls").exists()


def test_for_people(offline: CommandLine, tmp_path: Path) -> None:
    done = offline.run("tls", "create", "lab.test", "--directory", str(tmp_path / "tls"), COLUMNS="200")
    assert done.code == 0, done.err
    assert "CONVENER_TLS_CERTIFICATE=" in done.out
    assert "CONVENER_TLS_PIN=sha256:" in done.out
