"""Creation, recognition and revocation of keys."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Collection, Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.errors import KeyRefused
from app.admin.rules.keys import digest, key_problems, matches, namespace_of, namespace_problems, read_key, write_key
from app.admin.store import keys
from app.admin.store.keys import NewKey, StoredKey
from app.db import hot_path, notify
from app.db.batching import Coalescer
from app.db.database import Database
from app.http.guard import Authenticator, key_text
from app.kernel.access import NAMESPACED_ROLES, Principal, Role, Scope
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable, KeyNotFound, Unauthenticated
from app.kernel.ids import WorkerId

# How long a revoked key may go on working in a process that missed the announcement.
_TRUST_SECONDS = 5.0
# One sentence for whatever is wrong, so that the answer does not tell which ids exist.
UNKNOWN = "the key is unknown or revoked"
_MAX_REMEMBERED = 20_000
# For so long an id that no key has is not looked up again.
_ABSENCE_SECONDS = 2.0


async def create_key(
    connection: AsyncConnection,
    role: Role,
    label: str,
    withheld: frozenset[Scope] = frozenset(),
    *,
    namespace: str | None = None,
    is_of_all: bool = False,
) -> tuple[str, str]:
    """Make a key; return its id and its text, which is not stored anywhere. Raises KeyRefused.

    Supervisors and readers belong to the namespace, by default to `default`; a reader may be of all of them.
    """
    if problems := [*key_problems(role, withheld), *namespace_problems(role, namespace, is_of_all=is_of_all)]:
        raise KeyRefused(problems)
    namespace = namespace_of(role, namespace, is_of_all=is_of_all)
    return await _create(connection, NewKey(role=role, label=label, namespace=namespace, withheld=withheld))


async def create_worker_key(connection: AsyncConnection, worker_id: UUID, label: str) -> str:
    """Make the credential of a worker that registers; return its text."""
    _, text = await _create(connection, NewKey(role=Role.WORKER, label=label, worker_id=worker_id))
    return text


async def create_launch_key(connection: AsyncConnection, worker_id: UUID) -> str:
    """Make the key with which a requested worker registers, once, and nobody else; return its text."""
    _, text = await _create(connection, NewKey(role=Role.POOL, label=f"launch of {worker_id}", launches=worker_id))
    return text


async def use_to_register(connection: AsyncConnection, key_id: str) -> UUID | None:
    """Use a pool's key for one registration; return the worker that was requested with it, if it serves a launch.

    Raises Unauthenticated, also where another registration has used it up.
    """
    launched = await keys.take_launch(connection, key_id)
    if launched is None and not await keys.hold(connection, key_id):
        raise Unauthenticated(UNKNOWN)
    return launched


async def _create(connection: AsyncConnection, key: NewKey) -> tuple[str, str]:
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    await keys.insert(connection, key_id, digest(secret), key)
    return key_id, write_key(key_id, secret)


async def revoke_key(connection: AsyncConnection, key_id: str) -> None:
    """Revoke a key: at once in processes that receive the announcement, within 5 s in all. Raises KeyNotFound."""
    if not await keys.revoke(connection, key_id):
        raise KeyNotFound


class Keyring(Authenticator):
    """Recognises keys, and caches each for a few seconds so that hot routes need no query."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._principals: dict[bytes, tuple[float, Principal]] = {}
        self._absent: dict[str, float] = {}
        self._lookups: Coalescer[str, StoredKey | None] = Coalescer(self._read)
        database.announcer.subscribe(self._hear)

    async def recognise(self, text: str) -> Principal:
        """The holder of this key. Raises Unauthenticated."""
        # The cache is keyed by digests, so that it holds no secrets.
        fingerprint = hashlib.sha256(text.encode()).digest()
        entry = self._principals.get(fingerprint)
        if entry is not None and entry[0] > time.monotonic():
            return entry[1]
        # Refusals are not cached, so a new key works at once. A revocation announced during the look-up is missed here,
        # and takes effect when the entry expires.
        try:
            principal = await self._look_up(text)
        except DatabaseUnavailable:
            # Nobody can revoke a key meanwhile, and a monitor is to see that the database is away.
            if entry is None:
                raise
            return entry[1]
        self._remember(fingerprint, principal)
        return principal

    async def gather(self, authorization: str, seconds: float) -> None:
        """Wait for the next multiple of `seconds`, unless the key is remembered; all who wait are looked up at once."""
        text = key_text(authorization)
        if text is not None and hashlib.sha256(text.encode()).digest() not in self._principals:
            await asyncio.sleep(seconds - time.monotonic() % seconds)

    async def _look_up(self, text: str) -> Principal:
        parts = read_key(text)
        if parts is None:
            raise Unauthenticated("a key looks like cvn_<id>_<secret>")
        is_absent = self._absent.get(parts[0], 0.0) > time.monotonic()
        stored_key = None if is_absent else await self._lookups(parts[0])
        if stored_key is None and not is_absent:
            self._remember_absence(parts[0])
        if stored_key is None or not matches(parts[1], stored_key.secret_hash) or stored_key.revoked_at is not None:
            raise Unauthenticated(UNKNOWN)
        worker_id = WorkerId(stored_key.worker_id) if stored_key.worker_id else None
        namespace = stored_key.namespace if stored_key.role in NAMESPACED_ROLES else None
        return Principal(
            key_id=stored_key.id,
            role=stored_key.role,
            namespace=namespace,
            is_confined=namespace is not None and stored_key.is_divided,
            withheld=frozenset(map(Scope, stored_key.withheld)),
            worker_id=worker_id,
            capabilities=frozenset(map(AgentType, stored_key.capabilities or ())),
        )

    async def _read(self, key_ids: Sequence[str]) -> list[StoredKey | None]:
        """Look up keys together: hundreds of workers send a heartbeat every few seconds."""
        keys_by_id = await hot_path.run(self._database, lambda c: keys.read(c, key_ids))
        return [keys_by_id.get(key_id) for key_id in key_ids]

    def _remember(self, fingerprint: bytes, principal: Principal) -> None:
        if len(self._principals) >= _MAX_REMEMBERED:
            self._principals.clear()  # keeping an order of use would cost every request
        self._principals[fingerprint] = (time.monotonic() + _TRUST_SECONDS, principal)

    def _remember_absence(self, key_id: str) -> None:
        if len(self._absent) >= _MAX_REMEMBERED:
            self._absent.clear()
        # Nobody can ask for the id of a key before it is made, as ids are random: a new key works at once.
        self._absent[key_id] = time.monotonic() + _ABSENCE_SECONDS

    def _hear(self, topics: Collection[str]) -> None:
        if notify.KEYS in topics:  # revocations are rare, so the whole cache may go
            self._principals.clear()
