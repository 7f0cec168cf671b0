"""Options that several commands share, and how their values are read."""

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from app.kernel.agents import AgentType, agent_type
from app.kernel.text import MAX_SENTENCE
from app.terminal import output
from app.terminal.client import Client, Json, Unreachable, connect
from app.terminal.failures import ExitCode, Failure
from app.terminal.output import Format

Watch = Annotated[bool, typer.Option("--watch", "-w", help="go on until Ctrl-C")]
Every = Annotated[float, typer.Option(help="seconds between two looks", min=0.1, max=3600)]
Bundled = Annotated[
    bool, typer.Option("--bundled", help="into a new PostgreSQL in the state directory, for `convener up`")
]
Renderer = Callable[[Json], RenderableType]
ListRenderer = Callable[[list[Json], datetime], RenderableType]


def agent_name(value: str) -> str:
    """The full name of an agent type. Raises BadParameter."""
    try:
        return agent_type(value).value
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _agent(value: str | None) -> str | None:
    return None if value is None else agent_name(value)


# Of every parameter that names agent types.
AGENT_HINTS: dict[str, Any] = {
    "autocompletion": lambda: [agent.value for agent in AgentType],
    "help": ", ".join(AgentType),
}
AgentOption = Annotated[str | None, typer.Option("--agent", metavar="AGENT", callback=_agent, **AGENT_HINTS)]


def read_labels(words: list[str]) -> dict[str, str]:
    """Values by name. Raises BadParameter."""
    return dict(map(_read_label, words))


def _read_label(word: str) -> tuple[str, str]:
    name, separator, value = word.partition("=")
    if not name or not separator:
        raise typer.BadParameter(f"--label is written NAME=VALUE, not {word}")
    return name, value


def _label_filters(words: list[str] | None) -> list[str]:
    pairs = [_read_label(word) for word in words or ()]
    for name, _ in pairs:
        if ":" in name:
            # The service would look for a shorter name.
            raise typer.BadParameter(f"{name} has a colon, and a label of such a name cannot be looked for")
    # A filter of the API is written with a colon.
    return [f"{name}:{value}" for name, value in pairs]


_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h|d)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}


def parse_duration(value: str) -> float:
    """Seconds of a duration like `90s`, `30min`, `2h` or `3d`. Raises BadParameter."""
    match = _DURATION.fullmatch(value)
    if match is None:
        raise typer.BadParameter(f"{value} is not a time like 90s, 30min, 2h or 3d")
    return float(match[1]) * _SECONDS[match[2]]


def _duration(value: str | None) -> str | None:
    # As a callback, so that an error names the option.
    if value is not None:
        parse_duration(value)
    return value


def duration_option(name: str, meaning: str) -> Any:
    """An option that takes a duration, which `parse_duration` reads."""
    return typer.Option(name, metavar="DURATION", callback=_duration, help=f"{meaning}; like 90s, 30min, 2h or 3d")


def _moment(value: str, direction: int, span: str) -> str:
    try:
        if duration := _DURATION.fullmatch(value):
            distance = timedelta(seconds=float(duration[1]) * _SECONDS[duration[2]])
            return (datetime.now(UTC) + direction * distance).isoformat()
        # A time without a zone is meant in that of this machine.
        return datetime.fromisoformat(value).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{value} is neither a time like 2026-01-31T12:00 nor {span} like 30min, 2h or 3d"
        ) from None


def _past_moment(value: str | None) -> str | None:
    return None if value is None else _moment(value, -1, "an age")


def _coming_moment(value: str | None) -> str | None:
    return None if value is None else _moment(value, 1, "a span")


Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="NAME=VALUE", callback=_label_filters, help="with this label; of several, with all"
    ),
]


def moment_option(name: str, meaning: str) -> Any:
    """An option that takes a time, or how long ago that was."""
    return typer.Option(
        name, metavar="TIME", callback=_past_moment, help=f"{meaning}; 2026-01-31T12:00, or 2h for 2 hours ago"
    )


