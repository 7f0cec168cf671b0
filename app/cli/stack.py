"""All of Convener on one machine: a database, keys, the API, the loops and a pool, brought up in order."""

import asyncio
import errno
import json
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.cli.pool_options import PoolInForce, PoolOptions
from app.cli.supervisor import Program, Supervisor, end_leftovers
from app.http.tls import UnusableCertificate, served_certificate
from app.kernel.access import Role
from app.kernel.errors import ConvenerError
from app.kernel.modes import Mode
from app.postgres.accounts import CONFINEMENT_REMEDY, bound_command
from app.postgres.binaries import find_binaries
from app.postgres.cluster import Cluster, lock_directory
from app.postgres.errors import EmbeddedError
from app.postgres.server import Server
from app.secrecy import SECRETS_FD, handed_over, make_private, write_private
from app.settings import Settings, secret_variables
from app.settings_sources import SECRETS, SettingsError, variable_of
from app.terminal import databases
from app.terminal.failures import ExitCode, Failure
from app.workers.provisioners.environment import HandlersRefused, check_handlers, named_handlers
from worker_agent.connections.clients import default_socket, open_async_client
from worker_agent.connections.trust import SYSTEM_TRUST, Trust, certificate_pin
from worker_agent.variables import unknown_variables

log = logging.getLogger(__name__)
_READY_SECONDS = 30.0
_LONGEST_LINE = 1 << 20
# Keys that are made for this machine, and the files that hold them.
KEY_FILES: Mapping[Role, str] = {
    Role.OPERATOR: "operator.key",
    Role.ADMIN: "admin.key",
    Role.POOL: "pool.key",
    Role.SUPERVISOR: "supervisor.key",
}
# What may be in a state directory before the first `up`: by a restore, a demo, loops without it, a disk of its own.
_OWN_NAMES = frozenset({"postgres", "demo", "logs", "blocks", "lost+found"})
Say = Callable[[str], None]
_NO_OPTIONS = PoolOptions()


class StackError(Exception):
    """The machine cannot be brought up; the message says what to do."""


# To be expected at a start.
START_ERRORS = (
    *(StackError, EmbeddedError, HandlersRefused, SettingsError, UnusableCertificate),
    *(ConvenerError, OSError, TimeoutError),
)


