"""`convener up` and its programs talk over a socket: whoever takes the port while it is down learns no key."""

import asyncio
import socket
import stat
from pathlib import Path

import psutil
import pytest

from tests.support.command_line import CommandLine
from tests.support.tls import listening
from tests.system.conftest import Up, about_up, until

pytestmark = [pytest.mark.slow, about_up]


async def test_a_stranger_at_the_port_learns_no_key(up: Up) -> None:
    command = CommandLine(environment={"CONVENER_STATE_DIRECTORY": str(up.state)})
    path = up.state / "api.sock"
    await up.start("--workers", "2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await until(lambda: len(_workers(path)) == 2, what="two workers that use the socket")
    for address in ((), ("--url", up.url)):
        assert (await command("status", *address)).code == 0

    (await up.running("app.main")).kill()
    up.kill()
    await until(lambda: not _is_served(path) and _is_free(up.port), what="the end of the API")
    assert path.exists(), "stale, as nobody was left to remove it"
    with listening(None, port=up.port) as stranger:
        for address in ((), ("--url", up.url)):
            done = await command("status", *address)
            assert (done.code, "cannot reach the service at unix:" in done.err) == (3, True)
        # Workers and loops that are left over try again within a second.
        await asyncio.sleep(2)
        assert stranger.received == []

    await up.start("--workers", "2")
    assert (await command("status")).code == 0
    assert up.stop() == 0
    assert not path.exists()


def _workers(path: Path) -> list[psutil.Process]:
    address = f"unix:{path}"
    return [process for process in psutil.process_iter(["cmdline"]) if address in (process.info["cmdline"] or ())]


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
