"""`convener key`: makes, rotates, lists and revokes keys, through the service or on the database."""

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from app.admin.rules.keys import (
    MAX_ENROLMENT_SECONDS,
    MAX_LIFETIME_SECONDS,
    MAX_OVERLAP_SECONDS,
    key_problems,
    namespace_problems,
)
from app.kernel.access import Role, Scope
from app.kernel.text import plural
from app.terminal import output
from app.terminal.client import Client, Json, Url, connect
from app.terminal.connection import ADMIN_KEY, OPERATOR_KEY
from app.terminal.databases import author, bundled_url, on_database
from app.terminal.failures import ExitCode, Failure
from app.terminal.options import Reason, duration_option, parse_duration
from app.terminal.output import Format, Output
from worker_agent.variables import KEY_FILE

if TYPE_CHECKING:
    from app.admin.store.keys import CreatedKey, NewKey
    from app.db.database import Database


app = typer.Typer(
    help="Make, rotate, list and revoke keys. Needs an admin's key; with --database, or with CONVENER_DATABASE_URL and "
    "no CONVENER_KEY, it works on the database itself: that is how the first key is made.",
    no_args_is_help=True,
)
Direct = Annotated[bool, typer.Option("--database", help="on the database, without the service")]


def _label(value: str) -> str:
    # The service refuses others too; every entry of the key in the audit log has it.
    if not 1 <= len(value) <= 200:
        raise typer.BadParameter(f"has {len(value)} characters, not 1 to 200")
    return value


_ROLES = [role.value for role in Role if role is not Role.WORKER]


def _role(value: str) -> str:
    # That of workers passes, as the rule refuses it with what to do instead.
    if value not in (*_ROLES, Role.WORKER):
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(_ROLES)}")
    return value


RoleName = Annotated[
    str,
    typer.Argument(
        metavar="ROLE",
        callback=_role,
        autocompletion=lambda: _ROLES,
        help=f"what the key is for: {', '.join(_ROLES[:-1])} or {_ROLES[-1]}",
    ),
]
Label = Annotated[str, typer.Option(callback=_label, help="whose it is, so that you know it again")]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="as `convener key ls` shows it")]
ExpiresIn = Annotated[str | None, duration_option("--expires-in", "when it stops working, never when absent")]
_PAGE = 500
_COMMAND = "convener key ... --database"


@app.command(
    epilog=output.examples(
        "(umask 077; convener key create pool --label 'pool of lab 1' > pool.key)",
        "convener key create reader --label dashboard --without content:read --expires-in 90d",
        "convener key create supervisor --label 'lab a' --namespace lab-a",
        "CONVENER_DATABASE_URL=postgresql://... convener key create admin --label me",
    )
)
def create(
    role: RoleName,
    label: Label,
    without: Annotated[
        list[Scope] | None, typer.Option(help="a scope of the role that it is not to have; may be repeated")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="of a supervisor or reader, who sees nothing of others; `default` without it")
    ] = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", help="for a reader of the whole service")] = False,
    expires_in: ExpiresIn = None,
    reason: Reason = "",
    database: Direct = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Make a key and print it to stdout. Only its SHA-256 is kept: it is shown this once."""
    withheld = frozenset(without or ())
    owner = namespace_problems(Role(role), namespace, is_of_all=all_namespaces)
    for _, message in (*key_problems(Role(role), withheld), *owner):
        raise Failure(message, ExitCode.USAGE)
    body = {
        "role": role,
        "label": label,
        "withheld": sorted(withheld),
        "namespace": namespace,
        "all_namespaces": all_namespaces,
        "expires_in_seconds": _lifetime(expires_in),
        "reason": reason,
    }
    _show_new(_make("/keys", body, database, url), fmt)


@app.command(
    epilog=output.examples(
        "(umask 077; convener key enrol --label 'node 7' > node7.token)",
        "convener key enrol --label 'job array' --uses 64 --expires-in 2h",
    )
)
def enrol(
    label: Label,
    uses: Annotated[int, typer.Option(help="workers that it may register", min=1, max=1000)] = 1,
    expires_in: Annotated[str, duration_option("--expires-in", "a day at most")] = "15min",
    reason: Reason = "",
    database: Direct = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Make a token with which a worker of another host registers, once and soon, and print it to stdout.

    The worker takes it like a pool's key: `convener-worker --key-file node7.token`.
    """
    seconds = _lifetime(expires_in, MAX_ENROLMENT_SECONDS)
    body = {"label": label, "uses": uses, "expires_in_seconds": seconds, "reason": reason}
    _show_new(_make("/keys/enrolments", body, database, url), fmt)


