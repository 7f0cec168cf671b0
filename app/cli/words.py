"""Options that several commands share, and how their values are read."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from app.domain.agents import AgentType, agent_type


def _agent(value: str | None) -> str | None:
    try:
        return agent_type(value).value if value is not None else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


AgentOption = Annotated[
    str | None,
    typer.Option(
        "--agent",
        metavar="AGENT",
        callback=_agent,
        autocompletion=lambda: [agent.value for agent in AgentType],
        help=", ".join(AgentType),
    ),
]


def _label(values: list[str] | None) -> list[str]:
    for value in values or ():
        name, separator, _ = value.partition(":")
        if not name or not separator:
            raise typer.BadParameter(f"{value} is not key:value")
    return values or []


_AGO = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h|d)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}


def seconds(value: str) -> float:
    """How long `90s`, `30min`, `2h` or `3d` is. Raises BadParameter."""
    found = _AGO.fullmatch(value)
    if found is None:
        raise typer.BadParameter(f"{value} is not a time like 90s, 30min, 2h or 3d")
    return float(found[1]) * _SECONDS[found[2]]


def _moment(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        if ago := _AGO.fullmatch(value):
            return (datetime.now(UTC) - timedelta(seconds=float(ago[1]) * _SECONDS[ago[2]])).isoformat()
        # What is said without a time zone is meant in that of this machine.
        return datetime.fromisoformat(value).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{value} is neither a time like 2026-01-31T12:00 nor an age like 30min, 2h or 3d"
        ) from None


Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY:VALUE", callback=_label, help="with this label; of several, with all"),
]


def moment_option(name: str, meaning: str) -> Any:
    """An option that takes a time, or how long ago that was."""
    return typer.Option(
        name, metavar="TIME", callback=_moment, help=f"{meaning}; 2026-01-31T12:00, or 2h for 2 hours ago"
    )


Goal = Annotated[str | None, typer.Option("--goal", help="of this research goal")]
Code = Annotated[str | None, typer.Option("--code", help="that ended with this error code")]
Reason = Annotated[str, typer.Option(help="why; it is kept, and shown to whoever asks")]
Limit = Annotated[int, typer.Option("--limit", help="how many at most", min=1)]
Whole = Annotated[bool, typer.Option("--all", help="all of them, however many")]
After = Annotated[str | None, typer.Option("--after", help="`next` of an earlier answer: go on from there")]
