"""`convener key`: makes, lists and revokes keys, through the service or, for the first key, on the database."""

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from app.admin.rules.keys import key_problems, namespace_of, namespace_problems
from app.kernel.access import Role, Scope
from app.terminal import output
from app.terminal.client import Client, Json, Url, connect
from app.terminal.connection import ADMIN_KEY, OPERATOR_KEY
from app.terminal.databases import on_database
from app.terminal.failures import ExitCode, Failure
from app.terminal.output import Format, Output

if TYPE_CHECKING:
    from app.db.database import Database


app = typer.Typer(
    short_help="Make, list and revoke keys.",
    help="Make, list and revoke keys. Needs an admin's key; with --database, or with CONVENER_DATABASE_URL and no "
    "CONVENER_KEY, it works on the database itself: that is how the first key is made.",
    no_args_is_help=True,
)
Direct = Annotated[bool, typer.Option("--database", help="on the database, without the service")]
_PAGE = 500


@app.command(
    epilog=output.examples(
        "convener key create pool --label 'pool of lab 1' > pool.key",
        "convener key create reader --label dashboard --without content:read",
        "convener key create supervisor --label 'lab a' --namespace lab-a",
        "CONVENER_DATABASE_URL=postgresql://... convener key create admin --label me",
    )
)
def create(
    role: Annotated[Role, typer.Argument(help="what the key is for")],
    label: Annotated[str, typer.Option(help="whose it is, so that you know it again")],
    without: Annotated[
        list[Scope] | None, typer.Option(help="a scope of the role that it is not to have; may be repeated")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="of a supervisor or reader, who sees nothing of others; `default` without it")
    ] = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", help="for a reader of the whole service")] = False,
    database: Direct = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Make a key and print it to stdout. Only its SHA-256 is kept: it is shown this once."""
    withheld = frozenset(without or ())
    owner = namespace_problems(role, namespace, is_of_all=all_namespaces)
    for _, message in (*key_problems(role, withheld), *owner):
        raise Failure(message, ExitCode.USAGE)
    fields: Json = {"role": role.value, "label": label, "withheld": sorted(withheld)}
    fields |= {"namespace": namespace, "all_namespaces": all_namespaces}
    if _is_direct(database):
        new_key = on_database(lambda database: _create(database, role, fields))
    else:
        with _connect(url) as client:
            new_key = client.post("/keys", fields)
    if fmt is Format.JSON:
        output.write_json(new_key)
        return
    # Only the key goes to stdout, so that redirecting it gives a usable key file.
    typer.echo(output.plain(new_key["key"]))
    output.note(f"{role} key {new_key['id']}; shown this once. Give it on as CONVENER_KEY.")


@app.command(epilog=output.examples("convener key ls", "convener key ls --database -o json"))
def ls(database: Direct = False, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """List keys, without their secrets. Workers' own keys come and go with them, and are left out."""
    if _is_direct(database):
        items, now = on_database(_read), datetime.now(UTC)
    else:
        with _connect(url) as client:
            items, now = client.pages("/keys", None)[0], client.now
    output.present({"items": items, "next": None}, fmt, lambda: _listing(items, now))


@app.command(
    epilog=output.examples(
        "convener key revoke 4f0c9d2a71be",
        "convener key revoke 4f0c9d2a71be --database",
        "convener key revoke 4f0c9d2a71be -o json",
    )
)
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="as `convener key ls` shows it")],
    database: Direct = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """End a key: it stops working within 5 s everywhere."""
    if _is_direct(database):
        on_database(lambda database: _revoke(database, key_id))
    else:
        with _connect(url) as client:
            client.delete(f"/keys/{key_id}")
    output.present({"id": key_id, "revoked": True}, fmt, lambda: Text(output.plain(f"revoked {key_id}")))


def _is_direct(is_requested: bool) -> bool:
    # Without a key the service refuses everything, so a database URL alone can only mean the database itself.
    return is_requested or bool(os.environ.get("CONVENER_DATABASE_URL") and not os.environ.get("CONVENER_KEY"))


def _connect(url: str | None) -> Client:
    # Managing keys takes an admin's key; with only an operator's, the refusal says so.
    return connect(url, (ADMIN_KEY, OPERATOR_KEY))


async def _create(database: "Database", role: Role, fields: Json) -> Json:
    # Imported here, as in the other commands: SQLAlchemy takes longer to load than the rest of the program.
    from app.admin.service.access import create_key

    async with database.transaction() as connection:
        owner: dict[str, Any] = {"namespace": fields["namespace"], "is_of_all": fields["all_namespaces"]}
        withheld = frozenset(map(Scope, fields["withheld"]))
        key_id, key = await create_key(connection, role, fields["label"], withheld, **owner)
    same = {name: fields[name] for name in ("role", "label", "withheld")}
    return {"id": key_id, **same, "namespace": namespace_of(role, **owner), "key": key}


async def _revoke(database: "Database", key_id: str) -> None:
    from app.admin.service.access import revoke_key

    async with database.transaction() as connection:
        await revoke_key(connection, key_id)


async def _read(database: "Database") -> list[Json]:
    from app.admin.store import keys

    items: list[Json] = []
    async with database.transaction() as connection:
        while page := await keys.page(connection, after=items[-1]["id"] if items else "", limit=_PAGE):
            items += [_plain(row) for row in page]
    return items


def _plain(row: dict[str, Any]) -> Json:
    moments = {name: row[name].isoformat() if row[name] else None for name in ("created_at", "revoked_at")}
    return {name: row[name] for name in ("id", "role", "label", "namespace", "withheld")} | moments


def _listing(items: list[Json], now: datetime) -> Table:
    table = output.table("ID", "ROLE", "NAMESPACE", "WITHOUT", "CREATED", "REVOKED", "LABEL", flexible="LABEL")
    for key in items:
        times = (output.age(key["created_at"], now), output.age(key["revoked_at"], now))
        limits = (key["namespace"] or "all", " ".join(key["withheld"]))
        table.add_row(*map(output.cell, (key["id"], key["role"], *limits, *times, key["label"])))
    return table
