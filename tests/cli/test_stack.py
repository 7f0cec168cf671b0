"""What `convener up` looks at before it starts anything: its directory, its address; and the signals that stop it."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from app.cli import stack
from app.cli.stack import StackError, free_port
from app.cli.up_run import StopSignals
from app.settings import Settings
from tests.support import ports

HAS_IPV6 = socket.has_ipv6 and Path("/proc/net/if_inet6").exists()


async def _up(state: Path) -> None:
    async with stack.running(Settings(state_directory=state, worker_handlers="no_such"), print, log_files=False):
        pass


async def test_a_directory_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.touch()
    script.chmod(0o755)
    tmp_path.chmod(0o755)
    with pytest.raises(StackError, match=r"it holds run\.sh"):
        await _up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.sh"]
    assert (script.stat().st_mode & 0o777, tmp_path.stat().st_mode & 0o777) == (0o755, 0o755)


@pytest.mark.parametrize("names", [[], ["lost+found"], ["demo", "logs"], ["lock", "anything"], ["operator.key", "x"]])
async def test_an_empty_directory_and_one_of_an_earlier_run_will_do(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(Exception, match="no_such"):
        await _up(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("host", "words"), [("no.host.invalid", "nothing can listen on port 80"), ("192.0.2.1", "nothing can listen")]
)
def test_an_address_that_is_not_ours_is_not_said_to_be_taken(host: str, words: str) -> None:
    with pytest.raises(StackError, match=rf"{words}.*CONVENER_HOST"):
        free_port(host, 80)


def test_a_port_that_somebody_has_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StackError, match=r"is taken.*--port"):
            free_port("127.0.0.1", other.getsockname()[1])


@pytest.mark.skipif(not HAS_IPV6, reason="this system has no IPv6")
@pytest.mark.parametrize("host", ["::1", "::"])
def test_addresses_of_ipv6_have_ports_too(host: str) -> None:
    port = ports.free_port()
    assert free_port(host, port) == port


@pytest.mark.parametrize(("is_ignored", "stops"), [(True, False), (False, True)])
async def test_a_closed_terminal_stops_it_unless_it_runs_under_nohup(is_ignored: bool, stops: bool) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    loop, numbers = asyncio.get_running_loop(), list[str]()
    try:
        signals = StopSignals()
        signals.on_first = lambda: numbers.append("stopped")
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        assert bool(numbers) is stops
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGHUP, former)
