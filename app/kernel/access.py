"""Roles, the scopes of each, and the principal that a key identifies."""

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
    """Permissions; each route needs one."""

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
# Pool keys and the credentials of single workers share a role; `app.http.guard.worker_of` tells them apart. An operator
# must not manage keys: that would allow making an admin's.
SCOPES: Mapping[Role, frozenset[Scope]] = {
    Role.WORKER: frozenset({Scope.PUBLIC, Scope.REGISTER, Scope.LEASE, Scope.CALL, Scope.MEASURE}),
    Role.READER: _READ,
    Role.SUPERVISOR: _READ | {Scope.SUBMIT, Scope.WEIGH, Scope.CALL, Scope.MEASURE},
    Role.OPERATOR: _OPERATOR,
    Role.ADMIN: _OPERATOR | {Scope.KEYS},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The holder of a key; for a worker's own credential, with the worker's id and the agents that it can run."""

    key_id: str
    role: Role
    worker_id: WorkerId | None = None
    capabilities: frozenset[AgentType] = frozenset()

    def may(self, scope: Scope) -> bool:
        """Whether the role includes the scope."""
        return scope in SCOPES[self.role]
