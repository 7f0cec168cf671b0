"""`convener db`: the schema of the database, and its backups."""

from typing import Annotated

import typer
from rich.text import Text

from app.memory.cli import backups
from app.terminal import output
from app.terminal.databases import author, bundled_url, on_database
from app.terminal.failures import ExitCode, Failure
from app.terminal.output import Format, Output

app = typer.Typer(
    help="Migrate, back up, restore and check the database that CONVENER_DATABASE_URL names.",
    no_args_is_help=True,
)
app.command("backup", epilog=backups.BACKUP_EPILOG)(backups.backup)
app.command("restore", epilog=backups.RESTORE_EPILOG)(backups.restore)
app.command("verify", epilog=backups.VERIFY_EPILOG)(backups.verify)


@app.command(epilog=output.examples("convener db migrate", "convener db migrate --to head"))
def migrate(
    to: Annotated[str, typer.Option(metavar="REVISION", help="the revision to go up to")] = "head",
    fmt: Output = Format.TABLE,
) -> None:
    """Bring the schema up to date. Safe to repeat, and safe to run from several hosts at once."""
    from alembic.util import CommandError

    from app.admin.service.audit import migrate

    try:
        old_revision, new_revision = on_database(
            lambda database: migrate(database, to, by=author("convener db migrate")), bundled_url()
        )
    except CommandError as error:
        hint = "leave --to out, to go up to the newest revision"
        raise Failure(f"cannot migrate: {error}", ExitCode.REFUSED, hint=hint) from None
    if fmt is Format.JSON:
        output.write_json({"before": old_revision, "after": new_revision})
    elif old_revision == new_revision:
        output.show(Text(f"nothing to do: the schema is at {new_revision}"))
    else:
        output.show(Text(f"migrated from {old_revision or 'an empty database'} to {new_revision}"))


@app.command(epilog=output.examples("convener db status", "convener db status -o json"))
def status(fmt: Output = Format.TABLE) -> None:
    """Show which revision the schema is at, and which one this version needs."""
    from app.db import schema

    revision = on_database(lambda database: schema.revision(database.engine), bundled_url())
    head = schema.head()
    code = ExitCode.OK if revision == head else ExitCode.REFUSED
    if fmt is Format.JSON:
        output.write_json({"revision": revision, "expected": head, "current": revision == head})
        raise typer.Exit(code)
    verdict = Text("up to date", "green") if revision == head else Text("run `convener db migrate`", "yellow")
    facts: list[tuple[str, str | Text]] = [
        ("Schema", revision or "none: the database is empty"),
        ("Needed", head or "none"),
        ("Verdict", verdict),
    ]
    output.show(output.details(facts))
    raise typer.Exit(code)