def coming_moment_option(name: str, meaning: str) -> Any:
    """An option that takes a time, or how long from now that is."""
    return typer.Option(
        name, metavar="TIME", callback=_coming_moment, help=f"{meaning}; 2026-01-31T12:00, or 2h for 2 hours from now"
    )


Goal = Annotated[str | None, typer.Option("--goal", help="of this research goal")]
Code = Annotated[str | None, typer.Option("--code", help="that ended with this error code")]


def _reason(value: str) -> str:
    # The service refuses others too; the audit log keeps it.
    if len(value) > MAX_SENTENCE:
        raise typer.BadParameter(f"has {len(value)} characters, more than {MAX_SENTENCE}")
    return value


Reason = Annotated[str, typer.Option(callback=_reason, help="why; it is kept, and shown to whoever asks")]
Limit = Annotated[int, typer.Option("--limit", help="how many at most", min=1)]
Whole = Annotated[bool, typer.Option("--all", help="all of them, however many")]
After = Annotated[str | None, typer.Option("--after", help="`next` of an earlier answer: go on from there")]


def confirm(question: str, fmt: Format) -> None:
    """Ask, and end the command unless the answer is yes. Raises BadParameter for a program, which cannot be asked."""
    if fmt is Format.JSON:
        raise typer.BadParameter("with -o json nobody is asked whether to go on: add --yes")
    try:
        typer.confirm(question, abort=True, err=True)
    except typer.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        typer.echo(err=True)
        raise Failure("nobody has answered whether to go on", ExitCode.REFUSED, hint="answer, or add --yes") from None


def show_list(
    path: str,
    view: ListRenderer,
    url: str | None,
    fmt: Format,
    *,
    limit: int,
    everything: bool | None = None,
    **query: Any,
) -> None:
    """List the items at `path`, up to `limit` or all; `view` makes a table of them.

    `everything` is None where a command has no --all: then nothing is said of further items.
    """
    with connect(url) as client:
        items, following = client.pages(path, None if everything else limit, **query)
    if fmt is Format.JSON:
        output.write_json({"items": items, "next": following})
        return
    output.show(view(items, client.now))
    if following and everything is not None:
        output.hint_at_more("--all", "--limit", *([f"--after {following}"] if "after" in query else []))


def show_path(path: str, board: Renderer, url: str | None, fmt: Format, *, interval: float | None) -> None:
    """Show the answer of the service at `path`; again every `interval` seconds if one is set.

    `board` makes the answer readable. With JSON, a watch writes one object a line.
    """
    with connect(url) as client:
        if interval is not None:
            _watch(client, path, board, fmt, interval)
        else:
            answer = client.get(path)
            output.present(answer, fmt, lambda: board(answer))


def _watch(client: Client, path: str, board: Renderer, fmt: Format, seconds: float) -> None:
    # On a terminal the answer is redrawn in place until Ctrl-C; elsewhere each one is added below, as in a log.
    console = output.results()
    if fmt is Format.TABLE and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for answer in _poll(client, path, seconds):
                view = Text(answer.message, style="red") if isinstance(answer, Failure) else board(answer)
                live.update(output.Folded(view), refresh=True)
    for answer in _poll(client, path, seconds):
        if isinstance(answer, Failure):
            answer.show(as_json=fmt is Format.JSON)
        elif fmt is Format.JSON:
            output.write_json(answer, one_line=True)
        else:
            output.show(board(answer))


def _poll(client: Client, path: str, seconds: float) -> Iterator[Json | Failure]:
    """Yield the answer every `seconds`; an outage is yielded as its Failure and does not end the watch."""
    while True:
        try:
            yield client.get(path)
        except Unreachable as failure:  # refusals do end it: the next answer would be the same
            yield failure
        time.sleep(seconds)
