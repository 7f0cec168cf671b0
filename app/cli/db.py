"""`convener db`: the schema of the database, and its backups."""

import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from app.memory.cli import backups
from app.terminal import output
from app.terminal.databases import as_failures, author, bundled_url, on_database
from app.terminal.failures import ExitCode, Failure
from app.terminal.output import Format, Output

if TYPE_CHECKING:
    from app.db.database import Database
    from app.db.migration_steps import Migration, Step

_TO_HINT = "leave --to out, to go up to the newest revision"
app = typer.Typer(
    help="Migrate, back up, restore and check the database that CONVENER_DATABASE_URL names.",
    no_args_is_help=True,
)
app.command("backup", epilog=backups.BACKUP_EPILOG)(backups.backup)
app.command("restore", epilog=backups.RESTORE_EPILOG)(backups.restore)
app.command("advance", epilog=backups.ADVANCE_EPILOG)(backups.advance)
app.command("verify", epilog=backups.VERIFY_EPILOG)(backups.verify)


@app.callback()
def interrupt_at_sigterm() -> None:
    # As Ctrl-C, which leaves time to record how far it went, and to remove what is half done. Threads other than the
    # main one hear no signals.
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    # A shell lets what it starts in the background ignore SIGINT.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


@app.command(epilog=output.examples("convener db migrate", "convener db migrate --offline"))
def migrate(
    to: Annotated[str, typer.Option(metavar="REVISION", help="the revision to go up to")] = "head",
    offline: Annotated[
        bool, typer.Option("--offline", help="nothing else works with the database: wait for locks and keep them")
    ] = False,
    fmt: Output = Format.TABLE,
) -> None:
    """Bring the schema up to date. Safe to repeat, and safe to run from several hosts at once.

    The service may go on: each step waits 0.1 s for a lock at most, keeps its locks for less than 0.5 s, or tries again
    for two minutes. A step that cannot do without locks for longer is named first, with what it does meanwhile.
    """
    if not to:
        raise Failure("--to names no revision", ExitCode.USAGE, hint=_TO_HINT)
    from alembic.util import CommandError

    from app.admin.service.audit import migrate
    from app.db.schema import Watch

    steps: list[Step] = []
    watch = Watch(pending=_tell_of_long_locks, applied=steps.append if fmt is Format.JSON else _tell_of_step)
    by = author("convener db migrate")
    try:
        with as_failures():
            old_revision, new_revision = on_database(
                lambda database: migrate(database, to, by=by, watch=watch, is_alone=offline), bundled_url()
            )
    except CommandError as error:
        raise Failure(f"cannot migrate: {error}", ExitCode.REFUSED, hint=_TO_HINT) from None
    if fmt is Format.JSON:
        output.write_json({"before": old_revision, "after": new_revision, "steps": [_step(step) for step in steps]})
        return
    if old_revision == new_revision:
        output.show(Text(f"nothing to do: the schema is at {new_revision}"))
    else:
        output.show(Text(f"migrated from {old_revision or 'an empty database'} to {new_revision}"))


@app.command(epilog=output.examples("convener db partition", "convener db partition --days 60 --seconds 300"))
def partition(
    days: Annotated[int, typer.Option(min=1, max=366, help="the days to come that get partitions")] = 31,
    seconds: Annotated[
        int, typer.Option(min=1, max=3600, help="the longest that those may wait who write events and results")
    ] = 60,
    fmt: Output = Format.TABLE,
) -> None:
    """Make partitions of the coming days beside default ones that have grown too large for housekeeping to do it.

    PostgreSQL looks through the default partition once, about a second for each million rows, and nobody reads or
    writes events or finished tasks meanwhile: choose a quiet moment. Where it takes longer, or somebody uses the table,
    nothing is changed.
    """
    from app.admin.service.audit import record
    from app.db import retention

    by = author("convener db partition")

    async def make(database: "Database") -> dict[str, list[str] | None]:
        made = {}
        for table in retention.PARTITIONED:
            async with database.transaction() as connection:
                names = made[table] = await retention.create_beside_default(
                    connection, table, days=days, seconds=seconds
                )
                if names:
                    record(connection, "db.partition", by=by, new_state={table: names})
        return made

    made = on_database(make, bundled_url())
    if fmt is Format.JSON:
        output.write_json({"made": made})
    else:
        for table, names in made.items():
            words = f"{len(names)} new partitions" if names is not None else "in use, or too large for this time"
            output.show(Text(f"{table}: {words}"))
    if None in made.values():
        raise Failure(
            "not all partitions were made", ExitCode.REFUSED, hint="try again in a moment, or with more --seconds"
        )


def _tell_of_long_locks(migrations: "Sequence[Migration]") -> None:
    for migration in migrations:
        if migration.offline is not None:
            output.note(
                f"{migration.revision} {migration.offline}: nothing that needs these goes on meanwhile", "yellow"
            )


def _tell_of_step(step: "Step") -> None:
    locked = f"locked {', '.join(step.locked)} for {step.seconds * 1000:.0f} ms" if step.locked else "locked nothing"
    output.note(f"{step.revision}: {locked}" + (f", at attempt {step.attempts}" if step.attempts > 1 else ""))


def _step(step: "Step") -> dict[str, object]:
    return {
        "revision": step.revision,
        "attempts": step.attempts,
        "seconds": round(step.seconds, 3),
        "locked": list(step.locked),
    }


@app.command(epilog=output.examples("convener db status", "convener db status -o json"))
def status(fmt: Output = Format.TABLE) -> None:
    """Show which revision the schema is at, and which one this version needs."""
    from app.db import schema

    async def schema_state(database: "Database") -> tuple[str | None, bool]:
        revision = await schema.revision(database.engine)
        return revision, revision == schema.head() or await schema.is_served(database.engine, revision)

    revision, is_served = on_database(schema_state, bundled_url())
    head = schema.head()
    code = ExitCode.OK if is_served else ExitCode.REFUSED
    if fmt is Format.JSON:
        output.write_json({"revision": revision, "expected": head, "current": revision == head, "served": is_served})
        raise typer.Exit(code)
    verdict = Text("up to date", "green") if revision == head else Text(schema.remedy(revision), "yellow")
    if is_served and revision != head:
        verdict = Text("newer, and made for this version as well", "green")
    facts: list[tuple[str, str | Text]] = [
        ("Schema", revision or "none: the database is empty"),
        ("Needed", head or "none"),
        ("Verdict", verdict),
    ]
    output.show(output.details(facts))
    raise typer.Exit(code)
