"""The unix socket on which the API serves programs of this machine."""

import os
import socket
from pathlib import Path


class SocketTaken(Exception):
    """The path cannot be used, or is in use by another process or by something that is no socket."""


class UnixSocket:
    """A socket at a path that only the owner of this process can connect to."""

    def __init__(self, path: Path) -> None:
        """Raises SocketTaken; a stale socket is replaced."""
        try:
            self._listen(path)
        except OSError as error:
            reason = error.strerror or error
            raise SocketTaken(f"cannot listen at {path} ({reason}); set CONVENER_SOCKET to another path") from None

    def _listen(self, path: Path) -> None:
        if _is_served(path):
            raise SocketTaken(f"another process serves at {path}; stop it, or set CONVENER_SOCKET to another path")
        path.unlink(missing_ok=True)
        self._path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The mask decides the mode at creation: a chmod afterwards would leave a moment in which others can connect.
        former = os.umask(0o177)
        try:
            self.listener.bind(str(path))
        except OSError:
            self.listener.close()
            raise
        finally:
            os.umask(former)
        self._identity = _identity(path)

    def remove(self) -> None:
        """Remove the path, unless a successor has already taken it over."""
        if _identity(self._path) == self._identity:
            self._path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    # The inode alone would not do: file systems give the number of a deleted file to the next one.
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def _is_served(path: Path) -> bool:
    if not path.is_socket():
        if path.exists():
            raise SocketTaken(f"{path} is no socket, and is not replaced")
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True
