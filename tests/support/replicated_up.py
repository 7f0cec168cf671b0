"""`convener up` with two of everything: PostgreSQL, two pgbouncers, two APIs behind haproxy, two hosts of workers.

Run as a program in its place. The supervisor is the same, and starts again what dies, as systemd would.
"""

import argparse
import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from app.cli import stack
from app.cli.pool_options import PoolOptions
from app.cli.supervisor import Program, Supervisor, end_leftovers
from app.kernel.modes import Mode
from app.logs import start_logging
from app.postgres.accounts import bound_command
from app.postgres.cluster import lock_directory
from app.secrecy import make_private, write_private
from app.settings import Settings, take_settings
from tests.support.ports import free_port
from tests.support.proxies import Pooler, haproxy_command, haproxy_places, pooler_files
from worker_agent.connections.clients import default_socket

_NUMBERS = (1, 2)
_STOP_SECONDS = 8.0
_READY_SECONDS = 180.0


@dataclass(slots=True, kw_only=True)
class Executable(Program):
    """A program that is no module of Python."""

    module: str = ""
    command: Sequence[str]

    async def start(self) -> None:
        """Start it, bound to the life of this process."""
        self._process = await asyncio.create_subprocess_exec(
            *bound_command(Path.cwd(), *self.command), env=self.environment, start_new_session=True
        )


async def _run(settings: Settings, options: PoolOptions) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    state = settings.state_directory
    async with AsyncExitStack() as cleanup:
        make_private(state)
        cleanup.enter_context(lock_directory(state))
        end_leftovers(state / "children.json")
        server = await stack._start_server(settings, print, cleanup)
        # By TCP, as pgbouncer goes to another host.
        url = server.cluster.url
        settings = settings.model_copy(update={"database_url": url})
        await stack._prepare(settings, options, print, is_alone=True)
        poolers = [cleanup.enter_context(pooler_files(url)) for _ in _NUMBERS]
        settings = settings.model_copy(update={"database_direct_url": url})
        supervisor = Supervisor(server, _programs(settings, poolers), state / "children.json")
        cleanup.push_async_callback(supervisor.stop)
        await supervisor.start_programs()
        assert await stack.answers(settings.addresses[0], "/readyz", _READY_SECONDS)
        write_private(state / "url", f"{settings.addresses[0]}\n")
        await stopped.wait()


def _programs(settings: Settings, poolers: Sequence[Pooler]) -> list[Program]:
    """All of them, in the order in which they start; the workers hand their tasks back while the others still run."""
    environment = stack._environment(settings)
    secrets = [stack._secrets(settings, pooler.url("convener")) for pooler in poolers]
    ports = [free_port() for _ in _NUMBERS]
    bouncers: list[Program] = [
        Executable(
            name=f"pgbouncer-{number}", command=pooler.command, environment=environment, stop_seconds=_STOP_SECONDS
        )
        for number, pooler in zip(_NUMBERS, poolers, strict=True)
    ]
    # Commands of this host use the socket of its own service.
    socket = default_socket(settings.state_directory)
    assert socket is not None
    apis = [
        Program(
            name=f"api-{number}",
            module="app.main",
            environment=environment
            | {
                "CONVENER_PORT": str(port),
                "CONVENER_TRUSTED_PROXIES": "127.0.0.1",
                **({"CONVENER_SOCKET": str(socket)} if number == 1 else {}),
            },
            secrets=own,
            stop_seconds=_STOP_SECONDS,
        )
        for number, port, own in zip(_NUMBERS, ports, secrets, strict=True)
    ]
    haproxy = Executable(
        name="haproxy",
        command=haproxy_command(),
        environment=environment | haproxy_places(settings.port, ports),
        stop_seconds=_STOP_SECONDS,
    )
    loops = [
        Program(
            name=f"loops-{number}",
            module="app.background",
            environment=environment
            | {
                # Workers go to the APIs by haproxy.
                "CONVENER_PORT": str(settings.port),
                "CONVENER_HOST_NAME": f"host-{number}",
                "CONVENER_STATE_DIRECTORY": str(settings.state_directory / f"host-{number}"),
                **_pool(settings, number),
            },
            secrets=own,
            stop_seconds=settings.stop_grace_seconds + 10,
        )
        for number, own in zip(_NUMBERS, secrets, strict=True)
    ]
    return [*bouncers, *apis, haproxy, *loops]


def _pool(settings: Settings, number: int) -> dict[str, str]:
    """A half of the workers; both hosts keep the one pool of an engine, whose name and files they share."""
    if settings.provisioner == "local":
        return {"CONVENER_POOL_SIZE": str((settings.pool_size + 2 - number) // 2)}
    blocks = settings.block_directory or settings.state_directory / "blocks"
    return {"CONVENER_HOST_NAME": settings.host_name, "CONVENER_BLOCK_DIRECTORY": str(blocks)}


def main() -> None:
    """Take the options of `convener up` that tests use, and stay until SIGTERM."""
    parser = argparse.ArgumentParser()
    for name in ("workers", "min-workers", "max-workers"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--mode", type=Mode)
    parser.add_argument("--handlers")
    chosen = parser.parse_args()
    settings = take_settings()
    start_logging(settings)
    changes = {"pool_size": chosen.workers, "worker_handlers": chosen.handlers}
    settings = settings.model_copy(update={name: value for name, value in changes.items() if value is not None})
    options = PoolOptions(mode=chosen.mode, min_workers=chosen.min_workers, max_workers=chosen.max_workers)
    asyncio.run(_run(settings, options))


if __name__ == "__main__":
    main()
