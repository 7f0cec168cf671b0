"""Who may do what: keys, roles and scopes."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId


class Role(StrEnum):
    """What a key is for."""

    WORKER = "worker"
    SUPERVISOR = "supervisor"
    OPERATOR = "operator"
    ADMIN = "admin"
    READER = "reader"


class Scope(StrEnum):
    """What a route needs."""

    PUBLIC = "public"
    READ = "read"
    SUBMIT = "tasks:submit"
    REGISTER = "workers:register"
    LEASE = "leases:hold"
    OPERATE = "pool:operate"
    CONFIGURE = "config:write"
    WEIGH = "weights:command"
    KEYS = "keys:manage"
    CALL = "llm:call"
    MEASURE = "metrics:push"


_READ = frozenset({Scope.PUBLIC, Scope.READ})
_STEERING = frozenset({Scope.OPERATE, Scope.CONFIGURE, Scope.WEIGH})
_OPERATOR = _READ | _STEERING | {Scope.SUBMIT, Scope.REGISTER, Scope.CALL, Scope.MEASURE}
SCOPES: Mapping[Role, frozenset[Scope]] = {
    Role.WORKER: frozenset({Scope.PUBLIC, Scope.REGISTER, Scope.LEASE, Scope.CALL, Scope.MEASURE}),
    Role.READER: _READ,
    Role.SUPERVISOR: _READ | {Scope.SUBMIT, Scope.WEIGH, Scope.CALL, Scope.MEASURE},
    Role.OPERATOR: _OPERATOR,
    Role.ADMIN: _OPERATOR | {Scope.KEYS},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Whoever holds the key; on a worker's own credential, with what the worker can run."""

    key_id: str
    role: Role
    worker_id: WorkerId | None = None
    capabilities: frozenset[AgentType] = frozenset()

    def may(self, scope: Scope) -> bool:
        """Whether the role includes the scope."""
        return scope in SCOPES[self.role]


_PREFIX = "cvn"


def write_key(key_id: str, secret: str) -> str:
    """The text that the holder keeps: `cvn_<id>_<secret>`."""
    return f"{_PREFIX}_{key_id}_{secret}"


def read_key(text: str) -> tuple[str, str] | None:
    """Split a key into its id and secret; None when it is not of the form."""
    parts = text.split("_", 2)
    if len(parts) != 3 or parts[0] != _PREFIX or not parts[1] or not parts[2]:
        return None
    return parts[1], parts[2]


def digest(secret: str) -> bytes:
    """SHA-256 of the secret; secrets are 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(secret.encode()).digest()


def matches(secret: str, stored: bytes) -> bool:
    """Whether the secret belongs to the stored digest; takes the same time for every wrong guess."""
    return hmac.compare_digest(digest(secret), stored)
