"""The settings of a bundled server: small enough for a laptop, durable, reachable from this machine only."""

import random
import socket
from collections.abc import Mapping
from pathlib import Path

HOST = "127.0.0.1"
# Below the ports that systems hand to outgoing connections: a client that keeps trying to reach a server that is
# down may be given the server's own port, connect to itself, and so keep the server from coming back.
PORTS = range(20_000, 32_000)
# The kernel's limit for the path of a socket is 104 or 108 bytes, and PostgreSQL adds a name of up to 15.
LONGEST_SOCKET_DIRECTORY = 85

SETTINGS: Mapping[str, str] = {
    "max_connections": "100",
    "shared_buffers": "256MB",
    "synchronous_commit": "on",
    "autovacuum_naptime": "5s",
    "idle_in_transaction_session_timeout": "60s",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    # One file for each day of the week, each overwritten a week later.
    "logging_collector": "on",
    "log_filename": "postgresql-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
}


def server_settings(*, port: int, directory: Path, extra: Mapping[str, str]) -> str:
    """The text of the included file; `extra` wins over the defaults, ALTER SYSTEM over both."""
    places = {
        "listen_addresses": HOST,
        "port": str(port),
        "unix_socket_directories": str(directory) if offers_socket(directory) else "",
        "log_directory": str(directory / "log"),
    }
    return render({**SETTINGS, **places, **extra})


def render(settings: Mapping[str, str]) -> str:
    """Settings in the syntax of postgresql.conf."""
    return "".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items())


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def offers_socket(directory: Path) -> bool:
    """Whether the path is short enough, and free of the comma that separates paths, for a unix socket."""
    path = str(directory)
    return len(path.encode()) <= LONGEST_SOCKET_DIRECTORY and not set(path) & set(',"')


def choose_port(remembered: int | None) -> int:
    """The remembered port while it is free, so that addresses survive a restart; else another one, at random."""
    if remembered is not None and is_free(remembered):
        return remembered
    candidates = random.sample(PORTS, k=200)
    free = next((port for port in candidates if is_free(port)), None)
    if free is None:
        raise OSError(f"no free port on {HOST} between {PORTS.start} and {PORTS.stop}")
    return free


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As PostgreSQL does: connections of its predecessor that are still closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
