"""The unix socket: nobody else can connect, a stale one is replaced, and one in use is left alone."""

import stat
from pathlib import Path

import pytest

from app.http.sockets import SocketTaken, UnixSocket


def test_only_the_owner_can_connect_from_the_first_moment_on(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    made = UnixSocket(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made.listener.close()
    made.remove()
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    first = UnixSocket(path)
    first.listener.listen()
    with pytest.raises(SocketTaken, match="another process serves"):
        UnixSocket(path)
    first.listener.close()  # as after kill -9: the path stays
    second = UnixSocket(path)
    first.remove()
    assert path.exists(), "the successor's"
    second.listener.close()
    second.remove()


def test_what_is_no_socket_is_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("thesis")
    with pytest.raises(SocketTaken, match="no socket"):
        UnixSocket(path)
    assert path.read_text() == "thesis"