@app.command(
    epilog=output.examples(
        "(umask 077; convener key rotate 4f0c9d2a71be > pool.key)",
        "convener key rotate 4f0c9d2a71be --overlap 0s --expires-in 90d",
    )
)
def rotate(
    key_id: KeyId,
    overlap: Annotated[str, duration_option("--overlap", "how long the former secret is good")] = "1h",
    expires_in: ExpiresIn = None,
    reason: Reason = "",
    database: Direct = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """Give a key another secret and print it to stdout; the former one works on for a while."""
    seconds = _seconds("--overlap", overlap, 0, MAX_OVERLAP_SECONDS)
    body = {"overlap_seconds": seconds, "expires_in_seconds": _lifetime(expires_in), "reason": reason}
    if _is_direct(database):
        new_key = on_database(lambda database: _rotate(database, key_id, body), bundled_url())
    else:
        with _connect(url) as client:
            new_key = client.post(f"/keys/{key_id}/rotate", body)
    _show_new(new_key, fmt)


@app.command(epilog=output.examples("convener key ls", "convener key ls --database -o json"))
def ls(database: Direct = False, url: Url = None, fmt: Output = Format.TABLE) -> None:
    """List keys, without their secrets. Workers' own keys come and go with them, and are left out."""
    if _is_direct(database):
        items, now = on_database(_read, bundled_url()), datetime.now(UTC)
    else:
        with _connect(url) as client:
            items, now = client.pages("/keys", None)[0], client.now
    output.present({"items": items, "next": None}, fmt, lambda: _listing(items, now))


@app.command(
    epilog=output.examples(
        "convener key revoke 4f0c9d2a71be",
        "convener key revoke 4f0c9d2a71be --evict-workers",
        "convener key revoke 4f0c9d2a71be --database",
    )
)
def revoke(
    key_id: KeyId,
    evict_workers: Annotated[
        bool, typer.Option("--evict-workers", help="also evict the live workers that registered with it")
    ] = False,
    reason: Reason = "",
    database: Direct = False,
    url: Url = None,
    fmt: Output = Format.TABLE,
) -> None:
    """End a key: it stops working within 1 s everywhere."""
    result: Json = {"id": key_id, "revoked": True}
    if _is_direct(database):
        result |= on_database(lambda database: _revoke(database, key_id, reason, evict_workers), bundled_url())
    else:
        with _connect(url) as client:
            if evict_workers:
                result |= client.remove(f"/keys/{key_id}", evict_workers="true", reason=reason)
            else:
                client.delete(f"/keys/{key_id}", reason=reason)
    evicted = f" and evicted {plural(result['evicted_workers'], 'worker')}" if evict_workers else ""
    output.present(result, fmt, lambda: Text(output.plain(f"revoked {key_id}{evicted}")))


def _make(path: str, body: Json, database: bool, url: str | None) -> Json:
    if _is_direct(database):
        return on_database(lambda database: _create(database, body), bundled_url())
    with _connect(url) as client:
        answer: Json = client.post(path, body)
        return answer


def _show_new(new_key: Json, fmt: Format) -> None:
    if fmt is Format.JSON:
        output.write_json(new_key)
        return
    # Only the key goes to stdout, so that redirecting it gives a usable key file.
    typer.echo(output.plain(new_key["key"]))
    uses = "" if new_key["uses_left"] is None else f" for {plural(new_key['uses_left'], 'registration')}"
    until = "" if new_key["expires_at"] is None else f", until {new_key['expires_at']}"
    remark = f"{new_key['role']} key {new_key['id']}{uses}{until}; shown this once. Give it on as CONVENER_KEY."
    output.note(remark)


def _lifetime(duration: str | None, max_seconds: int = MAX_LIFETIME_SECONDS) -> int | None:
    return None if duration is None else _seconds("--expires-in", duration, 1, max_seconds)


def _seconds(option: str, duration: str, min_seconds: int, max_seconds: int) -> int:
    # The service refuses others too.
    seconds = round(parse_duration(duration))
    if not min_seconds <= seconds <= max_seconds:
        raise typer.BadParameter(f"{duration} is not {min_seconds}s to {max_seconds // 86_400}d", param_hint=option)
    return seconds


def _is_direct(is_requested: bool) -> bool:
    # Without a key the service refuses everything, so a database URL alone can only mean the database itself.
    return is_requested or bool(
        os.environ.get("CONVENER_DATABASE_URL") and not (os.environ.get("CONVENER_KEY") or os.environ.get(KEY_FILE))
    )


def _connect(url: str | None) -> Client:
    # Managing keys takes an admin's key; with only an operator's, the refusal says so.
    return connect(url, (ADMIN_KEY, OPERATOR_KEY))


async def _create(database: "Database", body: Json) -> Json:
    # Imported here, as in the other commands: SQLAlchemy takes longer to load than the rest of the program.
    from app.admin.service.access import issue_key

    async with database.transaction() as connection:
        return _shown(await issue_key(connection, _new_key(body), author(_COMMAND), body["reason"]))


def _new_key(body: Json) -> "NewKey":
    from app.admin.store.keys import NewKey

    return NewKey(
        role=Role(body.get("role", Role.POOL)),
        label=body["label"],
        namespace=body.get("namespace"),
        is_of_all=body.get("all_namespaces", False),
        withheld=frozenset(map(Scope, body.get("withheld", ()))),
        uses_left=body.get("uses"),
        expires_in_seconds=body["expires_in_seconds"],
    )


async def _rotate(database: "Database", key_id: str, body: Json) -> Json:
    from app.admin.service.access import rotate_key

    async with database.transaction() as connection:
        return _shown(await rotate_key(connection, key_id, **body, by=author(_COMMAND)))


def _shown(key: "CreatedKey") -> Json:
    return key.description() | {"key": key.text}


async def _revoke(database: "Database", key_id: str, reason: str, evict_workers: bool) -> Json:
    from app.admin.service.access import revoke_key
    from app.workers.service.eviction import Evictor

    evictor, by = Evictor(), author(_COMMAND)
    async with database.transaction() as connection:
        await revoke_key(connection, key_id, by, reason, evictor=evictor)
    return {"evicted_workers": await evictor.evict_registered_by(database, key_id, by)} if evict_workers else {}


async def _read(database: "Database") -> list[Json]:
    from app.admin.store import keys

    items: list[Json] = []
    after: str | None = ""
    async with database.transaction() as connection:
        while after is not None:
            page = await keys.page(connection, after=after, limit=_PAGE)
            items += [_plain(row) for row in page.items]
            after = page.next(lambda row: str(row["id"]))
    return items


def _plain(row: dict[str, Any]) -> Json:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _listing(items: list[Json], now: datetime) -> Table:
    columns = ("ID", "ROLE", "NAMESPACE", "WITHOUT", "CREATED", "REVOKED", "USED", "ROTATED", "EXPIRES", "LABEL")
    table = output.table(*columns, flexible="LABEL", optional=["WITHOUT", "CREATED", "USED", "EXPIRES", "ROTATED"])
    for key in items:
        row = [key["id"], key["role"], key["namespace"] or "all", " ".join(key["withheld"])]
        row += [output.age(key[f"{name}_at"], now) for name in ("created", "revoked", "last_used", "rotated")]
        table.add_row(*map(output.cell, [*row, key["expires_at"] and key["expires_at"][:16], key["label"]]))
    return table
