"""Doing something to all that a filter selects: counted first, then confirmed, then done call by call."""

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.text import Text

from app.kernel.text import plural
from app.terminal import output
from app.terminal.client import Client, Json
from app.terminal.output import Format

_MOST_A_CALL = 10_000
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only count them")]
Everything = Annotated[bool, typer.Option("--all", help="really all of them, instead of a filter")]
Most = Annotated[int | None, typer.Option("--limit", help="how many at most", min=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What is done to many things: the route, its verb before and after, and what such a thing is called."""

    path: str
    verb: str
    done: str
    thing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How it is done."""

    yes: bool
    dry_run: bool
    limit: int | None


def chosen(everything: bool, **filters: object) -> Json:
    """The filter as the service takes it. Raises BadParameter unless it says something, or --all does."""
    given = {name: value for name, value in filters.items() if value not in (None, [])}
    if bool(given) == everything:
        raise typer.BadParameter("say which: by ids, by at least one filter, or --all alone for really all of them")
    return given or {"all": True}


def ids_alone(*others: object) -> None:
    """Raises BadParameter when anything that belongs to a filter comes with ids."""
    if any(others):
        raise typer.BadParameter("ids go alone: no filter, --all, --dry-run or --limit with them")


def run(client: Client, deed: Action, body: Json, terms: Terms, fmt: Format) -> None:
    """Count, ask, and do it until nothing is left of what was counted."""
    found = client.post(deed.path, {**body, "dry_run": True})["matched"]
    if terms.dry_run:
        _tell(
            {"matched": found, deed.done: 0, "dry_run": True}, f"{plural(found, deed.thing)} would be {deed.done}", fmt
        )
        return
    most = found if terms.limit is None else min(found, terms.limit)
    if most and not terms.yes:
        typer.confirm(f"{deed.verb} {plural(most, deed.thing)}?", abort=True, err=True)
    done, others = _work(client, deed, body, most)
    more = f", and {others:,} that waited for them" if others else ""
    result = {"matched": found, deed.done: done, "dry_run": False}
    _tell(result | ({"dependents": others} if others else {}), f"{deed.done} {plural(done, deed.thing)}{more}", fmt)


def _work(client: Client, deed: Action, body: Json, most: int) -> tuple[int, int]:
    done = others = 0
    with output.errors().status(deed.path) as seen:
        while done < most:
            answer = client.post(deed.path, {**body, "limit": min(_MOST_A_CALL, most - done)})
            done, others = done + answer[deed.done], others + answer.get("dependents", 0)
            seen.update(f"{deed.done}: {done:,} of {most:,}")
            # Somebody else was faster with the rest.
            if not answer[deed.done]:
                break
    return done, others


def _tell(result: Json, sentence: str, fmt: Format) -> None:
    if fmt is Format.JSON:
        output.write_json(result)
    else:
        output.show(Text(sentence))
