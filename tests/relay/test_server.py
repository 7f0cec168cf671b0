"""Addresses to listen on: how they are read, which ones are of this machine only, and what cannot be had."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app.relay.server import Listen, UnusableAddress, _listen, read_listen


@pytest.mark.parametrize(
    ("text", "listen", "is_local"),
    [
        ("127.0.0.1:8770", Listen(host="127.0.0.1", port=8770), True),
        ("127.9.9.9:0", Listen(host="127.9.9.9"), True),
        ("[::1]:8770", Listen(host="::1", port=8770), True),
        ("localhost:8770", Listen(host="localhost", port=8770), True),
        ("unix:/run/relay.sock", Listen(path=Path("/run/relay.sock")), True),
        ("0.0.0.0:8770", Listen(host="0.0.0.0", port=8770), False),
        ("[::]:8770", Listen(host="::", port=8770), False),
        ("10.1.2.3:8770", Listen(host="10.1.2.3", port=8770), False),
        ("localhost.far.test:8770", Listen(host="localhost.far.test", port=8770), False),
    ],
)
def test_addresses(text: str, listen: Listen, is_local: bool) -> None:
    assert read_listen(text) == listen
    assert listen.is_local == is_local


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0.1", ":8770", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "unix:", "unix:a", "unix:/" + "x" * 120],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UnusableAddress, match=r"."):
        read_listen(text)


def test_an_address_that_cannot_be_had(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UnusableAddress, match="stop whoever uses it"),
    ):
        _listen(Listen(host="127.0.0.1", port=taken.getsockname()[1]))
    (tmp_path / "file").touch()
    with pytest.raises(UnusableAddress, match="is no socket"):
        _listen(Listen(path=tmp_path / "file"))
    unix_socket, listener, words = _listen(Listen(path=tmp_path / "relay.sock"))
    assert words == f"unix:{tmp_path}/relay.sock"
    assert unix_socket is not None
    listener.close()
    unix_socket.remove()
    _, listener, words = _listen(Listen(host="127.0.0.1"))
    assert words == f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_just_before_it_serves_is_heard(number: signal.Signals) -> None:
    """It would be lost: the relay of a pilot that was killed lived on, and a scheduler takes such a job for running."""
    start = f"""
import gc, os
from app.relay.server import read_listen, serve
from worker_agent.connections.trust import read_trust
gc.freeze = lambda: os.kill(os.getpid(), {number.value})
serve("http://127.0.0.1:9", read_trust({{}}), read_listen("127.0.0.1:0"))
"""
    run = subprocess.run([sys.executable, "-c", start], timeout=60, check=False)
    assert run.returncode == 0
