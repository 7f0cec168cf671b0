"""Keys as people and the service make, rotate, use up and revoke them; what people do is in the audit log."""

import secrets
from collections.abc import Collection
from dataclasses import replace
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.errors import KeyRefused
from app.admin.rules.keys import digest, excess, key_problems, namespace_of, namespace_problems, write_key
from app.admin.service import audit
from app.admin.store import keys, sessions
from app.admin.store.keys import CreatedKey, NewKey
from app.db.database import Database
from app.kernel.access import Role, Scope
from app.kernel.errors import Forbidden, KeyNotFound, Unauthenticated

# One sentence for whatever is wrong, so that the answer does not tell which ids exist.
UNKNOWN = "the key is unknown or revoked"


class WorkerEvictor:
    """Evicts workers; `app.workers` implements it."""

    async def evict(self, connection: AsyncConnection, worker_id: UUID, *, by: str, reason: str) -> None:
        """Evict a worker, which revokes its key."""
        raise NotImplementedError

    async def evict_registered_by(self, database: Database, key_id: str, by: str) -> int:
        """Evict all live workers that registered with this key; return their number."""
        raise NotImplementedError


async def issue_key(
    connection: AsyncConnection,
    key: NewKey,
    by: str,
    reason: str = "",
    *,
    maker_withheld: Collection[Scope] = (),
) -> CreatedKey:
    """Make a key for somebody, by the holder of a key without the scopes `maker_withheld`. Raises KeyRefused."""
    owner = namespace_problems(key.role, key.namespace, is_of_all=key.is_of_all)
    problems = [*key_problems(key.role, key.withheld), *owner]
    if scopes := excess(key.role, key.withheld, maker_withheld):
        problems.append(("withheld", f"must have {', '.join(scopes)}, which your own key was made without"))
    if problems:
        raise KeyRefused(problems)
    created = await create_key(connection, key)
    audit.record(connection, "key.create", by=by, new_state=created.description(), reason=reason)
    return created


async def create_key(connection: AsyncConnection, key: NewKey) -> CreatedKey:
    """Make a key; its text is in the answer and stored nowhere. Those of a namespace are by default of `default`."""
    key = replace(key, namespace=namespace_of(key.role, key.namespace, is_of_all=key.is_of_all))
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return await keys.insert(connection, key_id, digest(secret), key, write_key(key_id, secret))


async def rotate_key(
    connection: AsyncConnection,
    key_id: str,
    *,
    overlap_seconds: float,
    expires_in_seconds: float | None,
    by: str,
    reason: str = "",
    maker_withheld: Collection[Scope] = (),
) -> CreatedKey:
    """Give a key another secret; the former one is good for `overlap_seconds` more. Raises KeyNotFound, Forbidden.

    Whoever rotates a key holds it afterwards, so it must have none of the scopes `maker_withheld`.
    """
    await sessions.end_former(connection, key_id)
    secret = secrets.token_urlsafe(32)
    rotated = await keys.rotate(
        connection,
        key_id,
        digest(secret),
        overlap_seconds=overlap_seconds,
        expires_in_seconds=expires_in_seconds,
        text_of_key=write_key(key_id, secret),
    )
    if rotated is None:
        raise KeyNotFound("its id is wrong, or it has been revoked, has expired, or serves registrations only once")
    if scopes := excess(rotated.role, [Scope(scope) for scope in rotated.withheld], maker_withheld):
        raise Forbidden(f"the key includes {', '.join(scopes)}, which your own was made without")
    new_state = rotated.description() | {"overlap_seconds": overlap_seconds}
    audit.record(connection, "key.rotate", by=by, new_state=new_state, reason=reason)
    return rotated


async def revoke_key(
    connection: AsyncConnection, key_id: str, by: str, reason: str = "", *, evictor: WorkerEvictor
) -> None:
    """Revoke a key: at once in processes that receive the announcement, within 1 s in all. Raises KeyNotFound.

    A worker is evicted with its own key: a call of it that waits would still be given a task.
    """
    worker_id = await keys.worker_of(connection, key_id)
    if worker_id is not None:
        await evictor.evict(connection, worker_id, by=by, reason=reason or f"the key {key_id} was revoked")
        return
    was_valid = await keys.revoke(connection, key_id)
    if was_valid is None:
        raise KeyNotFound
    if was_valid:
        audit.record(connection, "key.revoke", by=by, old_state={"id": key_id}, reason=reason)


async def use_to_register(connection: AsyncConnection, key_id: str, *, is_repeatable: bool = False) -> UUID | None:
    """Use a pool's key for one registration; return the worker that was requested with it, if it serves a launch.

    Raises Unauthenticated, also where another registration has used it up.
    """
    launched = await keys.take_launch(connection, key_id, is_repeatable=is_repeatable)
    if launched is None and not await keys.take_use(connection, key_id) and not await keys.hold(connection, key_id):
        raise Unauthenticated(UNKNOWN)
    return launched


async def create_worker_key(connection: AsyncConnection, worker_id: UUID, label: str) -> str:
    """Make the credential of a worker that registers; return its text."""
    return (await create_key(connection, NewKey(role=Role.WORKER, label=label, worker_id=worker_id))).text


async def create_launch_key(connection: AsyncConnection, worker_id: UUID) -> str:
    """Make the key with which a requested worker registers, once, and nobody else; return its text."""
    key = NewKey(role=Role.POOL, label=f"launch of {worker_id}", launches=worker_id)
    return (await create_key(connection, key)).text
