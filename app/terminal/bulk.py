"""Bulk commands: count what a filter selects, confirm, then change it in batches."""

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.text import Text

from app.kernel.text import plural
from app.terminal import output
from app.terminal.client import Client, Json, connect
from app.terminal.options import confirm
from app.terminal.output import Format

_MAX_PER_CALL = 10_000  # the most that the service changes in one call
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="only count them")]
Everything = Annotated[bool, typer.Option("--all", help="really all of them, instead of a filter")]
MaxCount = Annotated[int | None, typer.Option("--limit", help="how many at most", min=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A bulk action: its route, its verb as imperative and as participle, and the noun for what it changes."""

    path: str
    verb: str
    participle: str
    thing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """Answers that the options of a command give in advance."""

    yes: bool
    dry_run: bool
    limit: int | None


def selection(everything: bool, **filters: object) -> Json:
    """The filter as the service takes it. Raises BadParameter unless there is either a filter or --all."""
    filters_set = {name: value for name, value in filters.items() if value not in (None, [])}
    if bool(filters_set) == everything:
        raise typer.BadParameter("say which: by ids, by at least one filter, or --all alone for really all of them")
    return filters_set or {"all": True}


def refuse_filters(*filter_values: object) -> None:
    """Raise BadParameter when a value of a filter is set together with ids."""
    if any(filter_values):
        raise typer.BadParameter("ids go alone: no filter, --all, --dry-run or --limit with them")


def run(action: Action, selected: Json, order: Json, terms: Confirmation, url: str | None, fmt: Format) -> None:
    """Count, confirm, and repeat the action until as many are changed as were counted.

    `order` has the fields of the body beside the filter, such as the reason.
    """
    body = {"filter": selected, **order}
    with connect(url) as client:
        matched_count = client.post(action.path, {**body, "dry_run": True})["matched"]
        counts = {"matched": matched_count, action.participle: 0, "dry_run": terms.dry_run}
        if terms.dry_run:
            sentence = f"{plural(matched_count, action.thing)} would be {action.participle}"
            output.present(counts, fmt, lambda: Text(sentence))
            return
        # Never more than was confirmed, however many the filter matches by then.
        count = matched_count if terms.limit is None else min(matched_count, terms.limit)
        if count and not terms.yes:
            confirm(f"{action.verb} {plural(count, action.thing)}?", fmt)
        changed_count, dependents = _run_batches(client, action, body, count)
    counts[action.participle] = changed_count
    sentence = f"{action.participle} {plural(changed_count, action.thing)}"
    if dependents:
        counts["dependents"] = dependents
        sentence += f", and {dependents:,} that waited for them"
    output.present(counts, fmt, lambda: Text(sentence))


def _run_batches(client: Client, action: Action, body: Json, count: int) -> tuple[int, int]:
    changed_count = dependents = 0
    with output.errors().status(action.path) as progress:
        while changed_count < count:
            answer = client.post(action.path, {**body, "limit": min(_MAX_PER_CALL, count - changed_count)})
            changed_count += answer[action.participle]
            dependents += answer.get("dependents", 0)
            progress.update(f"{action.participle}: {changed_count:,} of {count:,}")
            # Another caller has changed the rest meanwhile.
            if not answer[action.participle]:
                break
    return changed_count, dependents
