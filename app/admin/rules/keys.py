"""The text of a key or session, the digest that is stored of it, and which keys people may make."""

import hashlib
import hmac
import re
from collections.abc import Collection, Iterator

from app.kernel.access import COMMON, NAMESPACED_ROLES, SCOPES, Role, Scope
from app.kernel.namespaces import DEFAULT, PATTERN

_PREFIX = "cvn"
_SESSION_PREFIX = "cvs"
_MAX_ID_LENGTH = 64
_DAY = 86_400
MAX_LIFETIME_SECONDS = 10 * 366 * _DAY
MAX_ENROLMENT_SECONDS = _DAY
# Of the former secret of a key that is rotated.
MAX_OVERLAP_SECONDS = 30 * _DAY


def write_key(key_id: str, secret: str) -> str:
    """The text that the holder keeps: `cvn_<id>_<secret>`."""
    return f"{_PREFIX}_{key_id}_{secret}"


def read_key(text: str) -> tuple[str, str] | None:
    """Split a key into its id and secret; None when it is not of the form."""
    return _split(text, _PREFIX)


def write_session(session_id: str, secret: str) -> str:
    """The text that a browser keeps: `cvs_<id>_<secret>`."""
    return f"{_SESSION_PREFIX}_{session_id}_{secret}"


def read_session(text: str) -> tuple[str, str] | None:
    """Split the text of a session into its id and secret; None when it is not of the form."""
    return _split(text, _SESSION_PREFIX)


def _split(text: str, prefix: str) -> tuple[str, str] | None:
    parts = text.split("_", 2)  # the secret is URL-safe base64 and may hold underscores itself
    if len(parts) != 3 or parts[0] != prefix or not 0 < len(parts[1]) <= _MAX_ID_LENGTH or not parts[2]:
        return None
    return parts[1], parts[2]


def digest(secret: str) -> bytes:
    """SHA-256 of the secret; secrets are 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).digest()


def matches(secret: str, stored_digest: bytes) -> bool:
    """Whether the secret belongs to the stored digest; takes the same time for every wrong guess."""
    return hmac.compare_digest(digest(secret), stored_digest)


def excess(role: Role, withheld: Collection[Scope], maker_withheld: Collection[Scope]) -> list[Scope]:
    """Scopes that a key would have, and that the key of whoever makes it was made without."""
    return sorted((SCOPES[role] - frozenset(withheld)) & frozenset(maker_withheld))


def key_problems(role: Role, withheld: frozenset[Scope]) -> Iterator[tuple[str, str]]:
    """Why nobody may make a key like this, as (field, message); nothing when it may be made."""
    if role is Role.WORKER:
        yield "role", "a worker gets its key when it registers; make a `pool` key, which registers workers"
    allowed = SCOPES[role] - COMMON
    if foreign := sorted(withheld - allowed):
        yield "withheld", f"a {role} has no {', '.join(foreign)}; it has {', '.join(sorted(allowed))}"
    elif withheld == allowed:
        yield "withheld", "a key without any scope is of no use"


def namespace_problems(role: Role, namespace: str | None, *, is_of_all: bool) -> Iterator[tuple[str, str]]:
    """Why no key of this role may belong to the namespace, or to all, as (field, message); nothing when it may."""
    if namespace is not None and role not in NAMESPACED_ROLES:
        yield "namespace", f"a {role} is of the whole service; supervisors and readers belong to a namespace"
    elif namespace is not None and (len(namespace) > 63 or re.fullmatch(PATTERN, namespace) is None):
        yield "namespace", "must be 1 to 63 of the characters a-z, 0-9 and -, with no - at the ends"
    if is_of_all and (role is not Role.READER or namespace is not None):
        yield "all_namespaces", "is for readers, and instead of a namespace"


def namespace_of(role: Role, namespace: str | None, *, is_of_all: bool) -> str | None:
    """The namespace that a new key belongs to: the given one or `default`; None for the whole service."""
    return None if is_of_all or role not in NAMESPACED_ROLES else namespace or DEFAULT
