"""The proxy to the language model, in a thread of the worker daemon."""

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Thread
from urllib.parse import urlsplit

import httpx

from worker_agent.connections.clients import open_async_client
from worker_agent.connections.trust import SYSTEM_TRUST, Trust
from worker_agent.llm.settings import GatewaySettings
from worker_agent.llm.task_keys import TaskKey, TaskKeys
from worker_agent.tracing.spans import Tracing
from worker_agent.wire import Lease

log = logging.getLogger(__name__)
_BACKLOG = 128
_STOP_SECONDS = 3.0
_CONTROL_PLANE_SECONDS = 10.0
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyAccess:
    """Key of one task, and the environment variables by which its handler reaches the language model."""

    task_key: TaskKey
    environment: Mapping[str, str]


class ModelProxy:
    """Server on loopback; `key` returns the worker's credential, `random_fraction` the jitter of waits, in [0, 1)."""

    def __init__(
        self,
        settings: GatewaySettings,
        control_plane_url: str,
        key: Callable[[], str | None],
        random_fraction: Callable[[], float] = random.random,
        trust: Trust = SYSTEM_TRUST,
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = settings
        self._control_plane_url = control_plane_url
        self._trust = trust
        self._key = key
        self._random_fraction = random_fraction
        self._tracing = tracing
        self._task_keys = TaskKeys()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_requested: asyncio.Event | None = None
        self._cancel_calls: Callable[[TaskKey], None] | None = None
        self._socket = _listening_socket()
        self._thread = Thread(target=self._run, name="llm-gateway", daemon=True)

    @property
    def url(self) -> str:
        """Base URL for handlers."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def start(self) -> None:
        """Start the thread and return at once; early calls wait in the socket's queue."""
        self._thread.start()

    def open_access(self, lease: Lease) -> ProxyAccess:
        """Admit a task that begins now."""
        task_key = self._task_keys.issue(lease)
        return ProxyAccess(task_key=task_key, environment=_environment(self.url, task_key, self._settings.models[0]))

    def close_access(self, access: ProxyAccess) -> None:
        """Revoke the access of an ended task and cancel its calls."""
        # Revoked first: a call that arrives after the cancellation is refused by its key.
        self._task_keys.revoke(access.task_key)
        if self._loop is not None and self._cancel_calls is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel_calls, access.task_key)

    def stop(self) -> None:
        """Stop the thread, in order if that takes a few seconds at most."""
        if self._loop is not None and self._stop_requested is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_requested.set)
            self._thread.join(_STOP_SECONDS)
        self._socket.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            log.exception("the way to the language model crashed")

    async def _serve(self) -> None:
        # Imported here, as a worker without a language model needs none of this.
        import uvicorn

        from worker_agent.llm.bounded_connections import MAX_HEAD_BYTES, BoundedConnections, raise_limits
        from worker_agent.llm.call_trace import CallTraces
        from worker_agent.llm.completions import CompletionService
        from worker_agent.llm.permits import PermitClient
        from worker_agent.llm.server import Server
        from worker_agent.llm.upstream import UpstreamClient

        server = Server(self._settings, self._task_keys)
        async with (
            open_async_client(
                self._control_plane_url, self._trust, timeout=_CONTROL_PLANE_SECONDS, limits=_LIMITS
            ) as control_plane,
            _upstream_client(self._settings.base_url) as upstream,
        ):
            server.completions = CompletionService(
                settings=self._settings,
                permits=PermitClient(control_plane, self._key),
                upstream=UpstreamClient(self._settings, upstream),
                random_fraction=self._random_fraction,
                traces=CallTraces(self._tracing, self._settings.base_url),
            )
            limits = raise_limits()
            BoundedConnections.max_connections = limits.open
            config = uvicorn.Config(
                server.app,
                http=BoundedConnections,
                ws="none",
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                backlog=limits.waiting,
                log_config=None,
                access_log=False,
                lifespan="off",
            )
            web_server = uvicorn.Server(config)
            self._cancel_calls, self._stop_requested = server.cancel_calls, asyncio.Event()
            self._loop = asyncio.get_running_loop()
            server_task = asyncio.create_task(web_server.serve(sockets=[self._socket]))
            await self._stop_requested.wait()
            web_server.should_exit = web_server.force_exit = True
            await server_task


def _listening_socket() -> socket.socket:
    """Open a socket on loopback with TCP as its protocol, as asyncio disables Nagle's algorithm only for those.

    With it on, the body of each answer waits about 40 ms for the acknowledgement of its head.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(_BACKLOG)
    return listener


def _upstream_client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        timeout=httpx.Timeout(None),
        # Reading certificates takes long, and a proxy that the environment names cannot reach this very machine.
        verify=urlsplit(url).scheme == "https",
        mounts={f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")},
        limits=_LIMITS,
    )


def _environment(url: str, task_key: TaskKey, model: str) -> dict[str, str]:
    no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1"]))
    return {
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": task_key.secret,
        "CONVENER_LLM_MODEL": model,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }
