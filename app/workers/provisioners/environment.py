"""The environment of the workers that a pool starts, and a try whether their handlers load in it."""

import asyncio
import os
import signal
import sys
from contextlib import suppress

from app.settings import Settings
from app.settings_sources import SETTINGS_FILE
from worker_agent.connections.trust import TRUST_VARIABLES, certificate_pin

_CHECK_SECONDS = 130.0  # a little more than the worker gives the handlers itself
_END_SECONDS = 5.0


class HandlersRefused(Exception):
    """The handlers of the pool's workers cannot be used; the message says why."""


def handler_arguments(settings: Settings) -> list[str]:
    """The arguments of a worker of the pool that name its handlers; none where it runs what is installed."""
    modules = ["--handlers", settings.worker_handlers] if settings.worker_handlers else []
    return modules + [word for handler in settings.worker_handler for word in ("--handler", handler)]


def named_handlers(settings: Settings) -> str:
    """The handlers of the pool's workers as people name them; empty where none are named."""
    return ", ".join(filter(None, [settings.worker_handlers, *settings.worker_handler]))


async def check_handlers(settings: Settings) -> None:
    """Load the handlers as a worker of the pool does, confined. Raises HandlersRefused."""
    arguments = handler_arguments(settings)
    if not arguments or not settings.pool_size:
        return
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker_agent", "--check-handlers", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=worker_environment(settings),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        problem = f"took longer than {_CHECK_SECONDS:.0f} s to load"
        raise HandlersRefused(f"the handlers {named_handlers(settings)} {problem}") from None
    finally:
        if process.returncode is None:
            # Heard of before the event loop may close, which would be told with a traceback.
            with suppress(ProcessLookupError, TimeoutError):
                os.killpg(process.pid, signal.SIGKILL)
                await asyncio.wait_for(process.wait(), _END_SECONDS)
    if process.returncode:
        last_line = (output.decode(errors="replace").strip().splitlines() or ["no reason was given"])[-1]
        reason = last_line.partition("error: ")[2] or last_line
        raise HandlersRefused(f"the workers cannot use the handlers {named_handlers(settings)}: {reason}")


def worker_environment(settings: Settings) -> dict[str, str]:
    """The environment of a worker: that of this process without its settings."""
    # A worker runs foreign code, which must not learn the address of the database. It calls the language model itself,
    # and gets the key for that by another way.
    own = (
        "CONVENER_LLM_",
        "CONVENER_HANDLER_",
        "CONVENER_GPU_LOCKS",
        "CONVENER_LOG_JSON",
        "CONVENER_LOG_LEVEL",
        *TRUST_VARIABLES,
    )
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CONVENER_", "PG")) or name.startswith(own)
    }
    if settings.tls_certificate is not None and not plain.keys() & {"CONVENER_CA_FILE", "CONVENER_TLS_PIN"}:
        plain["CONVENER_TLS_PIN"] = certificate_pin(settings.tls_certificate)
    # Workers do not know these places, so they are told which to keep from handlers.
    own_paths = (settings.state_directory, settings.tls_key, os.environ.get(SETTINGS_FILE))
    named_paths = os.environ.get("CONVENER_HANDLER_HIDE", "")
    plain["CONVENER_HANDLER_HIDE"] = os.pathsep.join([named_paths, *(str(path) for path in own_paths if path)])
    return plain
