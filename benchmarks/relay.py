"""A relay as a process of its own, between the load and the system under test."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.postgres.accounts import bound_command
from app.postgres.configuration import choose_port
from benchmarks.http_client import connect

_RELAY = "from app.cli import main; main()"
_READY_WITHIN_SECONDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """A relay that serves on a port of this machine."""

    port: int
    process: psutil.Process


@asynccontextmanager
async def start_relay(url: str) -> AsyncIterator[Relay]:
    """Start a relay to the control plane at `url`, and end it. Call it from the main thread."""
    port = choose_port(None)
    arguments = [sys.executable, "-c", _RELAY, "relay", "--url", url, "--listen", f"127.0.0.1:{port}"]
    command = bound_command(Path.cwd(), *arguments)
    environment = {"PYTHONPATH": str(Path.cwd()), "CONVENER_LOG_LEVEL": "warning"}
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        async with asyncio.timeout(_READY_WITHIN_SECONDS):
            while not await _is_alive(port):
                if process.returncode is not None:
                    raise RuntimeError("the relay did not start; it has said why")
                await asyncio.sleep(0.05)
        yield Relay(port=port, process=psutil.Process(process.pid))
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _is_alive(port: int) -> bool:
    try:
        connection = await connect(port, "none")
        answer = await connection.get("/livez")
    except OSError:
        return False
    connection.close()
    return answer.status == 200
