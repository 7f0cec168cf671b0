"""`convener db backup`, `restore` and `verify`: the whole database into a file and back, and what must hold in it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from app.terminal import output
from app.terminal.connection import settings
from app.terminal.databases import Bundled, bundled_url, new_server, on_database, tried
from app.terminal.failures import ExitCode, Failure
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
    from app.memory.service import backups

    with output.errors().status("backing up") as seen, tried():
        place = url or bundled_url()
        manifest = on_database(lambda database: backups.backup(database, _dumps(), file, seen.update), place)
    facts = {name: getattr(manifest, name) for name in manifest.__dataclass_fields__} | {"file": str(file)}
    if fmt is Format.JSON:
        output.write_json(facts)
    else:
        output.show(
            Text(output.plain(f"wrote {manifest.size_bytes:,} bytes into {file}, revision {manifest.revision}"))
        )


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="as `convener db backup` writes it")],
    url: DatabaseUrl = None,
    bundled: Bundled = False,
    fmt: Output = Format.TABLE,
) -> None:
    """Restore a backup into an empty database, maybe on another server, before any service works on it.

    Leased tasks go back to the queue without burning an attempt. Readers of events go on with the cursors they have.
    """
    from app.memory.service import backups

    if bundled and url is not None:
        raise typer.BadParameter("--bundled and --database-url exclude each other")
    with output.errors().status("restoring") as seen, tried(), _place(url, bundled=bundled) as place:
        done = on_database(lambda database: backups.restore(database, _dumps(), file, seen.update), place)
    if fmt is Format.JSON:
        output.write_json({name: getattr(done, name) for name in done.__dataclass_fields__})
        return
    if not done.checked:
        output.errors().print("[yellow]there was no manifest beside the backup, so its checksum was not checked[/]")
    upgraded = f", brought up from {done.before}" if done.before != done.revision else ""
    output.show(Text(f"restored at revision {done.revision}{upgraded}; {done.released:,} leases were released"))
    output.errors().print("[dim]`convener db verify` checks what is there now[/]")


def verify(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="a backup; the live database without it")
    ] = None,
    url: DatabaseUrl = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Check every invariant of the live database, reading all of it; or the checksum of a backup.

    Ends with 1 where something is wrong.
    """
    checks = _of_file(file) if file is not None else _of_database(url)
    fine = all(check["ok"] for check in checks)
    if fmt is Format.JSON:
        output.write_json({"ok": fine, "checks": checks})
    else:
        output.show(_listing(checks))
    if not fine:
        raise typer.Exit(ExitCode.REFUSED)


def _place(url: str | None, *, bundled: bool) -> AbstractContextManager[str | None]:
    return new_server() if bundled else nullcontext(url)


def _of_file(file: Path) -> list[dict[str, Any]]:
    from app.memory.service import backups

    with tried():
        found = backups.inspect(_dumps(), file)
    says = f"the backup is what was written, and holds revision {found.revision} in {found.entries} entries"
    if found.manifest is None:
        says = "the backup can be read; there is no manifest with a checksum beside it"
    return [_check(str(file), says, found.violations, len(found.violations))]


def _of_database(url: str | None) -> list[dict[str, Any]]:
    verdicts = on_database(_examine, url or bundled_url())
    return [_check(v.check.name, v.check.says, v.examples, v.violations) for v in verdicts]


async def _examine(database: "Database") -> "list[Verdict]":
    from app.db import schema
    from app.memory.store.invariants import CHECKS, begin, run

    found = await schema.revision(database.engine)
    if found != schema.head():
        hint = "`convener db migrate` brings it up to date"
        raise Failure(f"the schema is at {found or 'no revision'}, not {schema.head()}", ExitCode.REFUSED, hint=hint)
    async with database.transaction() as connection:
        await begin(connection)
        return [await run(connection, check) for check in CHECKS]


def _check(name: str, says: str, examples: Sequence[str], violations: int) -> dict[str, Any]:
    return {"name": name, "says": says, "ok": not violations, "violations": violations, "examples": list(examples)}


def _dumps() -> "Dumps":
    from app.memory.service.dumps import Dumps
    from app.postgres.binaries import find_binaries

    configured = settings().postgres_bin
    return Dumps(binaries=find_binaries(str(configured) if configured else None))


def _listing(checks: list[dict[str, Any]]) -> Table:
    table = output.table("CHECK", "VERDICT", "MEANING", flexible="MEANING")
    for check in checks:
        verdict = Text("ok", "green") if check["ok"] else Text(f"{check['violations']:,} violations", "red")
        table.add_row(output.cell(check["name"]), verdict, output.cell(check["says"]))
        for example in check["examples"]:
            table.add_row(Text(""), Text(""), output.cell(example))
    return table
