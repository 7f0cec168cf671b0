"""The command line `convener` with all its commands."""

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from app.admin.cli import audit, config, keys
from app.agents.cli import agents, weights
from app.cli import db, doctor, openapi, serve, tls
from app.goals.cli import goals
from app.health.cli import alerts, degradation, health, metrics, status
from app.llm.cli import llm
from app.memory.cli import checkpoints, context
from app.queue.cli import dead_letters, events, outputs, queues, tasks
from app.scaling.cli import decisions, export_trace, simulate
from app.settings import SETTINGS_FILE
from app.terminal import output
from app.terminal.failures import MEANINGS, Commands
from app.workers.cli import workers
from worker_agent.variables import unknown_variables

# Loaded only when they run or are listed: they import the whole service, which takes longer than other commands.
_HEAVY: Mapping[str, str] = {"up": "app.cli.up", "demo": "app.cli.demo"}
_EPILOG = "Exit codes:\n" + "\n".join(f"  {code.value}  {meaning}" for code, meaning in MEANINGS.items())
# A trace is made of tasks and read by the simulation, so the command stands with the tasks.
tasks.app.command("export-trace", epilog=export_trace.EPILOG)(export_trace.export_trace)
# They tell of variables that are none in their logs.
_LOGGING = ("api", "loops", "worker", *_HEAVY)
_START, _STEER, _PROGRAMS = "Start here", "See and steer", "Run parts of the service"


class _AllCommands(Commands):
    """Lists `up` and `demo` first, and loads them on demand."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*_HEAVY, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _HEAVY:
            return super().get_command(ctx, cmd_name)
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name, rich_help_panel=_START)(getattr(import_module(_HEAVY[cmd_name]), cmd_name))
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
    app.command("status", epilog=status.EPILOG, rich_help_panel=_STEER)(status.status)
    app.command("health", epilog=health.EPILOG, rich_help_panel=_STEER)(health.health)
    app.command("doctor", epilog=doctor.EPILOG, rich_help_panel=_STEER)(doctor.doctor)
    app.add_typer(metrics.app, name="metrics", rich_help_panel=_STEER)
    app.add_typer(tasks.app, name="tasks", rich_help_panel=_STEER)
    app.add_typer(dead_letters.app, name="dead-letters", rich_help_panel=_STEER)
    app.command("events", epilog=events.EPILOG, rich_help_panel=_STEER)(events.events)
    app.add_typer(queues.app, name="queues", rich_help_panel=_STEER)
    app.add_typer(goals.app, name="goals", rich_help_panel=_STEER)
    app.add_typer(workers.app, name="workers", rich_help_panel=_STEER)
    app.command("outputs", epilog=outputs.EPILOG, rich_help_panel=_STEER)(outputs.outputs)
    app.add_typer(context.app, name="context", rich_help_panel=_STEER)
    app.add_typer(checkpoints.app, name="checkpoints", rich_help_panel=_STEER)
    app.add_typer(config.app, name="config", rich_help_panel=_STEER)
    app.add_typer(decisions.app, name="decisions", rich_help_panel=_STEER)
    app.add_typer(alerts.app, name="alerts", rich_help_panel=_STEER)
    app.add_typer(llm.app, name="llm", rich_help_panel=_STEER)
    app.add_typer(degradation.app, name="degradation", rich_help_panel=_STEER)
    app.add_typer(weights.app, name="weights", rich_help_panel=_STEER)
    app.add_typer(agents.app, name="agents", rich_help_panel=_STEER)
    app.add_typer(audit.app, name="audit", rich_help_panel=_STEER)
    app.add_typer(keys.app, name="key", rich_help_panel=_STEER)
    app.add_typer(keys.app, name="keys", hidden=True)  # the other groups are plurals, so people type it
    app.command("simulate", epilog=simulate.EPILOG, rich_help_panel=_STEER)(simulate.simulate)
    app.command("api", epilog=serve.API_EPILOG, rich_help_panel=_PROGRAMS)(serve.api)
    app.command("loops", epilog=serve.LOOPS_EPILOG, rich_help_panel=_PROGRAMS)(serve.loops)
    app.command("worker", context_settings=serve.PASS_THROUGH, rich_help_panel=_PROGRAMS)(serve.worker)
    app.add_typer(db.app, name="db", rich_help_panel=_PROGRAMS)
    app.add_typer(tls.app, name="tls", rich_help_panel=_PROGRAMS)
    app.command("openapi", epilog=openapi.EPILOG, rich_help_panel=_PROGRAMS)(openapi.openapi)
    return app


def _version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"convener {version('convener')}")
        raise typer.Exit


def _options(
    context: typer.Context,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")] = False,
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
        # The processes that a command starts read it too, wherever they are started.
        os.environ[SETTINGS_FILE] = str(settings.absolute())
    if context.invoked_subcommand not in _LOGGING:
        for sentence in unknown_variables(os.environ).values():
            typer.echo(output.plain(f"convener: {sentence}"), err=True)
