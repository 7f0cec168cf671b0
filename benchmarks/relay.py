"""A relay as a process of its own, between the load and the system under test."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil

from app.postgres.configuration import choose_port
from benchmarks.testbed import run_process, until_open

_RELAY = "from app.cli import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """A relay that serves on a port of this machine."""

    port: int
    process: psutil.Process


@asynccontextmanager
async def start_relay(url: str) -> AsyncIterator[Relay]:
    """Start a relay to the control plane at `url`, and end it. Call it from the main thread."""
    port = choose_port(None)
    command = [sys.executable, "-c", _RELAY, "relay", "--url", url, "--listen", f"127.0.0.1:{port}"]
    async with run_process(command, {"CONVENER_LOG_LEVEL": "warning"}) as process:
        await until_open(process, port)
        yield Relay(port=port, process=psutil.Process(process.pid))
