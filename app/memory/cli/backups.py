"""`convener db backup`, `restore`, `verify` and `advance`: dump and restore the whole database, check it, count on."""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from app.terminal import output
from app.terminal.connection import settings
from app.terminal.databases import as_failures, author, bundled_url, new_server, on_database
from app.terminal.failures import ExitCode, Failure
from app.terminal.options import Bundled
from app.terminal.output import Format, Output

if TYPE_CHECKING:
    from app.db.database import Database
    from app.memory.service.dumps import Dumps
    from app.memory.store.invariants import Verdict


DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="the database; better given as CONVENER_DATABASE_URL, because arguments are seen by everybody on the host",
    ),
]
BACKUP_EPILOG = output.examples("convener db backup convener-$(date +%F).dump", "convener db backup b.dump -o json")
RESTORE_EPILOG = output.examples(
    "CONVENER_DATABASE_URL=postgresql://.../new convener db restore convener-2030-01-31.dump",
    "CONVENER_STATE_DIRECTORY=~/restored convener db restore b.dump --bundled",
)
ADVANCE_EPILOG = output.examples("CONVENER_DATABASE_URL=postgresql://convener@db2/convener convener db advance")
VERIFY_EPILOG = output.examples(
    "convener db verify", "convener db verify b.dump", "convener db verify -o json | jq '.checks[] | select(.ok | not)'"
)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="must not exist yet")],
    url: DatabaseUrl = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Write the whole database into a file, and FILE.json with its SHA-256 beside it. The service works on meanwhile.

    Without an address it is the database of the `convener up` that runs on this machine.
    """
    from app.memory.service import archives, backups

    for draft in archives.remove_abandoned(file.parent):
        output.note(f"deleted {draft}, which a backup that was killed had left")
    with output.errors().status("backing up") as progress, as_failures():
        target, by = url or bundled_url(), author("convener db backup")
        dumps = _dumps(target)
        manifest = on_database(lambda database: backups.backup(database, dumps, file, progress.update, by), target)
    facts = {**asdict(manifest), "file": str(file)}
    summary = f"wrote {manifest.size_bytes:,} bytes into {file}, revision {manifest.revision}"
    output.present(facts, fmt, lambda: Text(output.plain(summary)))


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="as `convener db backup` writes it")],
    url: DatabaseUrl = None,
    is_bundled: Bundled = False,
    fmt: Output = Format.TABLE,
) -> None:
    """Restore a backup into an empty database, maybe on another server, before any service works on it.

    Leased tasks go back to the queue without burning an attempt. Readers of events go on with the cursors they have.
    """
    from app.memory.service import backups

    if is_bundled and url is not None:
        raise typer.BadParameter("--bundled and --database-url exclude each other")
    _refuse_missing(file)
    server, by = new_server() if is_bundled else nullcontext(url), author("convener db restore")
    with output.errors().status("restoring") as progress, as_failures(), server as target:
        dumps = _dumps(target)
        result = on_database(lambda database: backups.restore(database, dumps, file, progress.update, by), target)
    if fmt is Format.JSON:
        output.write_json(
            {
                "before": result.dump_revision,
                "revision": result.revision,
                "released": result.released_leases,
                "transaction_offset": result.transaction_offset,
                "checked": result.is_verified,
            }
        )
        return
    if not result.is_verified:
        output.note("there was no manifest beside the backup, so its checksum was not checked", "yellow")
    has_upgraded = result.dump_revision != result.revision
    upgrade = f", brought up from {result.dump_revision}" if has_upgraded else ""
    leases = f"{result.released_leases:,} leases were released"
    output.show(Text(f"restored at revision {result.revision}{upgrade}; {leases}"))
    start = "`convener up` goes on with it, and then " if is_bundled else ""
    output.note(f"{start}`convener db verify` checks what is there now")


def advance(url: DatabaseUrl = None, fmt: Output = Format.TABLE) -> None:
    """Number events and leases on above all that a former primary may have given out, once a standby is promoted that
    lagged.

    Readers whose cursors are of what was lost then miss nothing that comes. Best done before the service writes there;
    it may be at work meanwhile, and repeating does no harm.
    """
    from app.memory.service import backups

    by = author("convener db advance")
    with as_failures():
        offset = on_database(lambda database: backups.advance(database, by), url or bundled_url())
    output.present({"transaction_offset": offset}, fmt, lambda: Text(f"events to come have numbers above {offset}"))


def verify(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="a backup; the live database without it")
    ] = None,
    url: DatabaseUrl = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Check every invariant of the live database, reading all of it; or of a backup, restored into a PostgreSQL of its
    own that is deleted afterwards.

    For a backup that takes room for the database among the temporary files (TMPDIR). Ends with 1 where something is
    wrong.
    """
    if file is not None:
        _refuse_missing(file)
    checks = _check_file(file) if file is not None else _check_database(url)
    ok = all(check["ok"] for check in checks)
    output.present({"ok": ok, "checks": checks}, fmt, lambda: _check_table(checks))
    if not ok:
        raise typer.Exit(ExitCode.REFUSED)


