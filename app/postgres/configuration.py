"""Settings of a bundled server: small enough for a laptop, durable, reachable from this machine only."""

import random
import socket
from collections.abc import Mapping
from pathlib import Path

HOST = "127.0.0.1"
# Below the ports that systems assign to outgoing connections: a client that keeps trying to reach a stopped server
# might be assigned the server's own port, connect to itself, and so keep the server from coming back.
PORTS = range(20_000, 32_000)
# The kernel's limit for the path of a socket is 104 or 108 bytes, and PostgreSQL adds a name of up to 15.
LONGEST_SOCKET_DIRECTORY = 85

SETTINGS: Mapping[str, str] = {
    "max_connections": "100",
    "shared_buffers": "256MB",
    "synchronous_commit": "on",
    # A vacuum of tasks reads all indexes, and one that an old snapshot keeps from removing anything comes every time.
    "autovacuum_naptime": "20s",
    "idle_in_transaction_session_timeout": "60s",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    # A full file is followed by another, and whoever runs the server removes the oldest ones.
    "logging_collector": "on",
    "log_filename": "postgresql-%Y-%m-%dT%H%M%S.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "8MB",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
}


def server_settings(*, port: int, directory: Path, access: Path, extra: Mapping[str, str]) -> str:
    """Return the text of the included file, which names the file of access rules, `access`.

    `extra` overrides the defaults, and ALTER SYSTEM overrides both.
    """
    sockets = socket_directory(directory)
    places = {
        "listen_addresses": HOST,
        "port": str(port),
        "unix_socket_directories": str(sockets) if offers_socket(sockets) else "",
        "hba_file": str(access),
        "log_directory": str(directory / "log"),
    }
    return render({**SETTINGS, **places, **extra})


def access_rules(name: str) -> str:
    """Return the text of the file of access rules: one role may enter its own database, and nobody else anything."""
    # A superuser can do on this machine what the server can, so there is no way to log in as one.
    return f"local {name} {name} scram-sha-256\nhost {name} {name} {HOST}/32 scram-sha-256\n"


def socket_directory(directory: Path) -> Path:
    """Return the place of the unix socket in the directory of a cluster."""
    return directory / "socket"


def render(settings: Mapping[str, str]) -> str:
    """Return settings in the syntax of postgresql.conf."""
    return "".join(f"{name} = {_quote(value)}\n" for name, value in settings.items())


def _quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def offers_socket(directory: Path) -> bool:
    """Return whether the path suits a unix socket: short enough, and without characters that separate paths."""
    path = str(directory)
    return len(path.encode()) <= LONGEST_SOCKET_DIRECTORY and not set(path) & set(',"')


def choose_port(last_port: int | None) -> int:
    """Return the last port if it is free, so that URLs survive a restart; else a random one. Raises OSError."""
    if last_port is not None and is_free(last_port):
        return last_port
    candidates = random.sample(PORTS, k=200)
    free = next((port for port in candidates if is_free(port)), None)
    if free is None:
        raise OSError(f"no free port on {HOST} between {PORTS.start} and {PORTS.stop}")
    return free


def is_free(port: int) -> bool:
    """Return whether a server can listen on a port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As PostgreSQL does it: closing connections of a former server do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