def start_failure(error: Exception) -> Failure:
    """The failure of a command that could not bring everything up, for one of START_ERRORS."""
    if isinstance(error, StackError | EmbeddedError):
        return Failure(str(error), ExitCode.REFUSED)
    if isinstance(error, HandlersRefused):
        hint = "correct --handlers, --handler, or the variables or the settings' file that name them; or what they name"
        return Failure(str(error), ExitCode.REFUSED, hint=hint)
    if isinstance(error, UnusableCertificate):
        return Failure(str(error), ExitCode.USAGE)
    return databases.start_failure(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Result of preparing a database: keys, the roles of new ones, the pool, and a link that logs in once."""

    keys: Mapping[Role, str] = field(repr=False)
    new_keys: frozenset[Role]
    pool: PoolInForce
    link: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A running Convener; `own_address` is the one for programs of this machine, `url` the one for all others."""

    url: str
    own_address: str
    trust: Trust
    preparation: Preparation
    supervisor: Supervisor

    @property
    def keys(self) -> Mapping[Role, str]:
        """A key of each role of KEY_FILES."""
        return self.preparation.keys

    def restarts(self) -> dict[str, int]:
        """Number of restarts of each program that has died."""
        return {name: count for name, count in self.supervisor.restarts().items() if count}


@asynccontextmanager
async def running(
    settings: Settings,
    say: Say,
    *,
    log_files: bool,
    options: PoolOptions = _NO_OPTIONS,
    extra_programs: Sequence[Program] = (),
    with_link: bool = False,
) -> AsyncIterator[Stack]:
    """Bring everything up, and `extra_programs`, and down again in order; `with_link` for a link that logs in once.

    Raises StackError, EmbeddedError, HandlersRefused.
    """
    state = settings.state_directory
    async with AsyncExitStack() as cleanup:
        _refuse_strangers(state)
        make_private(state)
        # Leftovers are looked for under the lock: the children of a running Convener are none.
        cleanup.enter_context(lock_directory(state))
        if leftovers := end_leftovers(state / "children.json"):
            say(f"ended {leftovers} processes that an earlier run left behind")
        served_certificate(settings.tls_certificate, settings.tls_key)  # the API would fail again and again
        if handlers := named_handlers(settings):
            say(f"loading the handlers {handlers} as workers do")
        await check_handlers(settings)
        port = free_port(settings.host, settings.port)  # before PostgreSQL, which takes much longer
        server = None if settings.database_url else await _start_server(settings, say, cleanup)
        url = server.url if server else str(settings.database_url)
        # As it is with the bundled PostgreSQL, whose API is not there yet.
        is_alone = settings.database_url is None
        settings = settings.model_copy(update={"database_url": url})
        preparation = await _prepare(settings, options, say, is_alone=is_alone, with_link=with_link)
        settings = settings.model_copy(update={"port": port, "socket": settings.socket or _own_socket(state, say)})
        make_private(state / "logs")
        secrets = _secrets(settings, url)
        programs = _programs(settings, _environment(settings), secrets, state / "logs" if log_files else None)
        programs = [*extra_programs, *programs]
        supervisor = Supervisor(server, programs, state / "children.json")
        cleanup.push_async_callback(supervisor.stop)  # before the start, which may fail halfway
        await supervisor.start_programs()
        address, own_address, trust = settings.addresses[-1], settings.addresses[0], _trust(settings)
        if not await answers(own_address, "/readyz", _READY_SECONDS, trust):
            restarts = ", ".join(f"{program.name}: {program.restarts}" for program in programs)
            raise StackError(f"the API at {address} was not ready within {_READY_SECONDS:.0f} s (restarts: {restarts})")
        # Only now, so that commands which read it find a service that answers.
        write_private(state / "url", f"{address}\n")
        yield Stack(
            url=address,
            own_address=own_address,
            trust=trust,
            preparation=preparation,
            supervisor=supervisor,
        )


async def _start_server(settings: Settings, say: Say, cleanup: AsyncExitStack) -> Server:
    binaries = find_binaries(settings.postgres_bin)
    cluster = Cluster(directory=settings.state_directory / "postgres", binaries=binaries)
    cleanup.enter_context(cluster.lock())
    if not cluster.is_initialised:
        say(f"making a PostgreSQL {binaries.version} cluster in {cluster.directory}")
    cluster.initialise()
    server = Server(cluster=cluster)
    cleanup.push_async_callback(server.stop)
    await server.start()
    if server.account is not None and not server.account.is_confined:
        say(f"{server.account.describe()}; to confine it, {CONFINEMENT_REMEDY}")
    return server


async def _prepare(
    settings: Settings, options: PoolOptions, say: Say, *, is_alone: bool, with_link: bool = False
) -> Preparation:
    """Let another process migrate, make missing keys and configure. Raises Failure."""
    command = [sys.executable, "-P", "-m", "app.cli.preparation", json.dumps(asdict(options))]
    command += ["--alone"] if is_alone else []
    command += ["--link"] if with_link else []
    with handed_over(_secrets(settings, str(settings.database_url))) as descriptor:
        process = await asyncio.create_subprocess_exec(
            *bound_command(Path.cwd(), *command),
            env={**_environment(settings), SECRETS_FD: str(descriptor)},
            pass_fds=[descriptor],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            # Ctrl-C must reach this process alone, which then ends the other.
            start_new_session=True,
        )
    assert process.stdout is not None
    answer: dict[str, Any] | None = None
    try:
        async for text in process.stdout:
            line = _line(text)
            if "say" in line:
                say(line["say"])
            if "failure" in line:
                raise Failure(**{**line["failure"], "code": ExitCode(line["failure"]["code"])})
            answer = line.get("answer", answer)
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if answer is None:
        ending = f"the process for it ended with {process.returncode}"
        raise StackError(f"the database could not be prepared: {ending}, after what it says above")
    pool = answer["pool"]
    return Preparation(
        keys={role: (settings.state_directory / name).read_text().strip() for role, name in KEY_FILES.items()},
        new_keys=frozenset(Role(role) for role in answer["new_keys"]),
        pool=PoolInForce(**{**pool, "mode": Mode(pool["mode"])}),
        link=answer["link"],
    )


def _line(text: bytes) -> dict[str, Any]:
    """A line of the other process; an empty one for what it has not written in whole, or is none of its own."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


def _secrets(settings: Settings, url: str) -> dict[str, str]:
    secrets = {name: getattr(settings, name) for name in SECRETS if name != "database_password"}
    key_file = None if settings.llm_key_file is None else str(settings.llm_key_file.absolute())
    variables = secret_variables({**secrets, "database_url": url, "llm_key_file": key_file})
    # It is in the addresses by now; one in the file of settings, which the children read too, would be a second one.
    # An empty address is what keeps a secret without a webhook from being a mistake.
    return {**variables, variable_of("database_password"): "", variable_of("webhook_url"): settings.webhook_url or ""}


def _environment(settings: Settings) -> dict[str, str]:
    variables = {
        "CONVENER_PORT": str(settings.port),
        "CONVENER_MODE": (settings.mode or Mode.DEVELOPMENT).value,
        "CONVENER_STATE_DIRECTORY": str(settings.state_directory),
        "CONVENER_POOL_SIZE": str(settings.pool_size),
        "CONVENER_STOP_GRACE_SECONDS": str(settings.stop_grace_seconds),
        "CONVENER_WORKER_HANDLERS": settings.worker_handlers or ("" if settings.worker_handler else "examples.echo"),
        "CONVENER_WORKER_HANDLER": json.dumps(settings.worker_handler),
    }
    if settings.socket is not None:
        variables["CONVENER_SOCKET"] = str(settings.socket)
    # The children read all other settings from the environment themselves; what was decided here wins. What is no
    # variable of ours has been told of.
    inherited = {name: value for name, value in os.environ.items() if name not in unknown_variables(os.environ)}
    return {**inherited, **variables}


def _programs(
    settings: Settings, environment: Mapping[str, str], secrets: Mapping[str, str], logs: Path | None
) -> list[Program]:
    programs = (
        ("api", "app.main", settings.drain_seconds + 8),
        ("loops", "app.background", settings.stop_grace_seconds + 10),
    )
    return [
        Program(
            name=name,
            module=module,
            environment={**environment, "CONVENER_LOG_FILE": str(logs / f"{name}.log")} if logs else environment,
            secrets=secrets,
            stop_seconds=stop_seconds,
            output=logs / f"{name}.log" if logs else None,
        )
        for name, module, stop_seconds in programs
    ]


def _own_socket(state: Path, say: Say) -> Path | None:
    path = default_socket(state)
    if path is None:
        say(f"{state} is too long a path for a unix socket: commands and workers use the port instead")
    return path


def _trust(settings: Settings) -> Trust:
    """Trust in the API that is started here, and in no other."""
    certificate = settings.tls_certificate
    return Trust(pins=frozenset({certificate_pin(certificate)} if certificate else ()), allow_plain_http=True)


async def answers(url: str, path: str, seconds: float, trust: Trust = SYSTEM_TRUST) -> bool:
    """Ask until there is an answer without an error; False when there is none within this time."""
    end = asyncio.get_running_loop().time() + seconds
    async with open_async_client(url, trust) as client:
        while asyncio.get_running_loop().time() < end:
            try:
                if (await client.get(path)).is_success:
                    return True
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    return False


def free_port(host: str, port: int) -> int:
    """This port, which must be free; any free one for 0. Raises StackError."""
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # Not every system that names an address of IPv6 for itself has one.
        family, _, _, _, address = min(places, key=lambda place: place[0] is not socket.AF_INET)
        with socket.socket(family) as probe:
            # As the server does, so that closed connections of an earlier run do not count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            bound_port: int = probe.getsockname()[1]
            return bound_port
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            trouble, remedy = f"port {port} on {host} is taken", "stop whoever uses it, or choose another with --port"
        else:
            trouble, remedy = f"nothing can listen on port {port} of {host}", "look at --port and CONVENER_HOST"
        raise StackError(f"{trouble} ({error.strerror}); {remedy}") from None


def _refuse_strangers(state: Path) -> None:
    """Raise StackError where a directory holds what is not ours: it would be closed to everybody else.

    Also where its name is no text, as one with umlauts in a locale without them: PostgreSQL's settings are text.
    """
    try:
        str(state).encode()
    except UnicodeEncodeError:
        raise StackError(
            f"the name {str(state)!a} of the state directory is no text in this locale "
            f"({sys.getfilesystemencoding()}): set LC_ALL=C.UTF-8, or name another with --state"
        ) from None
    names = set(os.listdir(state)) if state.is_dir() else set()
    if not names & {"lock", *KEY_FILES.values()} and not names <= _OWN_NAMES:
        stranger = min(names - _OWN_NAMES)
        raise StackError(
            f"{state} is no state directory: it holds {stranger}. Everything in one is closed to other users; name a "
            "directory that is empty or new with --state or CONVENER_STATE_DIRECTORY"
        )