def _refuse_missing(file: Path) -> None:
    """Raise Failure where there is no such file, which is no bad backup."""
    if not file.is_file():
        raise Failure(f"there is no file {file}", ExitCode.USAGE)


def _check_file(file: Path) -> list[dict[str, Any]]:
    from app.memory.service import backups
    from app.memory.service.dumps import Dumps
    from app.memory.service.rehearsal import rehearse
    from app.postgres.binaries import DUMPING, SERVER, find_version, newest_binaries

    configured = settings().postgres_bin
    with output.errors().status("checking the backup") as progress, as_failures():
        inspection = backups.inspect(Dumps(binaries=newest_binaries(DUMPING, configured)), file)
        verdicts: Sequence[Verdict] = ()
        if not inspection.violations and inspection.server is not None:
            binaries = find_version(inspection.server, (*SERVER, "pg_restore"), configured)
            verdicts = asyncio.run(rehearse(binaries, file, progress.update))
    description = (
        f"the backup is what was written, and holds revision {inspection.revision} in {inspection.entries} entries"
    )
    if inspection.manifest is None:
        description = "the backup can be read; there is no manifest with a checksum beside it"
    checks = [_check_row(str(file), description, inspection.violations, len(inspection.violations))]
    return [*checks, *map(_verdict_row, verdicts)]


def _check_database(url: str | None) -> list[dict[str, Any]]:
    verdicts = on_database(_run_checks, url or bundled_url())
    return [*map(_verdict_row, verdicts)]


def _verdict_row(verdict: "Verdict") -> dict[str, Any]:
    return _check_row(verdict.check.name, verdict.check.description, verdict.examples, verdict.violations)


async def _run_checks(database: "Database") -> "list[Verdict]":
    from app.db import schema
    from app.memory.store.invariants import run_checks

    revision = await schema.revision(database.engine)
    if revision != schema.head():
        message = f"the schema is at {revision or 'no revision'}, not {schema.head()}"
        raise Failure(message, ExitCode.REFUSED, hint=schema.remedy(revision))
    async with database.transaction() as connection:
        return await run_checks(connection)


def _check_row(name: str, description: str, examples: Sequence[str], violations: int) -> dict[str, Any]:
    details = {"violations": violations, "examples": list(examples)}
    return {"name": name, "says": description, "ok": not violations} | details


def _dumps(url: str | None) -> "Dumps":
    """The programs of the version of the server at this address. Raises Failure, BinariesMissing."""
    from app.memory.service.dumps import Dumps
    from app.memory.store.backups import server_version
    from app.postgres.binaries import find_version, major_version

    async def ask(database: "Database") -> str:
        async with database.transaction() as connection:
            return await server_version(connection)

    version = major_version(on_database(ask, url))
    return Dumps(binaries=find_version(version, configured_directory=settings().postgres_bin))


def _check_table(checks: list[dict[str, Any]]) -> Table:
    table = output.table("CHECK", "VERDICT", "MEANING", flexible="MEANING")
    for check in checks:
        verdict = Text("ok", "green") if check["ok"] else Text(f"{check['violations']:,} violations", "red")
        table.add_row(output.cell(check["name"]), verdict, output.cell(check["says"]))
        for example in check["examples"]:
            table.add_row(Text(""), Text(""), output.cell(example))
    return table
