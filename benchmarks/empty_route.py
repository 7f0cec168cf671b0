"""The other yardstick: an empty route of Starlette behind uvicorn as the API has it, on a core of the same machine."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.postgres.configuration import choose_port
from benchmarks.testbed import run_process, until_open

_SERVE = "from benchmarks.empty_route import serve; serve({port})"


@asynccontextmanager
async def start_empty_route() -> AsyncIterator[int]:
    """Serve it in a process of its own; yields the port."""
    port = choose_port(None)
    async with run_process([sys.executable, "-c", _SERVE.format(port=port)], {}) as process:
        await until_open(process, port)
        yield port


def serve(port: int) -> None:
    """Serve it until a signal."""
    uvicorn.run(
        Starlette(routes=[Route("/", _answer, methods=["POST"])]),
        host="127.0.0.1",
        port=port,
        http="httptools",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )


async def _answer(_: Request) -> Response:
    return Response(b"{}", media_type="application/json")
