"""Recognition of keys, which remembers them, and asks for all that it remembers at once whether they have changed."""

import asyncio
import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.admin.rules.keys import matches, read_key, read_session
from app.admin.service.access import UNKNOWN
from app.admin.store import keys, sessions
from app.admin.store.keys import StoredKey
from app.db import hot_path, notify
from app.db.batching import Coalescer
from app.db.database import Database
from app.http.callers import Authenticator, key_text
from app.kernel import resources
from app.kernel.access import NAMESPACED_ROLES, Principal, Scope
from app.kernel.agents import AgentType
from app.kernel.errors import DatabaseUnavailable, Unauthenticated, WorkerGone
from app.kernel.ids import WorkerId
from app.kernel.states import LIVE_STATES, WorkerState

log = logging.getLogger(__name__)
# A revocation takes effect within this time in every process, whatever announcement gets lost.
_TRUST_SECONDS = 1.0
_CHECK_SECONDS = 0.7
# At least between two checks, however many workers end.
_PAUSE_SECONDS = 0.02
# Less than the minute that a check looks back.
_MEMORY_SECONDS = 45.0
_NOTE_SECONDS = 60.0
_MAX_REMEMBERED = 20_000
# For so long an id that no key has is not looked up again.
_ABSENCE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key as it was read at a monotonic time; it is read again after `until`, and no good after `expires_at`."""

    principal: Principal
    read_at: float
    until: float
    expires_at: float


class Keyring(Authenticator):
    """Recognises keys; those that it remembers need no query of their own while `follow` runs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entries: dict[bytes, _Entry] = {}
        self._absent: dict[str, float] = {}
        self._checked_at = float("-inf")
        self._wake = asyncio.Event()
        self._lookups: Coalescer[str, StoredKey | None] = Coalescer(self._read)
        self._session_lookups: Coalescer[str, StoredKey | None] = Coalescer(self._read_sessions)
        self._used: set[str] = set()
        self._noted_at = time.monotonic()
        database.announcer.subscribe(self._hear)

    async def recognise(self, text: str) -> Principal:
        """The holder of this key. Raises Unauthenticated, and WorkerGone for the key of a worker that has ended."""
        principal = self.remembered(text)
        if principal is not None:
            return principal
        fingerprint = _fingerprint(text)
        entry, moment = self._entries.get(fingerprint), time.monotonic()
        # Refusals are not remembered, so a new key works at once. A change during the look-up is missed here, and
        # found by the next check.
        try:
            principal, seconds = await self._look_up(text)
        except DatabaseUnavailable:
            # Nobody can revoke a key meanwhile, and a monitor is to see that the database is away.
            if entry is None or moment >= entry.expires_at:
                raise
            return entry.principal
        # The checks ask for changes of keys, and not for sessions that have ended.
        memory_seconds = _MEMORY_SECONDS if read_session(text) is None else _TRUST_SECONDS
        until = moment + min(seconds, memory_seconds)
        self._remember(fingerprint, _Entry(principal, moment, until, moment + seconds))
        return principal

    def remembered(self, text: str) -> Principal | None:
        """The holder of the key as far as that can be told without a look-up."""
        entry = self._entries.get(_fingerprint(text))
        if entry is None:
            return None
        moment, read_at, checked_at = time.monotonic(), entry.read_at, self._checked_at
        # Not by min and max, which cost as much as all else here but the digest: every call comes by.
        if moment < entry.until and moment < (read_at if read_at > checked_at else checked_at) + _TRUST_SECONDS:
            return entry.principal
        return None

    @property
    def stalled_seconds(self) -> float:
        """For how long keys could not be looked up."""
        return self._lookups.stalled_seconds

    async def gather(self, authorization: str, seconds: float) -> None:
        """Wait for the next multiple of `seconds`, unless the key is remembered; all who wait are looked up at once."""
        text = key_text(authorization)
        if text is not None and _fingerprint(text) not in self._entries:
            await asyncio.sleep(seconds - time.monotonic() % seconds)

    async def follow(self) -> None:
        """Go on asking which keys have changed, until cancelled."""
        while True:
            try:
                await self.check()
            except DatabaseUnavailable:
                # The connections tell of an outage, once for all who use them.
                level = logging.DEBUG if self._database.outage.is_told else logging.WARNING
                log.log(level, "keys cannot be checked now: each is looked up again before it is believed")
            except Exception:
                # Nothing would start this task again.
                log.exception("the check of keys stumbled, trying again")
            await asyncio.sleep(_PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _CHECK_SECONDS)

    async def check(self) -> None:
        """Forget the keys that have changed, and believe the others for a while longer. Raises DatabaseUnavailable."""
        self._wake.clear()
        began_at = time.monotonic()
        if self._used and began_at - self._noted_at > _NOTE_SECONDS:
            used, self._used, self._noted_at = self._used, set(), began_at
            await hot_path.run(self._database, lambda connection: keys.note_use(connection, used))
        if self._entries:
            changed = await hot_path.run(self._database, keys.changed)
            if changed:
                items = self._entries.items()
                self._entries = {text: entry for text, entry in items if entry.principal.key_id not in changed}
            self._checked_at = began_at

    async def _look_up(self, text: str) -> tuple[Principal, float]:
        """The holder, and the seconds for which to remember it."""
        # A browser shows its session, which acts for a key.
        parts, lookups = read_key(text), self._lookups
        if parts is None:
            parts, lookups = read_session(text), self._session_lookups
        if parts is None:
            raise Unauthenticated("a key looks like cvn_<id>_<secret>")
        stored_key = await self._find(lookups, parts[0])
        lifetime = None if stored_key is None else _lifetime(stored_key, parts[1])
        if stored_key is None or lifetime is None:
            raise Unauthenticated(UNKNOWN)
        # First, as it tells the worker whether to come again.
        if stored_key.worker_state is not None and WorkerState(stored_key.worker_state) not in LIVE_STATES:
            raise WorkerGone.of(stored_key.worker_state, stored_key.ended_reason)
        if stored_key.revoked_at is not None:
            raise Unauthenticated(UNKNOWN)
        if lifetime <= 0:
            raise Unauthenticated("the key has expired; ask for another, or for its rotation before its end")
        if stored_key.worker_id is None:
            self._used.add(stored_key.id)
        return _principal(stored_key), lifetime

    async def _find(self, lookups: Coalescer[str, StoredKey | None], stored_id: str) -> StoredKey | None:
        """The key that is stored under an id, or that its session acts for."""
        if self._absent.get(stored_id, 0.0) > time.monotonic():
            return None
        stored_key = await lookups(stored_id)
        if stored_key is None:
            self._remember_absence(stored_id)
        return stored_key

    async def _read(self, key_ids: Sequence[str]) -> list[StoredKey | None]:
        """Look up keys together: hundreds of workers may ask at once."""
        keys_by_id = await hot_path.run(self._database, lambda c: keys.read(c, key_ids))
        return [keys_by_id.get(key_id) for key_id in key_ids]

    async def _read_sessions(self, session_ids: Sequence[str]) -> list[StoredKey | None]:
        keys_by_session = await hot_path.run(self._database, lambda c: sessions.read(c, session_ids))
        return [keys_by_session.get(session_id) for session_id in session_ids]

    def _remember(self, fingerprint: bytes, entry: _Entry) -> None:
        if len(self._entries) >= _MAX_REMEMBERED:
            self._entries.clear()  # keeping an order of use would cost every request
        self._entries[fingerprint] = entry

    def _remember_absence(self, key_id: str) -> None:
        if len(self._absent) >= _MAX_REMEMBERED:
            self._absent.clear()
        # Nobody can ask for the id of a key before it is made, as ids are random: a new key works at once.
        self._absent[key_id] = time.monotonic() + _ABSENCE_SECONDS

    def _hear(self, topics: Collection[str]) -> None:
        if notify.KEYS in topics:  # revocations by people are rare, so the whole cache may go
            self._entries.clear()
        elif notify.FLEET in topics:  # a worker may have ended, and many may at once
            self._wake.set()


def _fingerprint(text: str) -> bytes:
    # The cache is keyed by digests, so that it holds no secrets.
    return hashlib.sha256(text.encode()).digest()


def _lifetime(key: StoredKey, secret: str) -> float | None:
    """Seconds for which a key is good, not above 0 once it has expired; None: this is not its secret."""
    is_current = matches(secret, key.secret_hash)
    is_former = key.former_hash is not None and matches(secret, key.former_hash) and (key.former_seconds or 0) > 0
    if not (is_current or is_former):
        return None
    ends = (key.seconds_left, None if is_current else key.former_seconds)
    return min((end for end in ends if end is not None), default=math.inf)


def _principal(key: StoredKey) -> Principal:
    namespace = key.namespace if key.role in NAMESPACED_ROLES else None
    return Principal(
        key_id=key.id,
        role=key.role,
        namespace=namespace,
        is_confined=namespace is not None and key.is_divided,
        withheld=frozenset(map(Scope, key.withheld)),
        worker_id=WorkerId(key.worker_id) if key.worker_id else None,
        capabilities=frozenset(map(AgentType, key.capabilities or ())),
        ends_at=key.ends_at,
        offer=resources.parse(key.offer) if key.worker_id and key.offer else None,
    )
