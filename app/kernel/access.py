"""Roles, the scopes of each, and the principal that a key identifies."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from app.kernel.agents import AgentType
from app.kernel.ids import WorkerId
from app.kernel.resources import Resources


class Role(StrEnum):
    """What a key is for."""

    # The credential of one registered worker; registering gives it out, and nothing else does.
    WORKER = "worker"
    POOL = "pool"
    MONITOR = "monitor"
    SUPERVISOR = "supervisor"
    OPERATOR = "operator"
    ADMIN = "admin"
    READER = "reader"


class RefusalReason(StrEnum):
    """Reasons for which a request is refused, as they are counted."""

    NO_KEY = "no_key"
    UNKNOWN_KEY = "unknown_key"
    FORBIDDEN = "forbidden"
    TOO_MANY = "too_many_failures"


class Scope(StrEnum):
    """Permissions; each route names those that it needs."""

    PUBLIC = "public"
    SELF = "self:read"
    MONITOR = "status:read"
    READ = "read"
    CONTENT = "content:read"
    SUBMIT = "tasks:submit"
    REGISTER = "workers:register"
    LEASE = "leases:hold"
    MANAGE = "queue:manage"
    OPERATE = "pool:operate"
    CONFIGURE = "config:write"
    WEIGH = "weights:command"
    KEYS = "keys:manage"
    CALL = "llm:call"
    MEASURE = "metrics:push"


# Of every role; no key is made without them.
COMMON = frozenset({Scope.PUBLIC, Scope.SELF})
_MONITOR = COMMON | {Scope.MONITOR}
_READ = _MONITOR | {Scope.READ, Scope.CONTENT}
_STEERING = frozenset({Scope.MANAGE, Scope.OPERATE, Scope.CONFIGURE, Scope.WEIGH})
_OPERATOR = _READ | _STEERING | {Scope.SUBMIT, Scope.CALL, Scope.MEASURE}
# Only a pool's key registers workers, and it does nothing else: whoever steals another one cannot become a worker. An
# operator must not manage keys: that would allow making an admin's.
SCOPES: Mapping[Role, frozenset[Scope]] = {
    Role.WORKER: COMMON | {Scope.LEASE, Scope.CALL, Scope.MEASURE},
    Role.POOL: COMMON | {Scope.REGISTER},
    Role.MONITOR: _MONITOR,
    Role.READER: _READ,
    Role.SUPERVISOR: _READ | {Scope.SUBMIT, Scope.MANAGE, Scope.WEIGH, Scope.CALL, Scope.MEASURE},
    Role.OPERATOR: _OPERATOR,
    Role.ADMIN: _OPERATOR | {Scope.KEYS},
}


LAUNCHED = "launched"


def vouching_key(provisioner: str | None, registered_by: str | None) -> str:
    """The key that vouches for a worker: that by which it registered, or LAUNCHED for what the service launched."""
    return LAUNCHED if provisioner is not None else registered_by or ""


# Keys of these roles belong to a namespace; those of others are of the whole service.
NAMESPACED_ROLES = frozenset({Role.SUPERVISOR, Role.READER})


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The holder of a key; for a worker's own credential, with the worker's id, the agents that it can run, and
    the time by which its tasks must have ended, and what it offers to a task.

    A key without a namespace is of the whole service. So are those of `default` while there is no other namespace;
    `is_confined` says that the key must see and change nothing outside of its own.
    """

    key_id: str
    role: Role
    withheld: frozenset[Scope] = frozenset()
    namespace: str | None = None
    is_confined: bool = False
    worker_id: WorkerId | None = None
    capabilities: frozenset[AgentType] = frozenset()
    ends_at: datetime | None = None
    offer: Resources | None = None

    def may(self, scope: Scope) -> bool:
        """Whether the role includes the scope, and the key was not made without it."""
        return scope in SCOPES[self.role] and scope not in self.withheld
