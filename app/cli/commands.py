"""The command line `convener` with all its commands, each of which is imported when it is used."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command, get_group

from app.terminal import output
from app.terminal.commands import Commands
from app.terminal.failures import MEANINGS
from worker_agent.variables import PROFILE, unknown_variables

_EPILOG = "Exit codes:\n" + "\n".join(f"  {code.value}  {meaning}" for code, meaning in MEANINGS.items())
_START, _STEER, _PROGRAMS = "Start here", "See and steer", "Run parts of the service"


@dataclass(frozen=True, slots=True)
class Entry:
    """A command or a group of commands as it is listed, and the `module:name` of the function or group itself.

    `epilog` and `context_settings` are names in that module.
    """

    place: str
    panel: str
    summary: str
    is_hidden: bool = False
    epilog: str = "EPILOG"
    context_settings: str = ""


# The modules are imported when their command is used: a few of them import the whole service.
ENTRIES: Mapping[str, Entry] = {
    "up": Entry(
        "app.cli.up:up",
        _START,
        "Run PostgreSQL, the API, the loops and a pool of workers on this machine. Ctrl-C stops them in order.",
    ),
    "demo": Entry("app.cli.demo:demo", _START, "Rediscover Kepler's third law from published planetary data."),
    "init": Entry(
        "app.cli.init:init",
        _START,
        "Make a folder with an agent, a supervisor and a test that run, to be changed into yours.",
    ),
    "status": Entry(
        "app.health.cli.status:status",
        _STEER,
        "Show tasks by agent and state, workers by state, what was finished in the last minute, and warnings.",
    ),
    "top": Entry(
        "app.cli.top:top",
        _STEER,
        "Show live what goes on, what needs attention, and act on it: arrows and Enter, each action after a question.",
    ),
    "health": Entry(
        "app.health.cli.health:health",
        _STEER,
        "Show whether the system is well, and why not. Ends with 0 when healthy, 7 when degraded, 8 when critical.",
    ),
    "doctor": Entry(
        "app.cli.doctor:doctor",
        _STEER,
        "Check this machine, the service and the database, and say what mends what is wrong.",
    ),
    "metrics": Entry("app.health.cli.metrics:app", _STEER, "See what is measured."),
    "tasks": Entry("app.cli.task_commands:app", _STEER, "Submit tasks, and see what becomes of them."),
    "why": Entry(
        "app.diagnosis.cli.why:why", _STEER, "Show the one cause for which a task waits, and what changes it."
    ),
    "dead-letters": Entry(
        "app.queue.cli.dead_letters:app", _STEER, "See tasks that failed for good, requeue them, or forget them."
    ),
    "events": Entry(
        "app.queue.cli.events:events",
        _STEER,
        "Show events in order, each exactly once. With --follow and -o json, one object a line.",
    ),
    "queues": Entry("app.queue.cli.queues:app", _STEER, "See how the queue stands, pause and resume it."),
    "goals": Entry("app.goals.cli.goals:app", _STEER, "See research goals, create, pause and stop them."),
    "workers": Entry("app.workers.cli.workers:app", _STEER, "See and direct the workers."),
    "outputs": Entry(
        "app.queue.cli.outputs:outputs",
        _STEER,
        "Show results of completed tasks, oldest first. Who keeps `next` and goes on from it sees each exactly once.",
    ),
    "context": Entry(
        "app.memory.cli.context:app", _STEER, "Read and write the Context Memory: versioned entries of a namespace."
    ),
    "checkpoints": Entry(
        "app.memory.cli.checkpoints:app", _STEER, "Take, check and restore checkpoints of what is in flight."
    ),
    "config": Entry("app.admin.cli.config:app", _STEER, "Read and change the configuration; three modes."),
    "decisions": Entry("app.scaling.cli.decisions:app", _STEER, "See why the pool has the size that it has."),
    "alerts": Entry("app.health.cli.alerts:app", _STEER, "See what is wrong, and say that you know."),
    "llm": Entry("app.llm.cli.llm:app", _STEER, "See and limit calls of language models."),
    "degradation": Entry(
        "app.health.cli.degradation:app", _STEER, "See what is given up while resources are short, and hold it."
    ),
    "weights": Entry("app.agents.cli.weights:app", _STEER, "See and steer the weights of agents."),
    "agents": Entry("app.agents.cli.agents:app", _STEER, "See what agents achieve."),
    "audit": Entry("app.admin.cli.audit:app", _STEER, "Read and check the audit log."),
    "key": Entry("app.cli.keys:app", _STEER, "Make, rotate, list and revoke keys."),
    "profiles": Entry(
        "app.cli.profiles:app", _STEER, "Keep address, key and trust of several control planes, for --profile."
    ),
    "whoami": Entry(
        "app.admin.cli.whoami:whoami", _STEER, "Show which key this is, and what it may do at which service."
    ),
    # The other groups are plurals, so people type it.
    "keys": Entry("app.cli.keys:app", _STEER, "Make, rotate, list and revoke keys.", is_hidden=True),
    "simulate": Entry(
        "app.scaling.cli.simulate:simulate",
        _STEER,
        "Run the scaling rule on a trace, on a virtual clock; needs no service and no database.",
    ),
    "api": Entry(
        "app.cli.serve:api",
        _PROGRAMS,
        "Serve the API, until SIGTERM or Ctrl-C. Any number may run on one database.",
        epilog="API_EPILOG",
    ),
    "loops": Entry(
        "app.cli.serve:loops",
        _PROGRAMS,
        "Run the background duties, and the pool of this host, until SIGTERM or Ctrl-C.",
        epilog="LOOPS_EPILOG",
    ),
    "worker": Entry(
        "app.cli.serve:worker",
        _PROGRAMS,
        "Run a worker, or one for each slot of this host; `convener worker --help` tells the options.",
        context_settings="PASS_THROUGH",
    ),
    "relay": Entry(
        "app.cli.relay:relay",
        _PROGRAMS,
        "Speak for the workers of this host to the control plane, until SIGTERM or Ctrl-C.",
    ),
    "pilot": Entry(
        "app.cli.pilot:pilot",
        _PROGRAMS,
        "Run a relay and the workers of a node, until the job that this is part of ends.",
        context_settings="PASS_THROUGH",
    ),
    "db": Entry("app.cli.db:app", _PROGRAMS, "Migrate, back up, restore and check the database."),
    "tls": Entry("app.cli.tls:app", _PROGRAMS, "Make certificates for the API."),
    "openapi": Entry("app.cli.openapi:openapi", _PROGRAMS, "Print the OpenAPI schema; needs no database."),
}
# They tell of variables that are none by themselves.
_LOGGING = ("api", "loops", "worker", "relay", "pilot", "up", "demo", "doctor")


class _AllCommands(Commands):
    """Lists all commands without loading any, and loads the one that is used."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: _listed(name) for name in ENTRIES}
        self._is_listing = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if self._is_listing or cmd_name not in ENTRIES:
            return super().get_command(ctx, cmd_name)
        return load(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with self._listing():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        with self._listing():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _listing(self) -> Iterator[None]:
        self._is_listing = True
        try:
            yield
        finally:
            self._is_listing = False


def _listed(name: str) -> TyperCommand:
    entry = ENTRIES[name]
    return TyperCommand(name, help=entry.summary, rich_help_panel=entry.panel, hidden=entry.is_hidden)


def load(name: str) -> Any:
    """The command or group of this name, with all that it imports."""
    entry = ENTRIES[name]
    module_name, _, attribute = entry.place.partition(":")
    module = import_module(module_name)
    target = getattr(module, attribute)
    if isinstance(target, typer.Typer):
        command: Any = get_group(target)
        command.name = name
        return command
    alone = typer.Typer(add_completion=False)
    settings = getattr(module, entry.context_settings) if entry.context_settings else None
    alone.command(name, epilog=getattr(module, entry.epilog, None), context_settings=settings)(target)
    return get_command(alone)


def build() -> typer.Typer:
    """The command line."""
    app = typer.Typer(
        name="convener",
        cls=_AllCommands,
        help="The deployment control plane of an AI co-scientist. New here? `convener demo`, then `convener up`.",
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,
    )
    app.callback()(_options)
    return app


def _profiles() -> list[str]:
    from app.terminal.profiles import names

    return names()


def _version(is_requested: bool) -> None:
    if is_requested:
        from importlib.metadata import version

        typer.echo(f"convener {version('convener')}")
        raise typer.Exit


def _options(
    context: typer.Context,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            envvar=PROFILE,
            help="the control plane of this name; `convener profiles` keeps them",
            autocompletion=_profiles,
        ),
    ] = None,
    url: Annotated[str | None, typer.Option(help="address of the service; each command takes it too")] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="authorities that vouch for the service; the system's by default")
    ] = None,
    pin: Annotated[str | None, typer.Option(help="sha256: digest of the service's public key, instead of any")] = None,
    allow_plain_http: Annotated[
        bool, typer.Option("--allow-plain-http", help="also to another machine: the network itself is protected")
    ] = False,
    namespace: Annotated[
        str | None, typer.Option(help="with a key of the whole service: only of this namespace, and into it")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="TOML file with settings of the processes; CONVENER_ variables win over it")
    ] = None,
) -> None:
    if profile is not None:
        _use_profile(context, profile, url)
    # Into the environment, where the option of each command finds its default.
    chosen: dict[str, str | None] = {
        "CONVENER_URL": url,
        "CONVENER_CA_FILE": None if ca_file is None else str(ca_file.absolute()),
        "CONVENER_TLS_PIN": pin,
        "CONVENER_NAMESPACE": namespace,
        "CONVENER_ALLOW_PLAIN_HTTP": "true" if allow_plain_http else None,
    }
    os.environ.update({name: value for name, value in chosen.items() if value is not None})
    if settings is not None:
        from app.settings_sources import SETTINGS_FILE

        # The processes that a command starts read it too, wherever they are started.
        os.environ[SETTINGS_FILE] = str(settings.absolute())
    if context.invoked_subcommand not in _LOGGING:
        for sentence in unknown_variables(os.environ).values():
            typer.echo(output.plain(f"convener: {sentence}"), err=True)


def _use_profile(context: typer.Context, name: str, url: str | None) -> None:
    """Let a profile take the place of the variables by which commands find a service. Raises BadParameter, Failure."""
    command = context.invoked_subcommand or ""
    if command == "profiles" or ENTRIES[command].panel != _STEER:
        source = context.get_parameter_source("profile")
        if command != "profiles" and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"a profile is for commands that ask a service, which {command} does not")
        return
    if url is not None:
        raise typer.BadParameter("a profile names the address, and its key is for that alone: leave --url out")
    from app.terminal.profiles import read

    for variable, value in read(name).variables().items():
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value
    os.environ[PROFILE] = name
