"""The run of `convener up`: brings everything up, shows what happens, and stops it in order."""

import asyncio
import shlex
import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import typer
from rich.panel import Panel

from app.admin.rules.config import conduct
from app.cli.pool_options import PoolOptions
from app.cli.stack import KEY_FILES, START_ERRORS, Stack, running, start_failure
from app.cli.task_lines import show_tasks
from app.kernel.access import Role
from app.kernel.modes import Mode
from app.logs import start_logging
from app.settings import Settings, take_settings
from app.terminal import output
from app.terminal.failures import ExitCode
from app.workers.provisioners.environment import named_handlers

T = TypeVar("T")
console = output.PlainConsole(stderr=True)
_SIGNAL_SECONDS = 0.1


def start(options: Mapping[str, Any], pool_options: PoolOptions) -> None:
    """Bring everything up, and stay until it is stopped; options win over settings unless None. Raises Failure."""
    try:
        settings = take_settings()
        start_logging(settings.model_copy(update={"log_file": None}))  # what people read goes to the terminal
        settings = settings.model_copy(update={name: value for name, value in options.items() if value is not None})
        asyncio.run(stoppable(lambda stop: _run(stop, settings, pool_options)))
    except START_ERRORS as error:
        raise start_failure(error) from None


async def stoppable(work: "Callable[[StopSignals], Awaitable[T]]") -> T:
    """Run what brings everything up: a signal ends it, until it sets `on_first` otherwise. Raises Exit."""
    stop = StopSignals()
    main = asyncio.current_task()
    assert main is not None
    stop.on_first = main.cancel  # a start may take minutes, as handlers load slowly
    try:
        try:
            return await work(stop)
        except START_ERRORS:
            # Ctrl-C in a terminal also ends initdb, and is heard of here when that has failed.
            await asyncio.sleep(_SIGNAL_SECONDS)
            raise
    except asyncio.CancelledError:
        console.print("stopped before it was up", style="dim")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


async def _run(stop: "StopSignals", settings: Settings, pool_options: PoolOptions) -> None:
    say = partial(console.print, style="dim")
    # As with keys: what is not shown to a person goes into journals, which let others read it.
    with_link = console.file.isatty()
    async with running(settings, say, log_files=False, options=pool_options, with_link=with_link) as stack:
        stop.on_first = lambda: None
        console.print(_welcome(stack, settings))
        # Below the frame and on one line, however narrow the terminal is: people click on it.
        console.print(f"Dashboard: {_dashboard(stack)}", soft_wrap=True, highlight=False)
        is_development = stack.preparation.pool.mode is Mode.DEVELOPMENT
        showing = asyncio.create_task(show_tasks(stack, typer.echo)) if is_development else None
        number = await stop.wait()
        if showing is not None:
            showing.cancel()
        stop.on_next = stack.supervisor.hasten
        if number is signal.SIGINT:
            stack.supervisor.hasten()
            terms = "running tasks are given back; Ctrl-C again ends everything at once"
        else:
            terms = (
                f"running tasks have up to {settings.stop_grace_seconds:.0f} s to finish; Ctrl-C twice ends everything"
            )
        console.print(f"stopping: workers first, then the API, then PostgreSQL; {terms}", style="dim")


class StopSignals:
    """SIGINT, SIGTERM and SIGHUP, the last so that a closed terminal stops everything in order."""

    def __init__(self) -> None:
        self.on_first: Callable[[], object] = lambda: None
        self.on_next: Callable[[], None] = lambda: None
        self._first: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup, which wants us to go on
            numbers.append(signal.SIGHUP)
        for number in numbers:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    async def wait(self) -> signal.Signals:
        """The first of them."""
        return await self._first

    def _on_signal(self, number: signal.Signals) -> None:
        if self._first.done():
            self.on_next()
        else:
            self._first.set_result(number)
            self.on_first()


def _dashboard(stack: Stack) -> str:
    """The address of the dashboard, for a person with a word that logs in once."""
    address, link = f"{stack.url}/dashboard", stack.preparation.link
    return f"{address}/login?link={link}" if link else f"{address}  (log in with the operator's key)"


def _welcome(stack: Stack, settings: Settings) -> Panel:
    agents = named_handlers(settings) or "the echo agents (name your own with --handlers)"
    lines = [
        f"API       {stack.url}",
        f"Swagger   {stack.url}/docs",
        f"Workers   {_pool_plan(stack, settings)}",
        f"Agents    {agents}",
        f"State     {settings.state_directory}",
    ]
    file = settings.state_directory / KEY_FILES[Role.OPERATOR]
    # What is not shown to a person goes into journals, which keep it and let others read it.
    if Role.OPERATOR in stack.preparation.new_keys and console.file.isatty():
        lines += ["", f"Operator's key, shown this once (kept in {file}, readable by you alone):"]
        lines += [stack.keys[Role.OPERATOR]]
    else:  # also later: a start that failed made the key, and did not come to show it
        lines += ["", f"Operator's key: in {file}, readable by you alone"]
    # Without its directory the other command would look for address and key in the usual one.
    usual, state = Settings.from_environment({}).state_directory, settings.state_directory
    where = "" if state == usual else f"CONVENER_STATE_DIRECTORY={shlex.quote(str(state))} "
    lines += ["", f"In another terminal: {where}convener status"]
    return Panel("\n".join(lines), title="Convener is up", border_style="green", expand=False)


def _pool_plan(stack: Stack, settings: Settings) -> str:
    """The size of the pool in words: now, and between which bounds later."""
    pool = stack.preparation.pool
    size = max(pool.min_workers, min(settings.pool_size, pool.max_workers))
    if not settings.pool_size:
        return "none are started here; `convener decisions ls` recommends how many there should be"
    if conduct(pool.mode).scales:
        return f"{size} now, then {pool.min_workers} to {pool.max_workers} as the queue needs ({pool.mode.value})"
    note = "" if size == settings.pool_size else f"; {settings.pool_size} were asked for"
    return f"{size}, always ({pool.mode.value} allows {pool.min_workers} to {pool.max_workers}{note})"
